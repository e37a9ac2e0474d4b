// What a model keeps of one sequence: its pages, behind a block table for each class of them, and
// how far they are filled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/types.h"
#include "ferry/state/page_pool.h"

namespace ferry {

/// One stream of one layer: row p is that of position p. Valid until the state changes; no row is
/// there of positions that were given back.
struct StateRows {
  std::byte* const* pages = nullptr;
  std::ptrdiff_t offset = 0;  ///< of the stream, in every page
  std::ptrdiff_t stride = 0;

  std::byte* row(std::int64_t position) const {
    return pages[position / kPagePositions] + offset + position % kPagePositions * stride;
  }
};

/// A step writes rows behind what is committed; only commit() makes them part of the sequence. What
/// was not accepted is written over by a later step. REQUIRES: the pool outlives it. Movable, also
/// while others hold pointers to its pages. Threads: one at a time, rows() from several.
class SequenceState {
 public:
  /// For at most `capacity` positions.
  SequenceState(PagePool& pool, int capacity);

  /// Positions committed so far, which is also the position of the next token.
  int length() const { return length_; }

  int capacity() const { return capacity_; }

  const StateLayout& layout() const { return pool_->layout(); }

  /// Before a step of `tokens` tokens: pages for their rows. Throws Error when the system refuses
  /// the memory. REQUIRES: room for them.
  void reserve(int tokens);

  /// After the step: the first `tokens` of what was reserved stay. Pages without a committed
  /// position go back. REQUIRES: at most what was reserved.
  void commit(int tokens);

  /// Pages that no later query sees go back: before the next step. Until then others may share what
  /// the last one has filled.
  void let_go();

  /// The page with this number in a class; none where it was given back.
  const Page& page(int page_class, std::int64_t index) const {
    return tables_[static_cast<std::size_t>(page_class)].pages[static_cast<std::size_t>(index)];
  }

  /// Behind `pages` pages that others have filled, which replace() brings: its own go back.
  /// REQUIRES: no step has reserved anything, and room for one more position.
  void start_behind(std::int64_t pages);

  /// Puts a full page that has the rows of these positions in the place of its own, or of none.
  void replace(int page_class, std::int64_t index, Page page);

  /// One of the streams of a layer's StateSpec.
  StateRows rows(int layer, int stream) const {
    const StateLayout::Layer& place = pool_->layout().layer(layer);
    const Table& table = tables_[static_cast<std::size_t>(place.page_class)];
    return {table.rows.data(), (place.first_stream + stream) * table.stream_bytes, table.row_bytes};
  }

  /// The fixed bytes of a layer that count: zero at first.
  const std::byte* fixed(int layer) const {
    return all_fixed(fixed_) + pool_->layout().layer(layer).fixed_at;
  }

  /// What those become with the next commit of a token or more: whoever has such bytes writes all
  /// of them before.
  std::byte* next_fixed(int layer) const {
    return all_fixed(1 - fixed_) + pool_->layout().layer(layer).fixed_at;
  }

  /// Those of all layers, as they count.
  std::span<const std::byte> fixed() const { return {all_fixed(fixed_), fixed_bytes()}; }

  /// REQUIRES: as many as fixed() has.
  void set_fixed(std::span<const std::byte> bytes);

  /// Bytes in whole pages, and the fixed ones.
  std::size_t held_bytes() const;

 private:
  /// Pages [first, end) of a class.
  struct Table {
    std::vector<Page> pages;       // [end]; none where they were given back
    std::vector<std::byte*> rows;  // [capacity in pages]: where each begins
    std::ptrdiff_t stream_bytes = 0;
    std::ptrdiff_t row_bytes = 0;
  };

  std::size_t fixed_bytes() const { return pool_->layout().fixed_bytes(); }

  std::byte* all_fixed(int copy) const {
    return copies_.data() + static_cast<std::size_t>(copy) * fixed_bytes();
  }

  PagePool* pool_;
  int capacity_;
  int length_ = 0;
  int reserved_ = 0;           // positions behind length_
  std::vector<Table> tables_;  // [classes]
  Buffer copies_;              // of the fixed bytes: [2]
  int fixed_ = 0;              // the copy that counts
};

}  // namespace ferry
