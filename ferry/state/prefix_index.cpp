#include "ferry/state/prefix_index.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

PageTokens page_tokens(std::span<const std::int32_t> tokens, std::int64_t page) {
  PageTokens out;
  const auto from = tokens.subspan(static_cast<std::size_t>(page) * kPagePositions, kPagePositions);
  std::ranges::copy(from, out.begin());
  return out;
}

/// Full pages of these tokens.
std::int64_t full_pages(std::span<const std::int32_t> tokens) {
  return std::ssize(tokens) / kPagePositions;
}

}  // namespace

std::size_t PrefixIndex::KeyHash::operator()(const Key& key) const {
  std::uint64_t hash = key.first;
  for (const std::int32_t token : key.second) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15ULL;
    hash ^= hash >> 29;
  }
  return static_cast<std::size_t>(hash);
}

PrefixIndex::PrefixIndex(const StateLayout& layout)
    : layout_(layout),
      full_page_(layout.full_page_bytes()),
      window_page_(layout.window_page_bytes() + layout.fixed_bytes()) {
  FERRY_CHECK(layout.fixed_bytes() == 0 || layout.window_page_bytes() == 0,
              "windows beside recurrent layers cannot be found by tokens");
}

std::uint64_t PrefixIndex::child(std::uint64_t number, const PageTokens& tokens) const {
  const auto found = children_.find({number, tokens});
  return found == children_.end() ? 0 : found->second;
}

/// `windows`: how many pages before `begin` have theirs, without a gap.
PrefixIndex::Match PrefixIndex::find_behind(std::uint64_t number,
                                            std::int64_t begin,
                                            std::int64_t windows,
                                            std::span<const std::int32_t> tokens,
                                            std::int64_t most) const {
  Match best;
  std::int64_t in_use = begin;
  most = std::min(most, full_pages(tokens));
  for (std::int64_t pages = begin;;) {
    const std::int64_t wanted = pages - layout_.first_window_page(pages * kPagePositions);
    if (windows >= wanted) best = {.pages = pages, .in_use = in_use};
    if (pages >= most) return best;
    number = child(number, page_tokens(tokens, pages));
    if (number == 0) return best;
    const Node& next = nodes_.at(number);
    windows = next.windows ? windows + 1 : 0;
    in_use += next.users > 0 ? 1 : 0;
    ++pages;
  }
}

PrefixIndex::Match PrefixIndex::find(std::string_view salt,
                                     std::span<const std::int32_t> tokens,
                                     std::int64_t most) const {
  const auto root = roots_.find(std::string(salt));
  if (root == roots_.end()) return {};
  return find_behind(root->second, 0, 0, tokens, most);
}

PrefixIndex::Match PrefixIndex::find(const PrefixPath& path,
                                     std::span<const std::int32_t> tokens,
                                     std::int64_t most) const {
  const std::uint64_t last = path.numbers.empty() ? path.root : path.numbers.back();
  return find_behind(last, path.pages(), path.pages() - path.window, tokens, most);
}

std::int64_t PrefixIndex::known(const PrefixPath& path,
                                std::span<const std::int32_t> tokens) const {
  std::uint64_t number = path.numbers.empty() ? path.root : path.numbers.back();
  std::int64_t pages = path.pages();
  for (; pages < full_pages(tokens); ++pages) {
    number = child(number, page_tokens(tokens, pages));
    if (number == 0) break;
  }
  return pages;
}

PrefixPath PrefixIndex::begin(std::string_view salt) {
  const auto [root, is_new] = roots_.try_emplace(std::string(salt), last_number_ + 1);
  if (is_new) nodes_[++last_number_] = {.salt = std::string(salt)};
  ++node(root->second).users;
  return {.root = root->second, .numbers = {}};
}

void PrefixIndex::need_windows(std::uint64_t number) {
  Node& n = node(number);
  if (windows_may_leave(n)) {
    candidates_.erase({n.windows_used, number, true});
    --idle_windows_;
  }
  ++n.window_users;
}

void PrefixIndex::leave_windows(std::uint64_t number) {
  Node& n = node(number);
  --n.window_users;
  if (!windows_may_leave(n)) return;
  n.windows_used = ++clock_;
  candidates_.insert({n.windows_used, number, true});
  ++idle_windows_;
}

/// One page further, which is there.
void PrefixIndex::stand_on(PrefixPath& path, std::uint64_t number) {
  Node& n = node(number);
  if (may_leave(n)) candidates_.erase({n.used, number, false});
  if (n.users++ == 0) ++used_pages_;
  path.numbers.push_back(number);
}

void PrefixIndex::adopt(PrefixPath& path,
                        std::span<const std::int32_t> tokens,
                        std::int64_t pages) {
  const std::int64_t first = layout_.first_window_page(pages * kPagePositions);
  advance(path, pages * kPagePositions);
  while (path.pages() < pages) {
    const std::int64_t page = path.pages();
    const std::uint64_t last = path.numbers.empty() ? path.root : path.numbers.back();
    const std::uint64_t next = child(last, page_tokens(tokens, page));
    FERRY_CHECK(next != 0, "page {} is not kept", page);
    stand_on(path, next);
    if (page >= first) need_windows(next);
  }
  path.window = std::max(path.window, first);
}

void PrefixIndex::fill(PrefixPath& path,
                       std::span<const std::int32_t> tokens,
                       std::int64_t pages,
                       bool ends_there) {
  while (path.pages() < pages) {
    const std::uint64_t last = path.numbers.empty() ? path.root : path.numbers.back();
    const PageTokens own = page_tokens(tokens, path.pages());
    std::uint64_t next = child(last, own);
    if (next == 0) {
      next = ++last_number_;
      nodes_[next] = {.before = last, .tokens = own};
      children_[{last, own}] = next;
      Node& before = node(last);
      if (may_leave(before)) candidates_.erase({before.used, last, false});
      ++before.after;
      ++pages_;
      // The path's own hold comes before anybody could take it for idle.
      ++node(next).users;
      ++used_pages_;
      path.numbers.push_back(next);
    } else {
      stand_on(path, next);
    }
    need_windows(next);
    if (layout_.fixed_bytes() == 0 || (ends_there && path.pages() == pages))
      node(next).windows = true;
  }
}

void PrefixIndex::advance(PrefixPath& path, std::int64_t length) {
  const std::int64_t first = std::min(layout_.first_window_page(length), path.pages());
  for (; path.window < first; ++path.window)
    leave_windows(path.numbers[static_cast<std::size_t>(path.window)]);
}

void PrefixIndex::end(PrefixPath& path) {
  if (path.root == 0) return;
  // Pages behind the last use leave first, each with its windows.
  for (std::int64_t i = path.pages() - 1; i >= 0; --i) {
    const std::uint64_t number = path.numbers[static_cast<std::size_t>(i)];
    Node& n = node(number);
    n.used = ++clock_;
    if (--n.users == 0) --used_pages_;
    if (may_leave(n)) candidates_.insert({n.used, number, false});
    if (i >= path.window) leave_windows(number);
  }
  --node(path.root).users;
  remove_root_if_unused(path.root);
  path = {};
}

std::optional<PrefixIndex::Key> PrefixIndex::next_key(const PrefixPath& path,
                                                      std::span<const std::int32_t> tokens) {
  if (full_pages(tokens) <= path.pages()) return std::nullopt;
  return Key{path.numbers.empty() ? path.root : path.numbers.back(),
             page_tokens(tokens, path.pages())};
}

void PrefixIndex::remove_root_if_unused(std::uint64_t number) {
  const Node& root = node(number);
  if (root.users > 0 || root.after > 0) return;
  roots_.erase(root.salt);
  nodes_.erase(number);
}

void PrefixIndex::remove(std::uint64_t number) {
  const Node gone = std::move(node(number));
  if (windows_may_leave(gone)) {
    candidates_.erase({gone.windows_used, number, true});
    --idle_windows_;
  }
  nodes_.erase(number);
  children_.erase({gone.before, gone.tokens});
  --pages_;
  Node& before = node(gone.before);
  --before.after;
  if (may_leave(before)) candidates_.insert({before.used, gone.before, false});
  if (before.before == 0) remove_root_if_unused(gone.before);
}

std::optional<PrefixIndex::Gone> PrefixIndex::forget_oldest() {
  if (candidates_.empty()) return std::nullopt;
  const auto [when, number, windows_only] = *candidates_.begin();
  candidates_.erase(candidates_.begin());
  if (windows_only) {
    node(number).windows = false;
    --idle_windows_;
  } else {
    remove(number);
  }
  return Gone{.number = number, .windows_only = windows_only};
}

void PrefixIndex::clear() {
  FERRY_CHECK(used_pages_ == 0, "{} kept pages are in use", used_pages_);
  while (forget_oldest()) {
  }
}

}  // namespace ferry
