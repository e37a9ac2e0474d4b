// Writes a checkpoint again with its weights packed: what `ferry pack` does. docs/checkpoints.md,
// "Packed".
#pragma once

#include <filesystem>
#include <optional>

#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/weights.h"

namespace ferry {

/// Writes `source` to the new or empty directory `out` as a rank would hold it with these
/// --weights and --activations; opened, it gives the same bits. At any time no more than a matrix,
/// or an expert's block, is in memory. `progress` may be empty. Throws ConfigError when `out` has
/// files, Error when it cannot be written, ModelError as loading does; then nothing is left behind.
void write_packed(const Checkpoint& source,
                  std::optional<WeightType> wanted,
                  Activations activations,
                  const std::filesystem::path& out,
                  ThreadPool& pool,
                  const LoadProgress& progress);

}  // namespace ferry
