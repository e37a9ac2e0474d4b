#include "ferry/model/mixers/mixer.h"

#include <array>

#include "ferry/core/error.h"
#include "ferry/model/mixers/attention.h"
#include "ferry/model/mixers/gated_delta_net.h"
#include "ferry/model/mixers/latent_attention.h"
#include "ferry/model/mixers/short_conv.h"

namespace ferry {

namespace {

/// All kinds there are.
const std::array kKinds = {
    &attention_kind, &latent_attention_kind, &gated_delta_net_kind, &short_conv_kind};

}  // namespace

void find_runs(const MixerStep& step, std::vector<StepRun>& runs) {
  runs.clear();
  for (std::int64_t t = 0; t < std::ssize(step.tokens); ++t) {
    SequenceState* state = step.tokens[static_cast<std::size_t>(t)].state;
    if (runs.empty() || runs.back().state != state) runs.push_back({.state = state, .first = t});
    ++runs.back().tokens;
  }
}

void check_room(const MixerStep& step, int max_tokens) {
  FERRY_CHECK(std::ssize(step.tokens) <= max_tokens,
              "{} tokens in a step, room for {}",
              step.tokens.size(),
              max_tokens);
}

const MixerKind& mixer_of(const ModelConfig& config, int layer) {
  const std::string_view name = config.layer_attention[static_cast<std::size_t>(layer)].mixer;
  for (const auto& kind : kKinds)
    if (kind().name() == name) return kind();
  fail<BrokenContract>("layer {}: no mixer is called \"{}\"", layer, name);
}

void check_mixers(const ModelConfig& config, const std::string& file) {
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    const MixerKind& kind = mixer_of(config, layer);
    const std::string_view what = kind.unsupported(config, layer);
    if (what.empty()) continue;
    fail<ModelError>("{}: layer {}: {} does not support {}", file, layer, kind.name(), what);
  }
}

std::vector<StateSpec> state_specs(const ModelConfig& config,
                                   WireType kv_type,
                                   const GroupMember& member,
                                   DType activations) {
  std::vector<StateSpec> specs;
  for (int layer = 0; layer < config.all_layers(); ++layer)
    specs.push_back(mixer_of(config, layer).state(config, layer, kv_type, member));
  if (config.draft_layers > 0) specs.push_back(hidden_state_spec(config, activations));
  return specs;
}

/// The next step's first token reads that of the token before it, so two positions suffice.
StateSpec hidden_state_spec(const ModelConfig& config, DType activations) {
  return {.streams = 1,
          .row_bytes = static_cast<std::size_t>(config.hidden) * dtype_bytes(activations),
          .span = {.kind = AttentionSpan::Kind::window, .width = 2}};
}

}  // namespace ferry
