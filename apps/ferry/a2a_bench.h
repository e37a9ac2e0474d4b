// The measurement behind `ferry bench a2a`: one shape on one transport.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "apps/ferry/bench_support.h"
#include "ferry/core/types.h"
#include "ferry/moe/dispatcher.h"

namespace ferry {

struct A2aCase {
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  std::string transport = "inproc";
  int ranks = 2;
  int threads = 1;  ///< per rank
  int tokens = 1;   ///< per rank
  int hidden = 0;
  int experts = 0;
  int topk = 0;
  BenchRouting routing = BenchRouting::uniform;
  DType dispatch_wire = DType::bf16;
  DType combine_wire = DType::bf16;
  double seconds = 1;  ///< about how long to measure
};

/// Microseconds of one iteration on its slowest rank.
struct A2aIteration {
  double dispatch = 0, consumer = 0, combine = 0, total = 0;
  double floor_dispatch = 0, floor_combine = 0;
  double classic_dispatch = 0, classic_combine = 0;
};

struct A2aResult {
  std::vector<A2aIteration> iterations;
  std::uint64_t bytes_dispatch = 0, bytes_combine = 0;  ///< of one rank and exchange: a row for
                                                        ///< each (token, expert)
  std::uint64_t wire_bytes = 0;  ///< what crossed between ranks, both ways, of rank 0
};

/// Verifies the data, then measures. Throws when a row is wrong.
A2aResult measure_a2a(const A2aCase& a2a);

}  // namespace ferry
