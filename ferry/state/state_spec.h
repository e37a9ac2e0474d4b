// What one layer keeps of a sequence from one step to the next. Mixers say it; pages are made of it
// and the batcher counts it.
#pragma once

#include <cstddef>

#include "ferry/state/attention_span.h"

namespace ferry {

/// Of each position that `span` still shows to a later query: `streams` rows of `row_bytes` bytes.
/// And beside them, of the sequence so far, `fixed_bytes`: as they count, and as a step writes them
/// (SequenceState::next_fixed). A layer may keep either, both or nothing.
struct StateSpec {
  int streams = 0;
  std::size_t row_bytes = 0;
  AttentionSpan span;
  std::size_t fixed_bytes = 0;

  bool operator==(const StateSpec&) const = default;
};

}  // namespace ferry
