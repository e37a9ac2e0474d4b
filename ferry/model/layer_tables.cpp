#include "ferry/model/layer_tables.h"

#include <utility>

#include "ferry/model/family.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

namespace {

void read_dense(const ModelConfig& config, TensorTable& table, DenseWeights::Layer& to) {
  const TensorNames& names = family_of(config).names;
  table.ffn(to.ffn,
            {.names = {names.dense_gate, names.dense_up, names.dense_down},
             .hidden = config.hidden,
             .inter = config.dense_inter});
}

void read_router(const ModelConfig& config, TensorTable& table, DenseWeights::Layer& to) {
  const TensorNames& names = family_of(config).names;
  const MoeConfig& moe = config.moe;
  // Routing and its weights stay f32 whatever the experts are held in.
  table.matrix(to.router,
               {{names.router, moe.experts}},
               config.hidden,
               {.role = TensorRole::router, .type = WeightType::f32});
  if (moe.router_bias)
    table.vector(to.router_bias, {{names.router_bias, moe.experts}}, TensorRole::bias);
  if (moe.selection_bias)
    table.vector(to.selection_bias, {{names.selection_bias, moe.experts}}, TensorRole::bias);
}

void read_shared(const ModelConfig& config, TensorTable& table, DenseWeights::Layer& to) {
  const TensorNames& names = family_of(config).names;
  const MoeConfig& moe = config.moe;
  if (moe.shared_inter > 0) {
    table.ffn(to.shared,
              {.names = {names.shared_gate, names.shared_up, names.shared_down},
               .hidden = config.hidden,
               .inter = moe.shared_inter});
  }
  if (moe.shared_gate) {
    table.matrix(
        to.shared_gate, {{names.shared_scale, 1}}, config.hidden, {.type = WeightType::f32});
  }
}

/// Lists tensors instead of packing them.
class Lister final : public TensorTable {
 public:
  Lister(const ModelConfig& config,
         const std::function<void(const TensorSpec&)>& visit,
         int layer,
         int expert = -1)
      : config_(config), visit_(visit), layer_(layer), expert_(expert) {}

  void matrix(OwnedMatrix&,
              const TensorList& tensors,
              std::int64_t k,
              const MatrixPacking& how) override {
    if (how.listed_before) return;
    for (const auto& [pattern, rows] : tensors) add(pattern, {rows, k}, how.role);
  }

  void vector(std::vector<float>&, const TensorList& tensors, TensorRole role) override {
    for (const auto& [pattern, n] : tensors) add(pattern, {n}, role);
  }

  void taps(std::vector<float>&, const TensorRows& tensor, std::int64_t taps) override {
    add(tensor.pattern, {tensor.rows, 1, taps}, TensorRole::matrix);
  }

  void rows(HeldRows&, const TensorRows& tensor, std::int64_t width, TensorRole role) override {
    add(tensor.pattern, {tensor.rows, width}, role);
  }

  void ffn(OwnedFfn&, const FfnPart& part) override {
    const auto& [names, hidden, inter, biased] = part;
    const TensorRole role = expert_ >= 0 ? TensorRole::expert : TensorRole::matrix;
    add(names.gate, {inter, hidden}, role);
    add(names.up, {inter, hidden}, role);
    add(names.down, {hidden, inter}, role);
    if (!biased) return;
    add(names.gate_bias, {inter}, TensorRole::bias);
    add(names.up_bias, {inter}, TensorRole::bias);
    add(names.down_bias, {hidden}, TensorRole::bias);
  }

  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)>) override {
    add(tensor.pattern, {tensor.rows, k}, TensorRole::own_way);
  }

  const GroupMember& member() const override { return alone_; }

  void add(std::string_view pattern, std::vector<std::int64_t> shape, TensorRole role) {
    visit_(
        {tensor_name(config_, pattern, layer_, expert_), std::move(shape), role, layer_, expert_});
  }

 private:
  const ModelConfig& config_;
  const std::function<void(const TensorSpec&)>& visit_;
  const int layer_;
  const int expert_;
  const GroupMember alone_;
};

/// The experts of a layer where all lie in tensors together. Nobody packs those as they are: a
/// loader asks for each expert's, which the checkpoint finds inside.
void list_stacked_experts(const ModelConfig& config, Lister& list) {
  const TensorNames& names = family_of(config).names;
  const MoeConfig& moe = config.moe;
  const std::int64_t hidden = config.hidden;
  const auto add = [&](std::string_view pattern, std::int64_t rows, std::int64_t columns) {
    if (moe.storage != ExpertStorage::rows) std::swap(rows, columns);
    list.add(pattern, {moe.experts, rows, columns}, TensorRole::expert);
  };
  add(names.stacked_gate_up, 2 * moe.inter, hidden);
  add(names.stacked_down, hidden, moe.inter);
  if (!moe.expert_bias) return;
  list.add(names.stacked_gate_up_bias, {moe.experts, 2 * moe.inter}, TensorRole::bias);
  list.add(names.stacked_down_bias, {moe.experts, hidden}, TensorRole::bias);
}

void list_experts(const ModelConfig& config,
                  int layer,
                  const std::function<void(const TensorSpec&)>& visit) {
  if (config.moe.stacked()) {
    Lister list(config, visit, layer);
    return list_stacked_experts(config, list);
  }
  const FfnPart part = expert_part(config);
  for (ExpertId expert = 0; expert < config.moe.experts; ++expert) {
    OwnedFfn nothing;
    Lister(config, visit, layer, expert).ffn(nothing, part);
  }
}

}  // namespace

void read_norm(const ModelConfig& config,
               TensorTable& table,
               std::vector<float>& to,
               const TensorRows& tensor) {
  table.vector(to, {tensor}, TensorRole::norm);
  if (!config.norms_from_one) return;
  for (float& weight : to) weight += 1.0F;
}

void read_embedding(const ModelConfig& config, TensorTable& table, DenseWeights& to) {
  const TensorNames& names = family_of(config).names;
  table.rows(to.embedding, {names.embedding, config.vocab}, config.hidden, TensorRole::embedding);
}

void read_head(const ModelConfig& config, TensorTable& table, DenseWeights& to) {
  const TensorNames& names = family_of(config).names;
  const bool tied = config.tied_embeddings;
  read_norm(config, table, to.final_norm, {names.final_norm, config.hidden});
  table.matrix(to.head,
               {{tied ? names.embedding : names.lm_head, config.vocab}},
               config.hidden,
               {.role = TensorRole::embedding, .shared_out = true, .listed_before = tied});
}

DenseWeights::Layer read_layer(const ModelConfig& config, int layer, TensorTable& table) {
  const TensorNames& names = family_of(config).names;
  DenseWeights::Layer to;
  read_norm(config, table, to.attention_norm, {names.attention_norm, config.hidden});
  to.mixer = mixer_of(config, layer).read(config, layer, names, table);
  read_norm(config, table, to.ffn_norm, {names.ffn_norm, config.hidden});
  if (config.sparse(layer)) {
    read_router(config, table, to);
    read_shared(config, table, to);
  } else {
    read_dense(config, table, to);
  }
  return to;
}

void read_draft(const ModelConfig& config, TensorTable& table, DenseWeights& to) {
  const TensorNames& names = family_of(config).names;
  DenseWeights::Draft& draft = to.draft;
  read_norm(config, table, draft.embedding_norm, {names.draft_embedding_norm, config.hidden});
  read_norm(config, table, draft.hidden_norm, {names.draft_hidden_norm, config.hidden});
  table.matrix(draft.projection,
               {{names.draft_projection, config.hidden}},
               2 * std::int64_t{config.hidden},
               {.shared_out = true});
  read_norm(config, table, draft.final_norm, {names.draft_final_norm, config.hidden});
}

FfnPart expert_part(const ModelConfig& config) {
  const TensorNames& names = family_of(config).names;
  return {.names = {.gate = names.expert_gate,
                    .up = names.expert_up,
                    .down = names.expert_down,
                    .gate_bias = names.expert_gate_bias,
                    .up_bias = names.expert_up_bias,
                    .down_bias = names.expert_down_bias},
          .hidden = config.hidden,
          .inter = config.moe.inter,
          .biased = config.moe.expert_bias};
}

void for_each_tensor(const ModelConfig& config,
                     const std::function<void(const TensorSpec&)>& visit) {
  DenseWeights nothing;
  Lister outside(config, visit, -1);
  read_embedding(config, outside, nothing);
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    Lister list(config, visit, layer);
    read_layer(config, layer, list);
    if (layer >= config.layers) read_draft(config, list, nothing);
    if (config.sparse(layer)) list_experts(config, layer, visit);
  }
  read_head(config, outside, nothing);
}

}  // namespace ferry
