#include "ferry/runtime/backend_trial.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "ferry/core/error.h"
#include "ferry/core/shared_array.h"
#include "ferry/core/threads.h"
#include "ferry/model/sparse_layers.h"
#include "ferry/runtime/core_map.h"
#include "ferry/transport/track.h"

namespace ferry {

namespace {

/// What rank 0, which may be a process of its own, tells the process that started it.
struct ToldChoice {
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  DeepepMode mode = DeepepMode::low_latency;
  std::array<char, 512> why = {};  // ends with a 0
};

void tell(const BackendChoice& choice, ToldChoice& told) {
  told.backend = choice.backend;
  told.mode = choice.mode;
  std::memcpy(told.why.data(), choice.why.data(), std::min(choice.why.size(), told.why.size() - 1));
}

}  // namespace

BackendChoice try_backends(const ModelOptions& options,
                           const ModelConfig& config,
                           DType type,
                           int slots_per_rank,
                           const BackendSituation& situation) {
  const DecoderOptions& asked = options.decoder;
  if (!leaves_choice(asked.backend, asked.deepep_mode) || situation.ranks == 1)
    return choose_backend(asked.backend, asked.deepep_mode, situation);
  DecoderOptions named = asked;
  named.backend = MoeA2ABackend::pplx;  // any: what is tried takes its place
  const SharedArray<ToldChoice> told(1);
  const int status = run_bound_ranks(options.launch, [&](Transport& group) {
    ThreadPool pool(options.threads);
    const int slices = asked.expert_slices;
    std::optional<TrackTransport> track;
    if (slices > 1) track.emplace(group, slices, asked.timeout);
    Transport& transport = track ? *track : group;
    const DispatcherOptions shape = expert_exchange(
        config, named, type, slots_per_rank, {.member = group.rank() % slices, .tp = slices});
    const BackendChoice choice =
        measure_backend(asked.backend, asked.deepep_mode, situation, shape, transport, pool);
    if (group.rank() == 0 || options.launch.world) tell(choice, told[0]);
    return 0;
  });
  if (status != 0) fail<Error>("trying backends: a rank failed; its reason is above");
  return {told[0].backend, told[0].mode, told[0].why.data()};
}

}  // namespace ferry
