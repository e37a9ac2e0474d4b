// Moves: what must travel so that slots which hold one placement come to hold another.
#pragma once

#include <vector>

#include "ferry/expert_placement.h"
#include "ferry/export.h"

namespace ferry {

/// One expert's weights from a rank to another. Local indices count slots within a rank.
struct Transfer {
  ExpertId expert = -1;
  Rank peer = -1;
  int local = 0;       // in this rank: read from (send) or write to (receive)
  int peer_local = 0;  // in the peer
};

/// One expert's weights between slots of one rank.
struct LocalCopy {
  ExpertId expert = -1;
  int from = 0;
  int to = 0;
};

/// The moves of a rank in one layer. Sends, receives and copies read what the OLD placement holds,
/// so what they write must be staged until all reads are done. Duplicates come last: they copy
/// within the new placement, where an expert lies twice on a rank, so that it travels once.
struct RankMoves {
  std::vector<Transfer> sends;     // by peer, then expert: the order of the peer's receives
  std::vector<Transfer> receives;  // by peer, then expert
  std::vector<LocalCopy> copies;
  std::vector<LocalCopy> duplicates;
};

struct LayerMoves {
  /// [P] For each slot of the new placement the slot of the old one that its content comes from
  /// (itself where it stays), -1 where the new placement leaves it empty.
  std::vector<SlotId> source;
  std::vector<RankMoves> ranks;  // [R]

  /// Experts that travel between ranks.
  int num_transfers() const;
};

/// Sources: the destination's own rank, then ranks of its node, then others; among equals the one
/// that sends the least, then the lowest slot. Deterministic. Both placements have the same ranks
/// and experts; slots per rank may differ (redundant experts added or taken away).
FERRY_API LayerMoves make_moves(const Placement& before, const Placement& after, int nodes = 1);

}  // namespace ferry
