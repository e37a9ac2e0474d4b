#include "ferry/state/state_layout.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Fixed state is aligned as any kernel wants it.
constexpr std::size_t kFixedAlignment = 64;

}  // namespace

std::int64_t first_page(const AttentionSpan& span, std::int64_t committed) {
  return span.first(committed) / kPagePositions;
}

StateLayout::StateLayout(std::span<const StateSpec> layers) : specs_(layers.begin(), layers.end()) {
  for (const StateSpec& spec : layers) {
    FERRY_CHECK(
        spec.streams >= 0 && (spec.span.kind == AttentionSpan::Kind::full || spec.span.width >= 1),
        "a layer that keeps {} rows of the last {} positions",
        spec.streams,
        spec.span.width);
    Layer& layer = layers_.emplace_back();
    layer.fixed_at = fixed_bytes_;
    fixed_bytes_ += (spec.fixed_bytes + kFixedAlignment - 1) / kFixedAlignment * kFixedAlignment;
    if (spec.streams == 0 || spec.row_bytes == 0) continue;
    auto found = std::ranges::find_if(classes_, [&](const PageClass& c) {
      return c.span == spec.span && c.row_bytes == spec.row_bytes;
    });
    if (found == classes_.end())
      found = classes_.insert(found, {.span = spec.span, .row_bytes = spec.row_bytes});
    layer.page_class = static_cast<int>(found - classes_.begin());
    layer.first_stream = found->streams;
    found->streams += spec.streams;
  }
}

std::size_t StateLayout::bytes_per_position() const {
  std::size_t bytes = 0;
  for (const PageClass& c : classes_) bytes += c.row_bytes * static_cast<std::size_t>(c.streams);
  return bytes;
}

std::size_t StateLayout::full_page_bytes() const {
  std::size_t bytes = 0;
  for (const PageClass& c : classes_)
    if (c.span.kind == AttentionSpan::Kind::full) bytes += c.page_bytes();
  return bytes;
}

std::size_t StateLayout::window_page_bytes() const {
  std::size_t bytes = 0;
  for (const PageClass& c : classes_)
    if (c.span.kind != AttentionSpan::Kind::full) bytes += c.page_bytes();
  return bytes;
}

std::int64_t StateLayout::first_window_page(std::int64_t committed) const {
  std::int64_t first = pages_of(committed);
  if (fixed_bytes_ > 0) {
    const bool behind_page = committed > 0 && committed % kPagePositions == 0;
    first = committed / kPagePositions - (behind_page ? 1 : 0);
  }
  for (const PageClass& c : classes_)
    if (c.span.kind != AttentionSpan::Kind::full)
      first = std::min(first, first_page(c.span, committed));
  return first;
}

StateLayout StateLayout::counted_with_prefixes() const {
  StateLayout layout = *this;
  layout.windows_together_ = true;
  layout.fixed_copies_ = 3;
  return layout;
}

std::int64_t StateLayout::first_page_held(const PageClass& c, std::int64_t committed) const {
  return windows_together_ && c.span.kind != AttentionSpan::Kind::full
             ? first_window_page(committed)
             : first_page(c.span, committed);
}

std::size_t StateLayout::bytes_most(std::int64_t length, std::int64_t step) const {
  if (length == 0) return 0;
  int widest = 0;
  for (const PageClass& c : classes_) widest = std::max(widest, c.span.width);
  std::size_t bytes = bytes_beside_pages();
  for (const PageClass& c : classes_) {
    const int width = windows_together_ ? widest : c.span.width;
    std::int64_t pages = pages_of(length);
    // What the step's first token sees before itself, and the step's tokens, from anywhere in a
    // page on.
    if (c.span.kind != AttentionSpan::Kind::full)
      pages = std::min(pages, pages_of(width - 1 + step - 1) + 1);
    bytes += static_cast<std::size_t>(pages) * c.page_bytes();
  }
  return bytes;
}

std::size_t StateLayout::bytes_held(std::int64_t committed, std::int64_t end) const {
  if (end == 0) return 0;
  std::size_t bytes = bytes_beside_pages();
  for (const PageClass& c : classes_) {
    const std::int64_t pages =
        pages_of(end) - std::min(first_page_held(c, committed), pages_of(end));
    bytes += static_cast<std::size_t>(pages) * c.page_bytes();
  }
  return bytes;
}

}  // namespace ferry
