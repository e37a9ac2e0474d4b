#include "ferry/state/page_pool.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "ferry/core/error.h"

namespace ferry {

Page::~Page() {
  if (pool_ != nullptr) pool_->release(arena_, number_);
}

Page Page::share() const {
  FERRY_CHECK(pool_ != nullptr, "no page to share");
  ++pool_->slab_of(arena_, number_)
        .holders[static_cast<std::size_t>(number_ % PagePool::kSlabPages)];
  return {pool_, arena_, number_};
}

std::byte* Page::data() const {
  const PagePool::Arena& arena = pool_->arenas_[static_cast<std::size_t>(arena_)];
  return pool_->slab_of(arena_, number_).memory.data() +
         static_cast<std::size_t>(number_ % PagePool::kSlabPages) * kPagePositions *
             arena.row_bytes;
}

PagePool::PagePool(const StateLayout& layout) : layout_(layout) {
  for (const PageClass& c : layout_.classes()) {
    auto found = std::ranges::find_if(arenas_, [&](const Arena& arena) {
      return arena.row_bytes == c.row_bytes && arena.streams == c.streams;
    });
    arena_of_class_.push_back(static_cast<int>(found - arenas_.begin()));
    if (found != arenas_.end()) continue;
    Arena& arena = arenas_.emplace_back();
    arena.row_bytes = c.row_bytes;
    arena.streams = c.streams;
  }
}

Page PagePool::take(int page_class, const Page& before) {
  const int which = arena_of_class_[static_cast<std::size_t>(page_class)];
  Arena& arena = arenas_[static_cast<std::size_t>(which)];
  const int number = free_page(arena, before ? before.number_ + 1 : 0);
  if (number == kSlabPages * static_cast<int>(arena.slabs.size())) arena.slabs.emplace_back();
  Slab& slab = slab_of(which, number);
  if (slab.memory.size() == 0) add_memory(which, slab);
  const int place = number % kSlabPages;
  slab.free &= ~(std::uint64_t{1} << place);
  slab.holders[static_cast<std::size_t>(place)] = 1;
  ++arena.used;
  return {this, which, number};
}

/// `wanted` where it is free; else where a run of pages may grow: in a group of pages that are all
/// free, as long as attention's blocks; else the lowest that is free; one behind the last where
/// none is. Memory is added last, so that no more was ever touched than was held at once.
int PagePool::free_page(const Arena& arena, int wanted) const {
  constexpr int kGroup = 8;
  constexpr std::uint64_t kGroupMask = (std::uint64_t{1} << kGroup) - 1;
  const auto slab = static_cast<std::size_t>(wanted / kSlabPages);
  if (slab < arena.slabs.size() && (arena.slabs[slab].free >> (wanted % kSlabPages) & 1) != 0)
    return wanted;
  std::optional<int> lowest;
  for (std::size_t s = 0; s < arena.slabs.size(); ++s) {
    const std::uint64_t free = arena.slabs[s].free;
    const int first = static_cast<int>(s) * kSlabPages;
    for (int i = 0; i < kSlabPages; i += kGroup)
      if ((free >> i & kGroupMask) == kGroupMask) return first + i;
    if (free != 0 && !lowest) lowest = first + std::countr_zero(free);
  }
  return lowest.value_or(static_cast<int>(arena.slabs.size()) * kSlabPages);
}

/// Other classes' idle memory goes first: together they never hold more than each at its peak.
void PagePool::add_memory(int arena, Slab& slab) {
  for (std::size_t other = 0; other < arenas_.size(); ++other) {
    if (static_cast<int>(other) == arena) continue;
    for (Slab& idle : arenas_[other].slabs)
      if (idle.free == ~std::uint64_t{0}) idle.memory = Buffer();
  }
  // Sparse: pages come into use one by one.
  slab.memory = Buffer(arenas_[static_cast<std::size_t>(arena)].page_bytes() * kSlabPages,
                       Buffer::Use::sparse);
}

void PagePool::release(int arena, int number) {
  Slab& slab = slab_of(arena, number);
  const int place = number % kSlabPages;
  if (--slab.holders[static_cast<std::size_t>(place)] > 0) return;
  slab.free |= std::uint64_t{1} << place;
  --arenas_[static_cast<std::size_t>(arena)].used;
}

PagePool::Slab& PagePool::slab_of(int arena, int number) {
  return arenas_[static_cast<std::size_t>(arena)]
      .slabs[static_cast<std::size_t>(number / kSlabPages)];
}

std::ptrdiff_t PagePool::stream_bytes(int page_class) const {
  const std::size_t row_bytes = layout_.classes()[static_cast<std::size_t>(page_class)].row_bytes;
  return static_cast<std::ptrdiff_t>(row_bytes * kPagePositions * kSlabPages);
}

std::size_t PagePool::held_bytes() const {
  std::size_t bytes = 0;
  for (const Arena& arena : arenas_)
    bytes += static_cast<std::size_t>(arena.used) * arena.page_bytes();
  return bytes;
}

std::size_t PagePool::reserved_bytes() const {
  std::size_t bytes = 0;
  for (const Arena& arena : arenas_)
    for (const Slab& slab : arena.slabs) bytes += slab.memory.size();
  return bytes;
}

}  // namespace ferry
