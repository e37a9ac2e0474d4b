// Combine, the receiving side: each token's results in top-k order, or the ranks' sums in order of
// rank, added up where the token came from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/exchange/combine_message.h"

namespace ferry {

class HomeSums {
 public:
  HomeSums(LaneState& lane, PeerLink& link, const CombineMessages& combined, DataPlane& plane);

  /// All results are there, or never come: writes the sums of this rank's tokens.
  void write(const CombineTarget& target);

  /// Tokens whose sums lack a masked rank's results, rising.
  std::span<const int> lost_tokens() const { return lost_tokens_; }

  /// Looks for them in what write() noted.
  void collect_lost_tokens();

 private:
  void list_rank_sums(std::size_t token, SumList& list);
  void list_results(std::span<const float> weights, std::size_t token, SumList& list);
  Rank summing_rank(Rank rank) const;

  LaneState& lane_;
  PeerLink& link_;
  const CombineMessages& combined_;
  DataPlane& plane_;
  std::vector<std::uint8_t> lost_;  // [max_tokens]
  std::vector<int> lost_tokens_;
};

}  // namespace ferry
