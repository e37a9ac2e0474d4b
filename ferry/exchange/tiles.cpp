// The fused pipeline: experts start on the rows that are there while others are still on their way,
// and results leave as tiles finish. Rows and sums are those of the phases, bit for bit: only the
// order in which rows are computed differs.
#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/exchange/dispatcher.h"

namespace ferry {

namespace {

/// Computing a slot in two tiles reads its weights twice; from about this many rows on, the
/// arithmetic takes longer than the reading.
constexpr std::int64_t kRowsWorthATile = 32;
/// Rows of a tile whose results leave together.
constexpr std::int64_t kTileRows = 256;

}  // namespace

/// Whether this rank's own rows should be computed while the others' are on their way.
bool Dispatcher::worth_own_tile() const {
  if (pull_ || ranks_ == 1) return false;
  std::int64_t own = 0;
  std::int64_t slots = 0;
  for (const std::uint32_t count : messages_[static_cast<std::size_t>(transport_.rank())].counts) {
    own += count;
    slots += count > 0 ? 1 : 0;
  }
  return slots > 0 && own >= slots * kRowsWorthATile;
}

void Dispatcher::dispatch_recv(FunctionRef<void(const ExpertRows&)> experts) {
  if (options_.exchange.pipeline == ExchangeOptions::Pipeline::phases) {
    experts(dispatch_recv());
    return;
  }
  receive_messages();
  const auto slots = static_cast<std::size_t>(options_.slots_per_rank);
  std::copy_n(receive_plan().counts().begin(), slots, tile_counts_.begin());
  std::copy_n(receive_plan().offsets().begin(), slots, tile_offsets_.begin());
  const Rank me = transport_.rank();
  take_rows(me);
  if (worth_own_tile()) {
    // A rank's own rows stand first in every slot.
    const std::span<const std::uint32_t> own = messages_[static_cast<std::size_t>(me)].counts;
    std::copy_n(own.begin(), slots, tile_counts_.begin());
    experts(rows_of_slots(tile_counts_, tile_offsets_));
    for (std::size_t slot = 0; slot < slots; ++slot) {
      tile_counts_[slot] = receive_plan().counts()[slot] - static_cast<std::int32_t>(own[slot]);
      tile_offsets_[slot] += own[slot];
    }
  }
  for (const Rank home : relays_.receive_order())
    if (home != me) take_rows(home);
  if (pull_) {  // nothing leaves before it is asked for: one tile
    experts(rows_of_slots(tile_counts_, tile_offsets_));
    return;
  }
  for (std::size_t first = 0; first < slots;) {
    std::size_t end = first;
    for (std::int64_t rows = 0; end < slots && rows < kTileRows; ++end) rows += tile_counts_[end];
    run_tile(experts, first, end);
    first = end;
  }
}

/// The rows of slots [first, end) that are left; then their results leave.
void Dispatcher::run_tile(FunctionRef<void(const ExpertRows&)> experts,
                          std::size_t first,
                          std::size_t end) {
  // The other slots' counts step aside.
  std::fill(counts_of_tile_.begin(), counts_of_tile_.end(), 0);
  std::copy(tile_counts_.begin() + static_cast<std::ptrdiff_t>(first),
            tile_counts_.begin() + static_cast<std::ptrdiff_t>(end),
            counts_of_tile_.begin() + static_cast<std::ptrdiff_t>(first));
  experts(rows_of_slots(counts_of_tile_, tile_offsets_));
  finish_results(end);
}

}  // namespace ferry
