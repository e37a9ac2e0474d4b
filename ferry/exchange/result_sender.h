// Combine, the sending side: experts wrote their rows into this rank's results, where peers that
// read our memory find them; to others they are pushed, record by record. A quantised wire takes
// one more pass, from what experts wrote to the results. Where ranks sum before home does, the sums
// leave instead of the rows (partial_sums.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ferry/exchange/combine_message.h"
#include "ferry/exchange/partial_sums.h"

namespace ferry {

/// Owns the rows that experts write, where they do not leave as written.
class ResultSender {
 public:
  ResultSender(LaneState& lane,
               PeerLink& link,
               const DispatchMessages& messages,
               CombineMessages& combined,
               DataPlane& plane);

  /// Where experts write, as they see it.
  MutableRowsView output() const;

  /// A new exchange: nothing has left.
  void begin();
  /// The results of the slots up to `end_slot` that are written but have not left yet leave.
  void finish(std::size_t end_slot);
  /// All results have left or can be read: tells each home where.
  void send();

  /// Bytes of memory for experts' output, for `mem_size`.
  static std::size_t memory_bytes(const DispatcherOptions& options, const ExchangeLayout& layout);

 private:
  void encode(std::size_t first_slot, std::size_t end_slot);
  void push(Rank home, std::size_t first_slot, std::size_t end_slot);

  LaneState& lane_;
  PeerLink& link_;
  const DispatchMessages& messages_;
  CombineMessages& combined_;
  DataPlane& plane_;
  std::unique_ptr<PlaneMemory> output_;  // empty where experts write straight into the results
  PartialSums sums_;
  std::size_t finished_slots_ = 0;   // whose results have left
  std::vector<std::uint32_t> puts_;  // [R] that carried results, of this exchange
};

}  // namespace ferry
