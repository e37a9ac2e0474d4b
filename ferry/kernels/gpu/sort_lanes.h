// Numbers of a warp's lanes, in order.
#pragma once

#include "ferry/kernels/gpu/thread.h"

namespace ferry::gpu {

/// The lanes' numbers, of which lane i gets the i-th smallest. By all threads of a warp.
template <class Thread>
FERRY_GPU std::uint32_t sort_lanes(Thread& t, std::uint32_t own) {
  // Runs of 2, 4, ... lanes are sorted, every other one falling, so that two make one that rises
  // and falls; halving merges it.
  for (int run = 2; run <= kWarpThreads; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      const std::uint32_t other = t.shuffle_xor(own, distance);
      const bool rises = (t.lane() & run) == 0;
      const bool is_lower = (t.lane() & distance) == 0;
      const bool takes_smaller = rises == is_lower;
      if ((other < own) == takes_smaller) own = other;
    }
  }
  return own;
}

}  // namespace ferry::gpu
