#include "ferry/state/kept_pages.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

void KeptPages::keep(std::uint64_t number,
                     std::uint64_t before,
                     std::int64_t page,
                     SequenceState& state) {
  const auto classes = layout_.classes();
  Kept& kept = kept_[number];
  kept.before = before;
  kept.pages.resize(classes.size());
  for (std::size_t c = 0; c < classes.size(); ++c) {
    const Page& own = state.page(static_cast<int>(c), page);
    FERRY_CHECK(own, "page {} of a sequence is kept too late", page);
    if (kept.pages[c])
      state.replace(static_cast<int>(c), page, kept.pages[c].share());
    else
      kept.pages[c] = own.share();
  }
  const std::span<const std::byte> fixed = state.fixed();
  if (fixed.empty() || kept.snapshot.size() > 0) return;
  if (state.length() != (page + 1) * kPagePositions) return;
  kept.snapshot = Buffer(fixed.size());
  std::ranges::copy(fixed, kept.snapshot.data());
}

void KeptPages::give(std::uint64_t number, std::int64_t pages, SequenceState& state) const {
  const auto classes = layout_.classes();
  state.start_behind(pages);
  const Buffer& snapshot = kept_.at(number).snapshot;
  FERRY_CHECK(snapshot.size() == layout_.fixed_bytes(), "page {} has no snapshot", number);
  state.set_fixed({snapshot.data(), snapshot.size()});
  for (std::int64_t page = pages - 1; page >= 0; --page) {
    const Kept& kept = kept_.at(number);
    for (std::size_t c = 0; c < classes.size(); ++c) {
      if (page < first_page(classes[c].span, pages * kPagePositions)) continue;
      FERRY_CHECK(kept.pages[c], "page {} of a prefix has lost its windows", page);
      state.replace(static_cast<int>(c), page, kept.pages[c].share());
    }
    number = kept.before;
  }
}

void KeptPages::forget(std::uint64_t number) {
  FERRY_CHECK(kept_.erase(number) == 1, "no page is kept under {}", number);
}

void KeptPages::forget_windows(std::uint64_t number) {
  Kept& kept = kept_.at(number);
  const auto classes = layout_.classes();
  for (std::size_t c = 0; c < classes.size(); ++c)
    if (classes[c].span.kind != AttentionSpan::Kind::full) kept.pages[c] = Page();
  kept.snapshot = Buffer();
}

std::size_t KeptPages::snapshot_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [number, kept] : kept_) bytes += kept.snapshot.size();
  return bytes;
}

}  // namespace ferry
