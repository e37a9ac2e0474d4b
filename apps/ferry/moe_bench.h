// The measurement behind `ferry bench moe`: one layer's dispatch, experts and combine.
#pragma once

#include <string>
#include <vector>

#include "apps/ferry/bench_support.h"
#include "apps/ferry/machine_peaks.h"
#include "ferry/core/types.h"
#include "ferry/dispatcher.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

struct MoeCase {
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  LaunchOptions launch;
  std::string transport = "inproc";  ///< of `launch`, as is
  int ranks = 1;
  int threads = 1;  ///< per rank
  int tokens = 1;   ///< per rank
  int hidden = 0;
  int inter = 0;
  int experts = 0;
  int topk = 0;
  BenchRouting routing = BenchRouting::uniform;
  std::vector<ExpertId> placement;  ///< [P] slot -> expert; empty = identity
  bool nearest = false;             ///< tokens go to the nearest replica
  std::vector<float> shares;        ///< [P] that replicas take; empty = equal parts
  WeightType weights = WeightType::bf16;
  Numerics numerics = Numerics::exact;
  double seconds = 1;  ///< about how long to measure
};

struct MoeResult {
  std::vector<double> times_us;     ///< of each iteration, on its slowest rank
  std::vector<double> floors_us;    ///< of each iteration: what its slowest rank's share allows
  std::vector<double> rank_us;      ///< [ranks] median of each rank's own times
  std::vector<double> rank_cpu_us;  ///< [ranks] mean CPU time of an iteration, over its threads
  std::vector<double> expert_rows;  ///< [experts] mean of an iteration, over all ranks
  Work work;                        ///< mean of an iteration, over all ranks
  bool memory_bound = false;
};

/// Experts' weights come from memory: as many layers take turns as fill 2 GiB, from 2 to 64.
/// Verifies a token of each rank against its experts applied one by one, then measures; routing is
/// fresh every iteration. `peaks`: of all threads of all ranks together. Under a launcher only rank
/// 0 gets times; all get expert_rows.
MoeResult measure_moe(const MoeCase& moe, const MachinePeaks& peaks);

}  // namespace ferry
