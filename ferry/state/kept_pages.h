// The pages that stay behind sequences, for others with the same tokens, and snapshots of what
// those had beside their pages: the holder of what prefix_index.h finds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/state/sequence_state.h"

namespace ferry {

/// Full pages of all classes by their number in an index, and which page each one follows.
/// REQUIRES: the pages' pool outlives it. Threads: one at a time.
class KeptPages {
 public:
  explicit KeptPages(const PagePool& pool) : layout_(pool.layout()) {}

  /// Page `page` of a state stays under this number, behind the one numbered `before` (of page 0:
  /// any). Where there is one with this number the state takes that instead of its own, which has
  /// the same rows; what that one lacks it takes from the state. Where the state ends with this
  /// page, a snapshot of its fixed bytes stays too. REQUIRES: the page is full, and the state has
  /// not let it go.
  void keep(std::uint64_t number, std::uint64_t before, std::int64_t page, SequenceState& state);

  /// The state goes on behind `pages` pages, the last of which has this number and, where there are
  /// fixed bytes, a snapshot.
  void give(std::uint64_t number, std::int64_t pages, SequenceState& state) const;

  void forget(std::uint64_t number);
  /// Only the rows of layers that see a window, and the snapshot.
  void forget_windows(std::uint64_t number);

  void clear() { kept_.clear(); }

  std::size_t size() const { return kept_.size(); }

  std::size_t snapshot_bytes() const;

 private:
  struct Kept {
    std::uint64_t before = 0;
    std::vector<Page> pages;  // [classes]; none where they were forgotten
    Buffer snapshot;          // of fixed bytes; empty where there is none
  };

  const StateLayout& layout_;
  std::unordered_map<std::uint64_t, Kept> kept_;
};

}  // namespace ferry
