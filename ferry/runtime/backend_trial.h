// Which backend is fastest, found out on ranks that are launched for it.
#pragma once

#include "ferry/choose_backend.h"
#include "ferry/core/types.h"
#include "ferry/model/config.h"
#include "ferry/runtime/model_options.h"

namespace ferry {

/// measure_backend() for a model whose activations are of `type`, on ranks as options.launch has
/// them: they are started, measure, and end. Starts none where nothing is left to choose.
/// `situation` is that of the model's exchanges. Errors: as run_ranks(), and TransportError.
BackendChoice try_backends(const ModelOptions& options,
                           const ModelConfig& config,
                           DType type,
                           int slots_per_rank,
                           const BackendSituation& situation);

}  // namespace ferry
