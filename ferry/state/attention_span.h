// Which positions of its own sequence a query sees. It decides what attention reads, and so what a
// sequence's state must still hold.
#pragma once

#include <cstdint>

namespace ferry {

/// Which of the positions up to its own a query sees.
struct AttentionSpan {
  enum class Kind : std::uint8_t {
    full,    ///< all
    window,  ///< the last `width`, its own included
    block,   ///< those in its own block of `width` positions
  };

  Kind kind = Kind::full;
  int width = 0;

  /// The first position that the query at `position` sees. It never falls as positions rise, so
  /// what the next query does not see, no later one does.
  std::int64_t first(std::int64_t position) const;

  bool operator==(const AttentionSpan&) const = default;
};

}  // namespace ferry
