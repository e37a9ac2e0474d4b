#include "ferry/model/weights.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "ferry/model/head_share.h"
#include "ferry/model/packer.h"

namespace ferry {

namespace {

/// Bytes of a product's biases, one for each column of its panels.
std::size_t bias_bytes(std::int64_t panels) {
  return static_cast<std::size_t>(panels * kPanelColumns) * sizeof(float);
}

/// Bytes of the checkpoint's tensors that are wanted, as often as they are wanted.
template <class Wanted>
std::uint64_t tensor_bytes(const Checkpoint& checkpoint, const Wanted& wanted) {
  std::uint64_t bytes = 0;
  for_each_tensor(unstacked(checkpoint.config()), [&](const TensorSpec& spec) {
    const std::uint64_t times = wanted(spec);
    if (times > 0) bytes += times * checkpoint.stored_bytes(spec);
  });
  return bytes;
}

void load_latent_attention(Packer& packer,
                           const ModelConfig& config,
                           const TensorNames& names,
                           DenseWeights::Layer& layer) {
  const LatentConfig& latent = config.latent;
  const std::int64_t hidden = config.hidden;
  const std::int64_t q = std::int64_t{config.heads} * config.head_dim;
  const std::int64_t row = latent.rank + config.rope.dim;
  const HeadRange own = latent_heads(config.heads, packer.member());
  const auto down_panels = latent_down_panels(config, own);
  if (latent.query_rank > 0) {
    layer.qkv = packer.matrix(
        {{names.query_down, latent.query_rank}, {names.latent_down, row}}, hidden, {}, down_panels);
    layer.query_norm = packer.vector({{names.query_down_norm, latent.query_rank}});
    layer.query_up = packer.matrix(
        {{names.query_up, q}}, latent.query_rank, {}, latent_query_panels(config, own));
  } else {
    layer.qkv =
        packer.matrix({{names.q_weight, q}, {names.latent_down, row}}, hidden, {}, down_panels);
  }
  layer.key_norm = packer.vector({{names.latent_norm, latent.rank}});
  std::tie(layer.head_keys, layer.head_values) =
      packer.latent_head_matrices(names.latent_up, config.heads, latent);
  layer.output =
      packer.shared_out({{names.o_weight, hidden}}, std::int64_t{config.heads} * latent.value_dim);
}

void load_attention(Packer& packer,
                    const ModelConfig& config,
                    const TensorNames& names,
                    DenseWeights::Layer& layer) {
  const std::int64_t hidden = config.hidden;
  const std::int64_t head_dim = config.head_dim;
  const std::int64_t q = config.heads * head_dim;
  const std::int64_t kv = config.kv_heads * head_dim;
  const auto qkv = {
      std::pair{names.q_weight, q}, std::pair{names.k_weight, kv}, std::pair{names.v_weight, kv}};
  if (config.qk_norm == QkNorm::whole) {
    layer.qkv = packer.shared_out(qkv, hidden);
  } else {
    const HeadShare own = head_share(config.heads, config.kv_heads, packer.member());
    layer.qkv = packer.matrix(
        qkv, hidden, {}, head_panels(own, config.heads, config.kv_heads, config.head_dim));
  }
  layer.output = packer.shared_out({{names.o_weight, hidden}}, q);
  if (config.attention_bias)
    layer.qkv_bias = packer.vector({{names.q_bias, q}, {names.k_bias, kv}, {names.v_bias, kv}});
  if (config.output_bias) layer.output_bias = packer.vector({{names.o_bias, hidden}});
  if (config.sinks) layer.sinks = packer.vector({{names.sinks, config.heads}});
  if (config.qk_norm_weights()) {
    const bool whole = config.qk_norm == QkNorm::whole;
    layer.query_norm = packer.vector({{names.q_norm, whole ? q : head_dim}});
    layer.key_norm = packer.vector({{names.k_norm, whole ? kv : head_dim}});
  }
}

DenseWeights::Layer load_layer(Packer& packer,
                               const ModelConfig& config,
                               const TensorNames& names,
                               bool sparse) {
  const std::int64_t hidden = config.hidden;
  DenseWeights::Layer layer;
  layer.attention_norm = packer.vector({{names.attention_norm, hidden}});
  if (config.latent.rank > 0) {
    load_latent_attention(packer, config, names, layer);
  } else {
    load_attention(packer, config, names, layer);
  }
  layer.ffn_norm = packer.vector({{names.ffn_norm, hidden}});
  if (!sparse) {
    layer.ffn =
        packer.ffn({names.dense_gate, names.dense_up, names.dense_down}, config.dense_inter);
    return layer;
  }
  // Routing and its weights stay f32 whatever the experts are held in.
  layer.router = packer.matrix({{names.router, config.moe.experts}}, hidden, WeightType::f32);
  if (config.moe.router_bias)
    layer.router_bias = packer.vector({{names.router_bias, config.moe.experts}});
  if (config.moe.selection_bias)
    layer.selection_bias = packer.vector({{names.selection_bias, config.moe.experts}});
  if (config.moe.shared_inter > 0) {
    layer.shared = packer.ffn({names.shared_gate, names.shared_up, names.shared_down},
                              config.moe.shared_inter);
  }
  if (config.moe.shared_gate)
    layer.shared_gate = packer.matrix({{names.shared_scale, 1}}, hidden, WeightType::f32);
  return layer;
}

/// Fills the slots of one sparse layer that hold an expert.
void load_slots(Packer& packer,
                const TensorNames& names,
                const FfnLayout& layout,
                Rank rank,
                int layer_idx,
                ExpertWeights::Layer& layer) {
  const int slots = layer.placement.slots_per_rank();
  const SlotId first = rank * slots;
  layer.slots.assign(static_cast<std::size_t>(slots), layout.view(nullptr, nullptr));
  const auto holds = [&](int slot) { return layer.placement.expert_of(first + slot) >= 0; };
  std::size_t filled = 0;
  for (int slot = 0; slot < slots; ++slot) filled += holds(slot) ? 1 : 0;
  const FfnNames of_expert{.gate = names.expert_gate,
                           .up = names.expert_up,
                           .down = names.expert_down,
                           .gate_bias = names.expert_gate_bias,
                           .up_bias = names.expert_up_bias,
                           .down_bias = names.expert_down_bias};
  // Panels are multiples of 64 bytes, so every part is aligned as kernels want it.
  const std::size_t block_bytes = expert_block_bytes(layout.view(nullptr, nullptr));
  layer.memory = Buffer(filled * block_bytes);
  std::byte* next = layer.memory.data();
  for (int slot = 0; slot < slots; ++slot) {
    if (!holds(slot)) continue;
    std::byte* block = std::exchange(next, next + block_bytes);
    std::byte* down = block + layout.gate_up_bytes();
    packer.at(layer_idx, layer.placement.expert_of(first + slot));
    packer.ffn(of_expert, layout, block, down);
    if (layout.biased) {
      packer.ffn_biases(of_expert, layout, reinterpret_cast<float*>(down + layout.down_bytes()));
    }
    GatedFfnWeights& view = layer.slots[static_cast<std::size_t>(slot)];
    view = at_block(view, block);
  }
}

}  // namespace

std::size_t expert_block_bytes(const GatedFfnWeights& w) {
  const std::int64_t gate_up = w.gate_up.gated_panels();
  const std::int64_t down = w.down.panels();
  return w.gate_up.panel_bytes() * static_cast<std::size_t>(gate_up) +
         w.down.panel_bytes() * static_cast<std::size_t>(down) +
         (w.biased ? bias_bytes(gate_up + down) : 0);
}

GatedFfnWeights at_block(GatedFfnWeights w, const std::byte* block) {
  const auto next = [&](std::size_t bytes) {
    return block == nullptr ? nullptr : std::exchange(block, block + bytes);
  };
  const std::int64_t gate_up = w.gate_up.gated_panels();
  const std::int64_t down = w.down.panels();
  w.gate_up.data = next(w.gate_up.panel_bytes() * static_cast<std::size_t>(gate_up));
  w.down.data = next(w.down.panel_bytes() * static_cast<std::size_t>(down));
  if (!w.biased) return w;
  w.gate_up_bias = reinterpret_cast<const float*>(next(bias_bytes(gate_up)));
  w.down_bias = reinterpret_cast<const float*>(next(bias_bytes(down)));
  return w;
}

WeightChoice choose_weights(const Checkpoint& checkpoint, std::optional<WeightType> wanted) {
  if (wanted) return {.type = *wanted};
  if (const StoredFormat* format = checkpoint.config().stored_format.get()) {
    // What no type holds as it is becomes elements: another quantised type would round again.
    if (const auto held = format->held()) return {.type = *held, .plain_stays = true};
  }
  return {.type = checkpoint.weight_type() == DType::bf16 ? WeightType::bf16 : WeightType::f32};
}

DenseWeights load_dense_weights(const Checkpoint& checkpoint,
                                const WeightChoice& choice,
                                ThreadPool& pool,
                                const LoadProgress& progress,
                                const GroupMember& member) {
  const ModelConfig& config = checkpoint.config();
  const TensorNames& names = checkpoint.names();
  std::uint64_t total =
      tensor_bytes(checkpoint, [](const TensorSpec& spec) { return spec.expert < 0; });
  if (config.tied_embeddings) {  // read twice: as rows and as the head
    total += tensor_bytes(
        checkpoint, [](const TensorSpec& spec) { return spec.role == TensorRole::embedding; });
  }
  Packer packer(checkpoint, choice, pool, progress, total, member);

  DenseWeights weights;
  weights.member = member;
  weights.dtype = activation_type(choice.type);
  weights.embedding = packer.rows(names.embedding, config.vocab, config.hidden);
  for (int layer = 0; layer < config.layers; ++layer) {
    packer.at(layer);
    weights.layers.push_back(load_layer(packer, config, names, config.sparse(layer)));
  }
  packer.at(-1);
  weights.final_norm = packer.vector({{names.final_norm, config.hidden}});
  weights.head = packer.shared_out(
      {{config.tied_embeddings ? names.embedding : names.lm_head, config.vocab}}, config.hidden);
  return weights;
}

ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertPlacement& placement,
                                  Rank rank,
                                  ThreadPool& pool,
                                  const LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  FERRY_CHECK(placement.layers() == config.layers &&
                  (config.sparse_layers() == 0 || placement.experts() == config.moe.experts),
              "a placement of {} layers and {} experts for a model of {} and {}",
              placement.layers(),
              placement.experts(),
              config.layers,
              config.moe.experts);
  const FfnLayout layout{choice.type, config.hidden, config.moe.inter, config.moe.expert_bias};
  ExpertWeights weights;
  for (int layer = 0; layer < config.layers; ++layer) {
    weights.layers.push_back(
        {config.sparse(layer) ? placement.layer(layer) : Placement::identity(1, placement.ranks()),
         {},
         {}});
  }
  const auto here = [&](const TensorSpec& spec) -> std::uint64_t {
    if (spec.expert < 0) return 0;
    const Placement& map = weights.layers[static_cast<std::size_t>(spec.layer)].placement;
    const auto replicas = map.replicas(spec.expert);
    return static_cast<std::uint64_t>(
        std::ranges::count_if(replicas, [&](SlotId slot) { return map.rank_of(slot) == rank; }));
  };
  Packer packer(checkpoint, choice, pool, progress, tensor_bytes(checkpoint, here));
  for (int layer = 0; layer < config.layers; ++layer) {
    if (config.sparse(layer)) {
      load_slots(packer,
                 checkpoint.names(),
                 layout,
                 rank,
                 layer,
                 weights.layers[static_cast<std::size_t>(layer)]);
    }
  }
  return weights;
}

ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  Rank rank,
                                  int ranks,
                                  ThreadPool& pool,
                                  const LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  const int experts = config.sparse_layers() > 0 ? config.moe.experts : 1;
  return load_expert_weights(checkpoint,
                             choice,
                             ExpertPlacement::identity(config.layers, experts, ranks),
                             rank,
                             pool,
                             progress);
}

}  // namespace ferry
