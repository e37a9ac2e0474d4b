// What can be found again of the pages that sequences have filled: by the tokens before and in
// them. It knows pages by number; who holds them keeps them by the same (kept_pages.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "ferry/state/state_layout.h"

namespace ferry {

using PageTokens = std::array<std::int32_t, kPagePositions>;

/// The kept pages that a sequence stands on, from its first token on: what it has computed or
/// found. None of them leaves as long as it does.
struct PrefixPath {
  std::uint64_t root = 0;              ///< 0: it has not begun
  std::vector<std::uint64_t> numbers;  ///< of its pages
  std::int64_t window = 0;             ///< first of them whose windows it still needs

  std::int64_t pages() const { return std::ssize(numbers); }
};

/// A tree of kept pages: one follows another where its tokens followed the other's. Tokens are
/// compared, not only their hashes. Those who give different salts find nothing of each other.
///
/// A kept page has two parts: the rows of layers that see all positions, and those of layers that
/// see a window. A sequence can go on behind P positions where the first part is there of all
/// pages, and the second of those that a window at P shows. Parts leave in order of their last use,
/// the first with the pages behind it gone. Of recurrent layers the second part is a snapshot of
/// what they had at the page's end: only where a sequence stood there once, and of the page before
/// P alone. Pure logic; no memory is touched. Threads: one at a time.
class PrefixIndex {
 public:
  /// REQUIRES: not both, windows and state beside pages.
  explicit PrefixIndex(const StateLayout& layout);

  struct Match {
    std::int64_t pages = 0;
    std::int64_t in_use = 0;  ///< of these, that some sequence stands on
  };

  /// How many pages of these tokens there are, behind a path, whether or not one can go on there.
  std::int64_t known(const PrefixPath& path, std::span<const std::int32_t> tokens) const;

  /// The most pages, of up to `most`, behind which a sequence of these tokens can go on.
  Match find(std::string_view salt, std::span<const std::int32_t> tokens, std::int64_t most) const;

  /// The same of all pages from the first on, for one that stands on `path` already.
  Match find(const PrefixPath& path, std::span<const std::int32_t> tokens, std::int64_t most) const;

  PrefixPath begin(std::string_view salt);

  /// Goes on behind `pages` pages. REQUIRES: find() has found them.
  void adopt(PrefixPath& path, std::span<const std::int32_t> tokens, std::int64_t pages);

  /// The sequence has computed what lies between its path and `pages`: those that are not there yet
  /// become kept pages, and windows that have left are there again. `ends_there`: it stands at the
  /// end of the last of them, so that there is a snapshot.
  void fill(PrefixPath& path,
            std::span<const std::int32_t> tokens,
            std::int64_t pages,
            bool ends_there = true);

  /// The sequence has come to `length` positions: windows before those that it sees may leave.
  void advance(PrefixPath& path, std::int64_t length);

  /// The sequence is gone; what it stood on was used just now.
  void end(PrefixPath& path);

  /// Of the page behind a path: two sequences with the same key are about to compute the same. None
  /// where the tokens do not fill it.
  using Key = std::pair<std::uint64_t, PageTokens>;
  static std::optional<Key> next_key(const PrefixPath& path, std::span<const std::int32_t> tokens);

  struct Gone {
    std::uint64_t number = 0;
    bool windows_only = false;
  };

  /// The part that was used least recently leaves; none: all are in use.
  std::optional<Gone> forget_oldest();

  /// REQUIRES: no sequence stands on any.
  void clear();

  /// Of all first parts; of those in use. Of windows that no sequence needs.
  std::size_t full_bytes() const { return pages_ * full_page_; }

  std::size_t used_full_bytes() const { return used_pages_ * full_page_; }

  std::size_t idle_window_bytes() const { return idle_windows_ * window_page_; }

  /// What forget_oldest() could make free.
  std::size_t idle_bytes() const { return full_bytes() - used_full_bytes() + idle_window_bytes(); }

  std::size_t pages() const { return pages_; }

 private:
  /// Of a kept page, or of a root, which is a page without tokens.
  struct Node {
    std::uint64_t before = 0;  ///< 0: it is a root
    PageTokens tokens{};
    std::string salt = {};  ///< of a root
    std::size_t after = 0;  ///< nodes that follow
    std::size_t users = 0;  ///< paths that it is part of
    bool windows = false;   ///< are there
    std::size_t window_users = 0;
    std::uint64_t used = 0;  ///< when
    std::uint64_t windows_used = 0;
  };

  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };

  /// When, which, and whether its windows alone.
  using Candidate = std::tuple<std::uint64_t, std::uint64_t, bool>;

  Node& node(std::uint64_t number) { return nodes_.at(number); }

  bool may_leave(const Node& n) const { return n.before != 0 && n.users == 0 && n.after == 0; }

  bool windows_may_leave(const Node& n) const {
    return window_page_ > 0 && n.windows && n.window_users == 0;
  }

  std::uint64_t child(std::uint64_t number, const PageTokens& tokens) const;
  Match find_behind(std::uint64_t number,
                    std::int64_t begin,
                    std::int64_t windows,
                    std::span<const std::int32_t> tokens,
                    std::int64_t most) const;
  void stand_on(PrefixPath& path, std::uint64_t number);
  void need_windows(std::uint64_t number);
  void leave_windows(std::uint64_t number);
  void remove(std::uint64_t number);
  void remove_root_if_unused(std::uint64_t number);

  StateLayout layout_;
  std::size_t full_page_;
  std::size_t window_page_;  // of recurrent layers a snapshot
  std::unordered_map<std::uint64_t, Node> nodes_;
  std::unordered_map<Key, std::uint64_t, KeyHash> children_;
  std::unordered_map<std::string, std::uint64_t> roots_;
  std::set<Candidate> candidates_;
  std::uint64_t last_number_ = 0;
  std::uint64_t clock_ = 0;
  std::size_t pages_ = 0;
  std::size_t used_pages_ = 0;
  std::size_t idle_windows_ = 0;
};

}  // namespace ferry
