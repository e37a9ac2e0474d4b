// Where each of some runs of work begins, and which run holds a piece of it.
#pragma once

#include "ferry/kernels/gpu/thread.h"

namespace ferry::gpu {

/// Turns `runs` counts into where each run begins, by one warp; the sum goes behind them.
/// `room(count)` is what a run of `count` takes.
template <class Thread, class Room>
FERRY_GPU void prefix_sums(Thread& t, std::uint32_t* begins, int runs, Room room) {
  std::uint32_t before = 0;
  for (int begin = 0; begin < runs; begin += kWarpThreads) {
    const int run = begin + t.lane();
    const std::uint32_t own = run < runs ? room(t.load(begins + run)) : 0;
    std::uint32_t sum = own;
    for (int lanes = 1; lanes < kWarpThreads; lanes *= 2) {
      const std::uint32_t below = t.shuffle_up(sum, lanes);
      if (t.lane() >= lanes) sum += below;
    }
    if (run < runs) t.store(begins + run, before + sum - own);
    before += t.shuffle(sum, kWarpThreads - 1);
  }
  if (t.lane() == 0) t.store(begins + runs, before);
}

/// The last i with begins[i] <= x. REQUIRES: rising, begins[0] <= x.
template <class Thread>
FERRY_GPU int find_last(Thread& t, const std::uint32_t* begins, int n, std::uint32_t x) {
  int low = 0;
  for (int high = n; high - low > 1;) {
    const int middle = (low + high) / 2;
    (t.load(begins + middle) <= x ? low : high) = middle;
  }
  return low;
}

}  // namespace ferry::gpu
