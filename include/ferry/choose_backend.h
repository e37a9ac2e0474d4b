// The choice behind `--moe-a2a-backend auto` and `--deepep-mode auto`: what each row of the table
// would cost on this link, counted in bytes and messages, or what it took when it was tried.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ferry/backend.h"
#include "ferry/dispatcher.h"
#include "ferry/export.h"
#include "ferry/wire.h"

namespace ferry {

/// What a choice depends on; the same on all ranks, so that they choose alike.
struct BackendSituation {
  int ranks = 1;
  int tokens = 1;  ///< of a rank in one exchange
  int hidden = 0;
  int topk = 0;
  WireType dispatch_wire = WireType::bf16;
  WireType combine_wire = WireType::bf16;
  bool load_store = false;            ///< peers' memory can be read (Capabilities)
  bool experts_take_pointers = true;  ///< and are of the dispatch wire's type
  /// Allow rows that sum on each rank first: fewer bytes, but bits that depend on the number of
  /// ranks.
  bool allow_prereduce = false;
};

/// What one exchange costs a rank, in microseconds.
struct FERRY_API BackendCost {
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  DeepepMode mode = DeepepMode::low_latency;
  double us = 0;

  std::string name() const;  ///< "pplx", "deepep normal"
};

struct BackendChoice {
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  DeepepMode mode = DeepepMode::low_latency;
  std::string why;  ///< one line; empty where nothing was left to choose
};

/// The candidates in order of cost. Their fixed figures (memory 10 GB/s, network 1.2 GB/s and 20
/// us, shared memory 1 us a message) rank them; they do not predict a time on a given machine.
FERRY_API std::vector<BackendCost> backend_costs(const BackendSituation& situation);

/// `asked` with every "auto" in it replaced.
FERRY_API BackendChoice choose_backend(MoeA2ABackend asked,
                                       DeepepMode mode,
                                       const BackendSituation& situation);

/// The same by trial: exchanges of every candidate, of one token a rank and of shape.max_tokens
/// (fewer, where their rows exceed 32 MiB), in which experts read each row and write its result
/// once. A round takes what its slowest rank takes, a candidate what a quarter of its rounds are
/// faster than, and the one is chosen that loses least at both sizes. Runs nothing where nothing is
/// left to choose. Collective: all ranks pass the same and get the same. `shape`: the dispatcher to
/// be; of its exchange a fixed format is kept and the rest not read. Throws TransportError.
FERRY_API BackendChoice measure_backend(MoeA2ABackend asked,
                                        DeepepMode mode,
                                        const BackendSituation& situation,
                                        const DispatcherOptions& shape,
                                        Transport& transport,
                                        ThreadPool& pool);

}  // namespace ferry
