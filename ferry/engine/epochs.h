// How an engine's ranks come and go while it runs (docs/design.md, "Membership"): who makes the
// next epoch, and what the engine needs of it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/engine/step_record.h"
#include "ferry/model/decoder.h"
#include "ferry/transport.h"

namespace ferry {

/// One membership of the ranks, as the engine of one of them sees it.
struct Epoch {
  std::uint64_t number = 0;
  Decoder* decoder = nullptr;
  Transport* transport = nullptr;
  /// [R]: the rank that each rank of this epoch had in the one that was handed out before; -1: it
  /// is new. Of account on rank 0.
  std::vector<Rank> from = {};
  std::size_t lost =
      0;  ///< members of that one that are in this one no more, though they should be
};

/// How an epoch ended for a rank.
struct EpochEnd {
  RankSet gone;                              ///< ranks that it knows to be gone
  std::optional<TransportError> error = {};  ///< what ended it; none: all agreed to
};

/// One rank's way from epoch to epoch. Threads: the engine's.
class Epochs {
 public:
  virtual ~Epochs() = default;

  /// Rank 0, before every step: whether ranks shall come or go now. Cheap. `gone`: ranks that the
  /// others go on without.
  virtual bool wants_next(const RankSet& gone) = 0;

  /// Collective over all that will be members: ends what the last epoch handed out, and comes back
  /// with the next one; nothing where it takes place without this rank. Rank 0 stays rank 0. Throws
  /// where there is no way on.
  virtual std::optional<Epoch> next(const EpochEnd& end) = 0;
};

}  // namespace ferry
