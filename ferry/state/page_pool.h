// The memory of all sequences' state, in pages that are taken and given back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/state/state_layout.h"

namespace ferry {

class PagePool;

/// A holder of one page. A page is free again when its last holder is gone. Pages may have several
/// holders once they are full: nobody writes to a full page, so none is ever copied. REQUIRES: the
/// pool outlives it.
class Page {
 public:
  Page() = default;
  ~Page();

  Page(Page&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), arena_(other.arena_), number_(other.number_) {}

  Page& operator=(Page&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(arena_, other.arena_);
    std::swap(number_, other.number_);
    return *this;
  }

  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  explicit operator bool() const { return pool_ != nullptr; }

  /// Another holder of the same page. REQUIRES: it holds one.
  Page share() const;

  /// The first row of the first stream; rows follow each other, the next stream begins
  /// PagePool::stream_bytes() later.
  std::byte* data() const;

 private:
  friend class PagePool;

  Page(PagePool* pool, int arena, int number) : pool_(pool), arena_(arena), number_(number) {}

  PagePool* pool_ = nullptr;
  int arena_ = 0;
  int number_ = 0;
};

/// Classes whose pages are as large (as many rows of as many bytes) use the same ones. Memory is
/// reserved for many pages at a time and comes in when it is touched. Pages taken one after the
/// other follow each other in memory where they can, stream by stream, so that attention reads long
/// runs of rows.
/// What was touched stays until other classes want memory: then pieces without a page in use go.
/// Threads: one at a time, also for its pages' holders.
class PagePool {
 public:
  explicit PagePool(const StateLayout& layout);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  const StateLayout& layout() const { return layout_; }

  /// A page that nobody holds, with whatever it held last; the one behind `before` where that is
  /// free. Throws Error when the system refuses the memory.
  Page take(int page_class, const Page& before);

  /// Bytes from one stream's rows in a page to the next's.
  std::ptrdiff_t stream_bytes(int page_class) const;

  /// Bytes of the pages that have a holder; of those that all classes have memory reserved for.
  std::size_t held_bytes() const;
  std::size_t reserved_bytes() const;

 private:
  friend class Page;

  static constexpr int kSlabPages = 64;  // 1024 positions: as many bits as a word has

  /// Pages in one piece of memory: [stream][page][position], so that consecutive pages are
  /// consecutive rows.
  struct Slab {
    Buffer memory;
    std::uint64_t free = ~std::uint64_t{0};  // a bit a page
    std::array<std::uint32_t, kSlabPages> holders{};
  };

  struct Arena {
    std::size_t row_bytes = 0;
    int streams = 0;
    std::vector<Slab> slabs;  // one whose memory is gone keeps its place
    std::int64_t used = 0;    // pages

    std::size_t page_bytes() const {
      return row_bytes * static_cast<std::size_t>(streams) * kPagePositions;
    }
  };

  int free_page(const Arena& arena, int wanted) const;
  void add_memory(int arena, Slab& slab);
  void release(int arena, int number);
  Slab& slab_of(int arena, int number);

  const StateLayout layout_;
  std::vector<Arena> arenas_;
  std::vector<int> arena_of_class_;
};

}  // namespace ferry
