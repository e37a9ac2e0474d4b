// What `ferry bench a2a` measures: one case of its lists, and what came out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/ferry/bench_support.h"
#include "ferry/core/types.h"
#include "ferry/dispatcher.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/wire.h"

namespace ferry {

struct A2aCase {
  std::string backend = "pplx";  ///< as asked for: "auto" too
  std::string mode;              ///< of deepep, as asked for
  std::string chosen;            ///< what an "auto" stands for here
  ExchangeOptions exchange;
  LaunchOptions launch;
  std::string transport = "inproc";  ///< of `launch`, as is
  int ranks = 2;
  int threads = 1;  ///< per rank
  int tokens = 1;   ///< per rank
  int hidden = 0;
  int experts = 0;
  int topk = 0;
  BenchRouting routing = BenchRouting::uniform;
  WireType dispatch_wire = WireType::bf16;
  WireType expert_type = WireType::bf16;  ///< what experts take: the wire's own rows, or bf16
  WireType combine_wire = WireType::bf16;
  int inter = 0;  ///< on a device: inner width of the experts between; 0: none
  WeightType weights = WeightType::bf16;  ///< theirs
  double seconds = 1;                     ///< about how long to measure

  int slots_per_rank() const { return static_cast<int>(ceil_div(experts, ranks)); }

  /// Dispatch, experts and combine are one pipeline: there is no time of each.
  bool fused() const { return exchange.pipeline == ExchangeOptions::Pipeline::tiles; }

  DispatcherOptions dispatcher() const;
};

/// As asked for, whatever it stands for at this size: "pplx", "deepep/low_latency", "auto".
std::string asked_label(const A2aCase& a2a);
/// "pplx", "deepep/low_latency", "auto (pplx)".
std::string backend_label(const A2aCase& a2a);

/// Microseconds of one iteration on one rank.
struct A2aIteration {
  double dispatch = 0, consumer = 0, combine = 0, total = 0;
  double floor_dispatch = 0, floor_combine = 0;
  double classic_dispatch = 0, classic_combine = 0;
  double counts = 0;  ///< of exchanging counts alone
};

/// Bytes of payload of one rank and exchange, averaged over both.
struct A2aBytes {
  double logical_dispatch = 0, logical_combine = 0;  ///< a row for each (token, expert)
  double wire_dispatch = 0, wire_combine = 0;        ///< that crossed between ranks
  double network_dispatch = 0, network_combine = 0;  ///< of that, between hosts
};

/// Of one exchange on average: how long a rank waited for a source, and what came from it.
struct A2aWait {
  double dispatch_us = 0, combine_us = 0;
  double rows = 0;  ///< (token, slot) pairs
};

struct A2aResult {
  std::vector<A2aIteration> slowest;    ///< an iteration's time is that of its slowest rank
  std::vector<A2aIteration> all_ranks;  ///< [ranks][iterations]
  std::vector<A2aWait> waits;           ///< [ranks][sources]
  A2aBytes bytes;
  int hosts = 1;                     ///< as far as ranks share no memory
  std::string baseline = "classic";  ///< "mpi" where MPI did it
};

}  // namespace ferry
