// A checkpoint written again with quantised matrices: what `ferry quantize` does.
// docs/checkpoints.md has the format.
#pragma once

#include <cstdint>
#include <filesystem>

#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/weights.h"

namespace ferry {

struct QuantizeOptions {
  WeightType type = WeightType::int8;
  std::uint64_t max_shard_bytes = 2'000'000'000;
};

/// Writes `source` to the new or empty directory `out`: experts, projections, dense blocks and the
/// head as codes and scales that loading with --weights would have made, everything else, and all
/// other files, as they are. Memory: one matrix. Throws ConfigError for a type that is not
/// quantised or a directory with files, Error when the system refuses.
void write_quantized(const Checkpoint& source,
                     const QuantizeOptions& options,
                     const std::filesystem::path& out,
                     ThreadPool& pool,
                     const LoadProgress& progress);

}  // namespace ferry
