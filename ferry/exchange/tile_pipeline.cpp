#include "ferry/exchange/tile_pipeline.h"

#include <algorithm>

namespace ferry {

namespace {

/// Computing a slot in two tiles reads its weights twice; from about this many rows on, the
/// arithmetic takes longer than the reading.
constexpr std::int64_t kRowsWorthATile = 32;
/// Rows of a tile whose results leave together.
constexpr std::int64_t kTileRows = 256;

}  // namespace

TilePipeline::TilePipeline(LaneState& lane,
                           DispatchMessages& messages,
                           RowReceiver& receiver,
                           ResultSender& results)
    : lane_(lane),
      messages_(messages),
      receiver_(receiver),
      results_(results),
      counts_(static_cast<std::size_t>(lane.options.slots_per_rank)),
      counts_of_tile_(counts_.size()),
      offsets_(counts_.size()) {}

/// Whether this rank's own rows should be computed while the others' are on their way.
bool TilePipeline::worth_own_tile() const {
  if (lane_.pull || lane_.ranks == 1) return false;
  std::int64_t own = 0;
  std::int64_t slots = 0;
  for (const std::uint32_t count : messages_.of(lane_.rank).counts) {
    own += count;
    slots += count > 0 ? 1 : 0;
  }
  return slots > 0 && own >= slots * kRowsWorthATile;
}

void TilePipeline::run(FunctionRef<void(const ExpertRows&)> experts) {
  const std::size_t slots = counts_.size();
  std::ranges::copy(lane_.receive_plan().counts(), counts_.begin());
  std::ranges::copy(lane_.receive_plan().offsets(), offsets_.begin());
  receiver_.take(lane_.rank);
  if (worth_own_tile()) {
    // A rank's own rows stand first in every slot.
    const std::span<const std::uint32_t> own = messages_.of(lane_.rank).counts;
    std::ranges::copy(own, counts_.begin());
    experts(rows_with(counts_));
    for (std::size_t slot = 0; slot < slots; ++slot) {
      counts_[slot] = lane_.receive_plan().counts()[slot] - static_cast<std::int32_t>(own[slot]);
      offsets_[slot] += own[slot];
    }
  }
  for (const Rank home : lane_.relays.receive_order())
    if (home != lane_.rank) receiver_.take(home);
  if (lane_.pull) {  // nothing leaves before it is asked for: one tile
    experts(rows_with(counts_));
    return;
  }
  for (std::size_t first = 0; first < slots;) {
    std::size_t end = first;
    for (std::int64_t rows = 0; end < slots && rows < kTileRows; ++end) rows += counts_[end];
    run_tile(experts, first, end);
    first = end;
  }
}

ExpertRows TilePipeline::rows_with(std::span<const std::int32_t> counts) const {
  ExpertRows rows = receiver_.rows();
  rows.counts = counts;
  rows.offsets = offsets_;
  rows.out = results_.output();
  return rows;
}

/// The rows of slots [first, end) that are left; then their results leave.
void TilePipeline::run_tile(FunctionRef<void(const ExpertRows&)> experts,
                            std::size_t first,
                            std::size_t end) {
  // The other slots' counts step aside.
  std::fill(counts_of_tile_.begin(), counts_of_tile_.end(), 0);
  std::copy(counts_.begin() + static_cast<std::ptrdiff_t>(first),
            counts_.begin() + static_cast<std::ptrdiff_t>(end),
            counts_of_tile_.begin() + static_cast<std::ptrdiff_t>(first));
  experts(rows_with(counts_of_tile_));
  results_.finish(end);
}

}  // namespace ferry
