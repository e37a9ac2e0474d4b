#include "ferry/state/attention_span.h"

#include <algorithm>

namespace ferry {

std::int64_t AttentionSpan::first(std::int64_t position) const {
  switch (kind) {
    case Kind::full:
      return 0;
    case Kind::window:
      return std::max<std::int64_t>(0, position - width + 1);
    case Kind::block:
      return position / width * width;
  }
  return 0;
}

}  // namespace ferry
