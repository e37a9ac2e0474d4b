// The pages that stay behind sequences, for others with the same tokens: the holder of what
// prefix_index.h finds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ferry/state/sequence_state.h"

namespace ferry {

/// Full pages of all classes by their number in an index, and which page each one follows.
/// REQUIRES: the pages' pool outlives it. Threads: one at a time.
class KeptPages {
 public:
  explicit KeptPages(const PagePool& pool) : layout_(pool.layout()) {}

  /// Page `page` of a state stays under this number, behind the one numbered `before` (of page 0:
  /// any). Where there is one with this number the state takes that instead of its own, which has
  /// the same rows; what that one lacks it takes from the state. REQUIRES: the page is full, and
  /// the state has not let it go.
  void keep(std::uint64_t number, std::uint64_t before, std::int64_t page, SequenceState& state);

  /// The state goes on behind `pages` pages, the last of which has this number.
  void give(std::uint64_t number, std::int64_t pages, SequenceState& state) const;

  void forget(std::uint64_t number);
  /// Only the rows of layers that see a window.
  void forget_windows(std::uint64_t number);

  void clear() { kept_.clear(); }

  std::size_t size() const { return kept_.size(); }

 private:
  struct Kept {
    std::uint64_t before = 0;
    std::vector<Page> pages;  // [classes]; none where they were forgotten
  };

  const StateLayout& layout_;
  std::unordered_map<std::uint64_t, Kept> kept_;
};

}  // namespace ferry
