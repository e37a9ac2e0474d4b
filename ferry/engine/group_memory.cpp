#include "ferry/engine/group_memory.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

GroupMemory::GroupMemory(const StateLayout& layout, std::size_t limit, bool keeps)
    : layout_(layout), limit_(limit) {
  if (keeps) index_.emplace(layout);
}

PrefixIndex::Match GroupMemory::find(const Admission& admission,
                                     std::span<const std::int32_t> ids,
                                     std::int64_t most_positions) const {
  if (!index_) return {};
  return index_->find(admission.request.cache_salt, ids, most_positions / kPagePositions);
}

bool GroupMemory::fits(std::size_t bytes, const PrefixIndex::Match& match) const {
  const std::size_t there = static_cast<std::size_t>(match.in_use) * layout_.full_page_bytes();
  return used_bytes() + bytes - std::min(there, bytes) <= limit_;
}

bool GroupMemory::over() const {
  const std::size_t idle = idle_bytes();
  return limit_ == SIZE_MAX ? idle > most_used_ : used_bytes() + idle > limit_;
}

/// False where idle pages are left that should go, but the record cannot say so.
bool GroupMemory::make_room(StepRecord& record) {
  most_used_ = std::max(most_used_, used_bytes());
  while (idle_bytes() > 0 && over()) {
    if (record.forgotten.size() + record.forgotten_windows.size() >= kMostForgotten) return false;
    const std::optional<PrefixIndex::Gone> gone = index_->forget_oldest();
    FERRY_CHECK(gone, "{} idle bytes, but no page may leave", idle_bytes());
    (gone->windows_only ? record.forgotten_windows : record.forgotten).push_back(gone->number);
  }
  return true;
}

bool GroupMemory::begin(Holding& holding,
                        const Admission& admission,
                        std::span<const std::int32_t> ids,
                        std::int64_t pages,
                        std::size_t bytes,
                        StepRecord& record) {
  if (index_) {
    holding.path = index_->begin(admission.request.cache_salt);
    index_->adopt(holding.path, ids, pages);
  }
  holding.bytes = bytes - static_cast<std::size_t>(pages) * layout_.full_page_bytes();
  held_ += holding.bytes;
  if (!make_room(record)) {
    end(holding);
    return false;
  }
  if (pages > 0)
    record.begins.push_back({.sequence = admission.id,
                             .number = holding.path.numbers.back(),
                             .pages = static_cast<std::uint32_t>(pages)});
  return true;
}

std::int64_t GroupMemory::catch_up(Holding& holding,
                                   const Admission& admission,
                                   std::span<const std::int32_t> ids,
                                   std::int64_t length,
                                   std::int64_t most_positions,
                                   StepRecord& record) {
  if (!index_) return 0;
  const std::int64_t pages = index_->find(holding.path, ids, most_positions / kPagePositions).pages;
  if (pages * kPagePositions <= length) return 0;
  const auto more =
      static_cast<std::size_t>(pages - holding.path.pages()) * layout_.full_page_bytes();
  index_->adopt(holding.path, ids, pages);
  holding.bytes -= more;
  held_ -= more;
  const BeginOrder order{.sequence = admission.id,
                         .number = holding.path.numbers.back(),
                         .pages = static_cast<std::uint32_t>(pages)};
  const auto earlier = std::ranges::find(record.begins, admission.id, &BeginOrder::sequence);
  if (earlier == record.begins.end())
    record.begins.push_back(order);
  else
    *earlier = order;
  return pages;
}

/// Snapshots are there of pages with which a step has ended. So a prompt ends a step with a full
/// page wherever it can: before its last token, which nobody finds; and where its tokens part from
/// what is kept, as the next who comes with the same beginning will part from it there too.
std::int64_t GroupMemory::up_to_snapshot(const Holding& holding,
                                         std::span<const std::int32_t> ids,
                                         std::int64_t length,
                                         std::int64_t tokens) const {
  if (!index_ || layout_.fixed_bytes() == 0) return tokens;
  const std::int64_t last = length + tokens == std::ssize(ids) ? 1 : 0;
  std::int64_t end = (length + tokens - last) / kPagePositions * kPagePositions;
  const std::int64_t known = index_->known(holding.path, ids) * kPagePositions;
  if (known > length) end = std::min(end, known);
  return end > length ? end - length : tokens;
}

void GroupMemory::set(Holding& holding, std::size_t bytes) {
  held_ += bytes - holding.bytes;
  holding.bytes = bytes;
}

/// Of what a sequence is to have, what the kept pages that it stands on do not.
std::size_t GroupMemory::beside_path(const Holding& holding, std::size_t bytes) const {
  return bytes - static_cast<std::size_t>(holding.path.pages()) * layout_.full_page_bytes();
}

void GroupMemory::shrink(Holding& holding, std::size_t bytes) {
  const std::size_t left = beside_path(holding, bytes);
  FERRY_CHECK(left <= holding.bytes, "{} bytes shrink to {}", holding.bytes, left);
  set(holding, left);
}

GroupMemory::Room GroupMemory::resize(Holding& holding, std::size_t bytes, StepRecord& record) {
  const std::size_t before = holding.bytes;
  set(holding, beside_path(holding, bytes));
  const bool all_told = make_room(record);
  if (all_told && used_bytes() <= limit_) return Room::there;
  set(holding, before);
  return all_told ? Room::none : Room::record_is_full;
}

void GroupMemory::fill(Holding& holding,
                       std::uint64_t sequence,
                       std::span<const std::int32_t> ids,
                       std::int64_t length) {
  if (!index_) return;
  const std::int64_t from = holding.path.pages();
  const std::int64_t pages = length / kPagePositions;
  if (pages > from) {
    const std::size_t bytes = static_cast<std::size_t>(pages - from) * layout_.full_page_bytes();
    index_->fill(holding.path, ids, pages, length % kPagePositions == 0);
    holding.bytes -= bytes;
    held_ -= bytes;
  }
  for (std::int64_t page = from; page < pages; ++page) {
    const auto i = static_cast<std::size_t>(page);
    keeps_.push_back({.sequence = sequence,
                      .number = holding.path.numbers[i],
                      .before = i == 0 ? holding.path.root : holding.path.numbers[i - 1],
                      .page = static_cast<std::uint32_t>(page)});
  }
  index_->advance(holding.path, length);
}

void GroupMemory::end(Holding& holding) {
  if (index_) index_->end(holding.path);
  held_ -= std::exchange(holding.bytes, 0);
}

void GroupMemory::begin_record(StepRecord& record) {
  record.keeps = std::exchange(keeps_, {});
  record.forget_all = std::exchange(forget_all_, false);
  static_cast<void>(make_room(record));  // what is left goes with the next record
}

void GroupMemory::forget_all() {
  if (!index_) return;
  index_->clear();
  forget_all_ = true;
}

}  // namespace ferry
