#include "ferry/state/sequence_state.h"

#include "ferry/core/error.h"

namespace ferry {

SequenceState::SequenceState(PagePool& pool, int capacity)
    : pool_(&pool), capacity_(capacity), fixed_(pool.layout().fixed_bytes()) {
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
  const auto end = static_cast<std::size_t>(pages_of(length_));
  const auto classes = pool_->layout().classes();
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    Table& table = tables_[c];
    const auto give_back = [&](std::size_t i) {
      table.pages[i] = Page();
      table.rows[i] = nullptr;
    };
    while (table.pages.size() > end) {
      give_back(table.pages.size() - 1);
      table.pages.pop_back();
    }
    const auto needed = static_cast<std::size_t>(first_page(classes[c].span, length_));
    for (std::size_t i = std::min(needed, end); i > 0 && table.pages[i - 1]; --i) give_back(i - 1);
  }
}

std::size_t SequenceState::held_bytes() const {
  const auto classes = pool_->layout().classes();
  std::size_t bytes = length_ + reserved_ > 0 ? fixed_.size() : 0;
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    for (const Page& page : tables_[c].pages)
      if (page) bytes += classes[c].page_bytes();
  }
  return bytes;
}

}  // namespace ferry
