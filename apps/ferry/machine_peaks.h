// What this machine can do at most, measured, and what that allows a model: the floors that
// benchmarks print beside their times.
#pragma once

#include <cstdint>
#include <optional>

#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/model/config.h"
#include "ferry/model/summary.h"
#include "ferry/wire.h"

namespace ferry {

/// Rates of a number of threads working at once.
struct MachinePeaks {
  double bytes_per_s = 0;       ///< read from memory, as fast as one or four streams a thread do
  double operations_per_s = 0;  ///< of the unit that multiplies with weights of this type
};

/// Takes about a second and 1 GiB of memory. Starts and ends its own threads.
MachinePeaks measure_peaks(int threads, WeightType weights, Numerics numerics = Numerics::exact);

/// What a computation cannot do without.
struct Work {
  double bytes = 0;       ///< weights and cached keys and values, each read once
  double operations = 0;  ///< two for each multiply-add

  double seconds(const MachinePeaks& peaks) const;
  bool memory_bound(const MachinePeaks& peaks) const;
};

/// The part of a step that sets its work.
struct StepShape {
  double tokens = 0;    ///< over all sequences
  double wanted = 0;    ///< tokens whose logits are wanted
  double attended = 0;  ///< positions that the tokens attend to, summed over the tokens
  double cached = 0;    ///< of these, positions that earlier steps wrote: read from memory
  std::optional<WireType> kv_type = {};  ///< of what is read; default: as activations
};

/// The weights of a model as a step reads them.
struct StepWeights {
  HeldBytes bytes;
  DType activations = DType::f32;
};

/// As a checkpoint's are held.
StepWeights step_weights(const Checkpoint& checkpoint, const WeightChoice& choice);

/// Where there are none: matrices of one type, but routers of f32; norms and the like not counted.
StepWeights step_weights(const ModelConfig& config, WeightType type);

/// One step of a whole model; experts as even routing touches them.
Work step_work(const ModelConfig& config, const StepWeights& weights, const StepShape& step);

/// Of a packed matrix with columns of k.
double bytes_per_weight(WeightType type, std::int64_t k);

/// Distinct experts that `tokens` tokens go to under even routing.
double experts_touched(int experts, int topk, double tokens);

/// Prompts of `tokens` tokens for `batch` sequences in one step.
Work prompt_work(const ModelConfig& config, const StepWeights& weights, int tokens, int batch);

/// The mean step of generating `tokens` tokens from nothing for `batch` sequences.
Work decode_work(const ModelConfig& config,
                 const StepWeights& weights,
                 int tokens,
                 int batch,
                 std::optional<WireType> kv_type = {});

}  // namespace ferry
