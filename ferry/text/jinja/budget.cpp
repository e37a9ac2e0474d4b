#include "ferry/text/jinja/budget.h"

#include <fmt/core.h>

namespace ferry {

namespace {

// What a step is worth, so that memory is bounded with time: bytes of text, parts of an item.
constexpr std::size_t kBytesPerStep = 16;
constexpr std::size_t kStepsPerItem = 4;

}  // namespace

void JinjaBudget::spend(std::size_t steps) {
  if (steps > steps_)
    throw JinjaFailure("takes too long: over the limit of steps for one rendering");
  steps_ -= steps;
}

void JinjaBudget::spend_text(std::size_t bytes) {
  if (bytes > max_text_) {
    throw JinjaFailure(fmt::format("makes a text of over {} bytes, which is the limit", max_text_));
  }
  spend(1 + bytes / kBytesPerStep);
}

void JinjaBudget::spend_items(std::size_t items) { spend(1 + items * kStepsPerItem); }

}  // namespace ferry
