// Who knows what: the vector clocks of emulated threads, in a shape that stays small because
// threads of a block mostly know the same.
//
// Every thread of a launch counts a clock of its own, which moves on whenever it gives away what it
// knows (a barrier, a release, a fence). An access happened before another if the thread of the
// second knows at least the clock that the first had in its thread. Launches of one host thread
// come one after the other, so of finished ones their number says it all.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace ferry::testing::gpu {

struct ThreadClock {
  std::uint32_t thread = 0;
  std::uint32_t clock = 0;
};

/// What is known of the threads of one block.
struct BlockClocks {
  std::uint32_t host = 0;    ///< the host thread that launched it
  std::uint32_t number = 0;  ///< of the launch, among those of that host thread; from 1
  std::uint32_t block = 0;
  std::uint32_t all = 0;              ///< of every thread but these:
  std::vector<ThreadClock> but = {};  ///< sorted by thread

  std::uint32_t of(std::uint32_t thread) const;
  void set(std::uint32_t thread, std::uint32_t clock);
};

struct Clocks {
  std::vector<std::uint32_t> hosts;  ///< of each host thread, the last launch that is known whole
  std::vector<BlockClocks> blocks;   ///< of launches after those; sorted by host, number, block

  bool knows_whole(std::uint32_t host, std::uint32_t number) const {
    return host < hosts.size() && hosts[host] >= number;
  }

  const BlockClocks* find(std::uint32_t host, std::uint32_t number, std::uint32_t block) const;
  /// The same to change; there is one afterwards.
  BlockClocks& at(std::uint32_t host, std::uint32_t number, std::uint32_t block);
  void know_whole(std::uint32_t host, std::uint32_t number);
};

/// Never changes, and is shared by all who know the same; null knows nothing.
using ClocksPtr = std::shared_ptr<const Clocks>;

/// Joins clocks, and gives one object to those who join the same two one after the other.
class ClockJoiner {
 public:
  /// `into` = what both know.
  void join(ClocksPtr& into, const ClocksPtr& other);

 private:
  ClocksPtr a_, b_, joined_;
};

}  // namespace ferry::testing::gpu
