// Sums before the sums at home: a rank adds up its results for each token, and where a host has
// several ranks, one of them adds up theirs for homes on other hosts. Which one: relay_plan.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ferry/exchange/dispatch_message.h"

namespace ferry {

/// Weighted, in top-k order; hosts' in order of rank.
class PartialSums {
 public:
  /// output: rows that experts write.
  PartialSums(LaneState& lane,
              PeerLink& link,
              const DispatchMessages& messages,
              DataPlane& plane,
              const std::byte* output);

  /// Adds up everything and lets it leave; adds to `puts` [R] those that carry sums to each home.
  void send(std::span<std::uint32_t> puts);

 private:
  void sum_per_rank(Rank home, std::span<std::uint32_t> puts);
  void list_sums(Rank home, std::size_t first_entry, std::size_t end_entry, SumList& list) const;
  void push_sums(Rank home, std::span<const ReduceEntry> entries, std::span<std::uint32_t> puts);
  void relay_sums(std::span<std::uint32_t> puts);
  void sum_per_host(Rank home);
  void push_host_sums(Rank home, std::span<std::uint32_t> puts);
  std::size_t first_row_of(Rank home) const;

  LaneState& lane_;
  PeerLink& link_;
  const DispatchMessages& messages_;
  DataPlane& plane_;
  const std::byte* output_;
};

}  // namespace ferry
