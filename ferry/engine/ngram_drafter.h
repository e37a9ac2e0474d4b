// Drafts of the tokens that a sequence will give next, taken from its own text: its newest tokens
// are looked for earlier in it, and what followed them there is the draft (prompt lookup).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/engine/drafts.h"

namespace ferry {

/// Of one sequence. What it says changes no token that the sequence gives, only how many steps that
/// takes. Pure logic; threads: one at a time.
class NgramDrafter {
 public:
  explicit NgramDrafter(const DraftOptions& options);

  /// Up to `most` tokens that may follow `ids`: those behind the place where most of the newest
  /// tokens stand, the latest of such places. Empty where there is none. REQUIRES: `ids` begins
  /// with those of the last call.
  std::vector<std::int32_t> draft(std::span<const std::int32_t> ids, int most);

  /// As DraftLength.
  void learn(int tokens, int right) { length_.learn(tokens, right); }

 private:
  void add_places(std::span<const std::int32_t> ids);
  std::size_t bucket(const std::int32_t* run) const;
  std::int64_t find(std::span<const std::int32_t> ids) const;

  DraftOptions options_;
  DraftLength length_;
  // A chain for each bucket of runs of the shortest length: ends of runs, the latest first; 0: no
  // more.
  std::vector<std::int32_t> latest_;  // [a power of two]
  std::vector<std::int32_t> before_;  // [end]: the one before in its chain
};

}  // namespace ferry
