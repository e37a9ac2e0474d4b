#include "ferry/exchange/gpu/gpu_boxes.h"

#include <algorithm>

namespace ferry::gpu {

namespace {

template <class T>
T* at(std::byte* base, std::size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

}  // namespace

GpuBoxes::GpuBoxes(const GpuLayout& layout, const std::vector<int>& hosts, Rank rank)
    : layout_(layout), hosts_(hosts), rank_(rank) {
  const auto slots = static_cast<std::size_t>(layout.slots);
  const std::size_t entries = slots * static_cast<std::size_t>(layout.list_tokens);
  const auto tp = static_cast<std::size_t>(layout.tp);
  const auto stage_bytes = static_cast<std::size_t>(layout.max_tokens * layout.dispatch_row_bytes);
  results_bytes_ = static_cast<std::size_t>(layout.share_results * layout.combine_row_bytes);

  GpuPlaces letter;
  letter_.signals = letter.take(kGpuSignals * sizeof(std::uint64_t));
  letter_.headers = letter.take(kGpuSteps * sizeof(GpuHeader));
  letter_.counts = letter.take(slots * sizeof(std::uint32_t));
  letter_.tokens = letter.take(entries * sizeof(std::uint32_t));
  letter_.weights = letter.take(layout.row_weights ? entries * sizeof(float) : 0);
  letter_.result_rows = letter.take(tp * slots * sizeof(std::uint32_t));
  letter_.bytes = letter.end();

  GpuPlaces inbox;
  inbox.take(letter_.bytes);
  inbox.take(stage_bytes);
  inbox_results_ = inbox.take(tp * results_bytes_);
  inbox_bytes_ = inbox.end();

  // As many as the rank has that has the most.
  std::size_t far = 0;
  std::size_t homes = 0;
  for (Rank r = 0; r < layout.ranks; ++r) {
    std::size_t with_results = 0;
    for (Rank home = 0; home < layout.ranks; ++home) with_results += has_results(r, home) ? 1 : 0;
    far = std::max(far, far_before(r, layout.ranks));
    homes = std::max(homes, with_results);
  }
  GpuPlaces part;
  part.take(stage_bytes);
  results_ = part.take(0);
  for (std::size_t home = 0; home < homes; ++home) part.take(results_bytes_);
  result_counts_ = part.take(static_cast<std::size_t>(layout.ranks) * sizeof(std::uint32_t));
  outboxes_ = part.take(far * letter_.bytes);
  inboxes_ = part.take(far * inbox_bytes_);
  part_bytes_ = part.end();
}

bool GpuBoxes::is_far(Rank rank, Rank peer) const {
  return hosts_[static_cast<std::size_t>(rank)] != hosts_[static_cast<std::size_t>(peer)];
}

bool GpuBoxes::has_results(Rank rank, Rank home) const {
  const Rank first = home / layout_.tp * layout_.tp;
  for (Rank member = first; member < first + layout_.tp; ++member)
    if (is_far(rank, member)) return true;
  return false;
}

std::size_t GpuBoxes::far_before(Rank rank, Rank peer) const {
  std::size_t far = 0;
  for (Rank r = 0; r < peer; ++r) far += is_far(rank, r) ? 1 : 0;
  return far;
}

std::size_t GpuBoxes::results(Rank home) const {
  std::size_t before = 0;
  for (Rank r = 0; r < home; ++r) before += has_results(r) ? 1 : 0;
  return results_ + before * GpuPlaces::lines(results_bytes_);
}

std::size_t GpuBoxes::outbox(Rank peer) const {
  return outboxes_ + far_before(rank_, peer) * letter_.bytes;
}

std::size_t GpuBoxes::inbox(Rank rank, Rank peer) const {
  return inboxes_ + far_before(rank, peer) * inbox_bytes_;
}

GpuLink GpuBoxes::link(std::byte* base, std::size_t letter) const {
  std::byte* from = base + letter;
  return {.signals = at<std::uint64_t>(from, letter_.signals),
          .counts = at<std::uint32_t>(from, letter_.counts),
          .tokens = at<std::uint32_t>(from, letter_.tokens),
          .weights = at<float>(from, letter_.weights),
          .result_rows = at<std::uint32_t>(from, letter_.result_rows),
          .is_far = 1};
}

}  // namespace ferry::gpu
