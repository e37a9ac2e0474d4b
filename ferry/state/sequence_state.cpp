#include "ferry/state/sequence_state.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

SequenceState::SequenceState(PagePool& pool, int capacity)
    : pool_(&pool), capacity_(capacity), copies_(2 * pool.layout().fixed_bytes()) {
  FERRY_CHECK(capacity >= 1, "the state of {} positions", capacity);
  const auto most = static_cast<std::size_t>(pages_of(capacity));
  const auto classes = pool.layout().classes();
  tables_.resize(classes.size());
  for (std::size_t c = 0; c < classes.size(); ++c) {
    Table& table = tables_[c];
    table.pages.reserve(most);
    table.rows.resize(most);
    table.stream_bytes = pool.stream_bytes(static_cast<int>(c));
    table.row_bytes = static_cast<std::ptrdiff_t>(classes[c].row_bytes);
  }
}

void SequenceState::reserve(int tokens) {
  FERRY_CHECK(tokens >= 0 && tokens <= capacity_ - length_,
              "{} tokens behind {} of {} positions",
              tokens,
              length_,
              capacity_);
  const auto end = static_cast<std::size_t>(pages_of(length_ + tokens));
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    Table& table = tables_[c];
    while (table.pages.size() < end) {
      const std::size_t i = table.pages.size();
      const Page nothing;
      table.pages.push_back(
          pool_->take(static_cast<int>(c), i == 0 ? nothing : table.pages.back()));
      table.rows[i] = table.pages.back().data();
    }
  }
  reserved_ = tokens;
}

void SequenceState::commit(int tokens) {
  FERRY_CHECK(tokens >= 0 && tokens <= reserved_,
              "{} tokens committed of {} that have run",
              tokens,
              reserved_);
  length_ += tokens;
  reserved_ = 0;
  if (tokens > 0) fixed_ = 1 - fixed_;
  const auto end = static_cast<std::size_t>(pages_of(length_));
  for (Table& table : tables_) {
    while (table.pages.size() > end) {
      table.pages.pop_back();
      table.rows[table.pages.size()] = nullptr;
    }
  }
}

void SequenceState::let_go() {
  const auto classes = pool_->layout().classes();
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    Table& table = tables_[c];
    const auto needed = static_cast<std::size_t>(first_page(classes[c].span, length_));
    for (std::size_t i = std::min(needed, table.pages.size()); i > 0 && table.pages[i - 1]; --i) {
      table.pages[i - 1] = Page();
      table.rows[i - 1] = nullptr;
    }
  }
}

void SequenceState::start_behind(std::int64_t pages) {
  const std::int64_t positions = pages * kPagePositions;
  FERRY_CHECK(reserved_ == 0 && positions < capacity_,
              "a state of {} positions begins behind {}",
              capacity_,
              positions);
  length_ = static_cast<int>(positions);
  for (Table& table : tables_) {
    table.pages.clear();
    table.pages.resize(static_cast<std::size_t>(pages));
    std::ranges::fill(table.rows, nullptr);
  }
}

void SequenceState::set_fixed(std::span<const std::byte> bytes) {
  FERRY_CHECK(bytes.size() == fixed_bytes(), "{} fixed bytes, not {}", bytes.size(), fixed_bytes());
  std::ranges::copy(bytes, all_fixed(fixed_));
}

void SequenceState::replace(int page_class, std::int64_t index, Page page) {
  Table& table = tables_[static_cast<std::size_t>(page_class)];
  const auto i = static_cast<std::size_t>(index);
  FERRY_CHECK((index + 1) * kPagePositions <= length_ && page,
              "page {} of a state of {} positions is not full",
              index,
              length_);
  table.rows[i] = page.data();
  table.pages[i] = std::move(page);
}

std::size_t SequenceState::held_bytes() const {
  const auto classes = pool_->layout().classes();
  std::size_t bytes = length_ + reserved_ > 0 ? copies_.size() : 0;
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    for (const Page& page : tables_[c].pages)
      if (page) bytes += classes[c].page_bytes();
  }
  return bytes;
}

}  // namespace ferry
