// The turn: launches of several host threads run one at a time and hand it on, so that what the
// emulator keeps needs no locks of its own, and their order is drawn rather than left to the
// machine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <vector>

namespace ferry::testing::gpu {

class Turn {
 public:
  explicit Turn(std::uint64_t seed) : draw_(seed) {}

  void take();
  void give();
  /// Lets one of those who wait, drawn at random, go first; false where nobody waits.
  bool pass();

 private:
  struct Waiter {
    std::condition_variable woken;
    bool called = false;
  };

  std::mutex mutex_;
  bool taken_ = false;
  std::vector<Waiter*> waiting_;
  std::atomic<int> num_waiting_ = 0;
  std::minstd_rand draw_;
};

class HasTurn {
 public:
  explicit HasTurn(Turn& turn) : turn_(turn) { turn_.take(); }

  ~HasTurn() { turn_.give(); }

  HasTurn(const HasTurn&) = delete;
  HasTurn& operator=(const HasTurn&) = delete;

 private:
  Turn& turn_;
};

}  // namespace ferry::testing::gpu
