// Where the state of each layer of a model lies: layers that keep the same positions in rows of the
// same size share pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/state/state_spec.h"

namespace ferry {

/// Positions of a page.
inline constexpr int kPagePositions = 16;

/// Pages that hold `positions`, which begin at a multiple of kPagePositions.
constexpr std::int64_t pages_of(std::int64_t positions) {
  return (positions + kPagePositions - 1) / kPagePositions;
}

/// Layers whose rows lie in the same pages: `streams` rows of each position.
struct PageClass {
  AttentionSpan span;
  std::size_t row_bytes = 0;
  int streams = 0;

  std::size_t page_bytes() const {
    return row_bytes * static_cast<std::size_t>(streams) * kPagePositions;
  }
};

/// Made of what every layer of a model keeps. Plain data: copied freely.
class StateLayout {
 public:
  /// Where a layer's rows lie: streams [first_stream, first_stream + its own) of a class.
  struct Layer {
    int page_class = -1;  ///< -1: it keeps no rows
    int first_stream = 0;
    std::size_t fixed_at = 0;  ///< of its fixed bytes, in those of the sequence
  };

  StateLayout() = default;
  explicit StateLayout(std::span<const StateSpec> layers);

  std::span<const PageClass> classes() const { return classes_; }

  const Layer& layer(int i) const { return layers_[static_cast<std::size_t>(i)]; }

  /// Bytes of what a sequence keeps beside its pages, once.
  std::size_t fixed_bytes() const { return fixed_bytes_; }

  /// The same as often as a sequence has it.
  std::size_t bytes_beside_pages() const { return fixed_copies_ * fixed_bytes_; }

  /// Bytes of a position that every layer still keeps.
  std::size_t bytes_per_position() const;

  /// Bytes of one page of every class: those that show all positions, those that show fewer.
  std::size_t full_page_bytes() const;
  std::size_t window_page_bytes() const;

  /// The first page that any class still needs of a sequence of `committed` positions, but for
  /// those that show all of them: the one behind the last where there is none. What lies beside
  /// pages counts as the part of a page that only somebody behind its end needs.
  std::int64_t first_window_page(std::int64_t committed) const;

  /// Bytes, in whole pages, of a sequence that has `committed` positions and is to hold those
  /// before `end` too: after a step, and during one. REQUIRES: 0 <= committed <= end.
  std::size_t bytes_held(std::int64_t committed, std::int64_t end) const;

  std::size_t bytes_held(std::int64_t committed) const { return bytes_held(committed, committed); }

  /// The most bytes that a sequence holds on its way to `length` positions in steps of up to `step`
  /// tokens, during them included.
  std::size_t bytes_most(std::int64_t length, std::int64_t step) const;

  /// The same layout, counted as where pages are kept (prefix_index.h): a page of one class with a
  /// window stays as long as those of all of them, and a sequence may stand on a snapshot of what
  /// lies beside pages, which is one copy more.
  StateLayout counted_with_prefixes() const;

  bool operator==(const StateLayout& other) const { return specs_ == other.specs_; }

 private:
  std::int64_t first_page_held(const PageClass& c, std::int64_t committed) const;

  std::vector<StateSpec> specs_;
  std::vector<PageClass> classes_;
  std::vector<Layer> layers_;
  std::size_t fixed_bytes_ = 0;
  std::size_t fixed_copies_ = 2;  // what counts, and what a step writes
  bool windows_together_ = false;
};

/// The first page, of a class with this span, that a sequence of `committed` positions still needs.
std::int64_t first_page(const AttentionSpan& span, std::int64_t committed);

}  // namespace ferry
