// What the tensor cores' products of bf16 do at most on a device, for benchmarks: nothing but such
// products of registers.
#pragma once

#include "ferry/kernels/gpu/thread.h"

namespace ferry::gpu {

struct ProductPeak {
  static constexpr int kThreads = 256;
  static constexpr int kChains = 8;  ///< sums of a warp at once, which wait for none but themselves

  float* out = nullptr;  ///< [blocks * kThreads], what nobody reads
  int rounds = 0;

  static constexpr double operations(int blocks, int rounds) {
    constexpr int kWarps = kThreads / kWarpThreads;
    return 2.0 * 16 * 8 * 16 * kChains * rounds * blocks * kWarps;
  }

  template <class Thread>
  FERRY_GPU void operator()(Thread& t) const {
    constexpr std::uint32_t kOnes = 0x3f803f80;
    const MatrixWords a{{kOnes, kOnes, kOnes, kOnes}};
    float sums[kChains][4]{};
    for (int round = 0; round < rounds; ++round) {
      FERRY_GPU_UNROLL
      for (int i = 0; i < kChains; ++i) t.multiply(sums[i], a, kOnes, kOnes);
    }
    float all = 0;
    FERRY_GPU_UNROLL
    for (int i = 0; i < kChains; ++i) all += sums[i][0];
    t.store(out + t.block() * kThreads + t.thread(), all);
  }
};

}  // namespace ferry::gpu
