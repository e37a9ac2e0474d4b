// What ranks tell each other before results are taken: where they begin in each slot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/exchange/dispatch_message.h"

namespace ferry {

/// The combine messages of one exchange, out and in.
class CombineMessages {
 public:
  CombineMessages(LaneState& lane, PeerLink& link, const DispatchMessages& messages);

  /// Puts the message for `home`: `puts` puts carry results for it.
  void send(Rank home, std::uint32_t puts);

  /// Waits for the message of `peer` and the results that are pushed; checks that it does not lead
  /// outside the results.
  void receive(Rank peer);

  /// Whether receive() would find everything; never blocks.
  bool arrived(Rank peer);

  /// Whether `peer` has results for the tokens that a member of this rank's group sent.
  bool has_results(Rank peer, std::size_t share) const {
    return has_results_[share_at(peer, share)] != 0;
  }

  /// [L] first rows of a member's results in the slots of `peer`; only slots with records count.
  std::span<const std::int64_t> result_rows(Rank peer, std::size_t share) const;

 private:
  std::size_t write(Rank home, std::uint32_t puts);
  bool read_rows(Rank peer, const CombineHeader& header);
  void clear_results(Rank peer);

  std::size_t share_at(Rank peer, std::size_t share) const {
    return static_cast<std::size_t>(peer) * static_cast<std::size_t>(lane_.options.tp) + share;
  }

  LaneState& lane_;
  PeerLink& link_;
  const DispatchMessages& messages_;
  std::vector<std::int64_t> result_rows_;        // [R][tp][L]
  std::vector<std::uint64_t> results_expected_;  // [R] cumulative pushed rows
  std::vector<std::uint8_t> has_results_;        // [R][tp]
};

}  // namespace ferry
