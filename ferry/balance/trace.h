// Traces: what the experts had to do in each of many steps, recorded or made up.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "ferry/expert_load.h"

namespace ferry {

using Trace = std::vector<ExpertLoad>;  // [step]

enum class TraceKind {
  zipf,      // popularity falls as 1/rank^exponent and stays
  drifting,  // the same, passing from one order of the experts to another all the time
  bursty,    // the same; now and then a few experts are ten times as popular for a while
  topics     // the same; always some experts are popular together, in a few sets that come back
};

/// Throws ConfigError that lists the names for an unknown one.
TraceKind parse_trace_kind(std::string_view name);
inline constexpr std::string_view kTraceKinds = "zipf, drifting, bursty, topics";

struct TraceOptions {
  TraceKind kind = TraceKind::zipf;
  int steps = 400;
  int layers = 4;
  int experts = 256;
  int rows = 32768;  // (token, expert) pairs in a step, over all ranks
  double exponent = 1.0;
  std::uint64_t seed = 1;
};

/// Deterministic: the same options give the same trace. Counts have the noise of a sample.
/// Throws ConfigError for sizes that are not positive or would not fit into memory.
Trace make_trace(const TraceOptions& options);

}  // namespace ferry
