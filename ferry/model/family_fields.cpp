#include "ferry/model/family_fields.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

// As kMaxWidth: limits that only a damaged file passes.
constexpr int kMaxExperts = 1 << 16;

}  // namespace

int size_of_all_layers(const ConfigReader& in, const char* key, int max) {
  if (!in.has(key) || !in.value(key).is_array()) return in.size(key, max);
  const std::vector<std::int32_t> all = in.integers(key, 1, max);
  const bool same =
      !all.empty() && std::ranges::adjacent_find(all, std::not_equal_to{}) == all.end();
  if (!same) in.refuse(key, "the same number for every layer (others are not supported)");
  return all.front();
}

void read_experts(const ConfigReader& in, const ExpertFields& names, ModelConfig& config) {
  // transformers takes any of these names, and may write another than the family was published
  // with.
  const char* key = names.experts;
  for (const char* other : {"num_local_experts", "n_routed_experts", "num_experts"})
    if (!in.states(names.experts) && in.states(other)) key = other;
  MoeConfig& moe = config.moe;
  moe.experts = size_of_all_layers(in, key, kMaxExperts);
  const char* topk = in.states("num_experts_per_tok") ? "num_experts_per_tok" : names.topk;
  moe.topk = size_of_all_layers(in, topk, kMaxExperts);
  if (moe.topk > moe.experts) in.refuse(topk, fmt::format("at most {} = {}", key, moe.experts));
  moe.inter = size_of_all_layers(in, names.inter, kMaxWidth);
  moe.router.experts = moe.experts;
  moe.router.topk = moe.topk;
}

void write_experts(const ModelConfig& config, const ExpertFields& names, json& fields) {
  fields[names.experts] = config.moe.experts;
  fields[names.topk] = config.moe.topk;
  fields[names.inter] = config.moe.inter;
}

void read_sparse_step(const ConfigReader& in, ModelConfig& config) {
  const int step = in.size_or("decoder_sparse_step", kMaxWidth, 1);
  const auto dense = in.integers("mlp_only_layers", 0, config.layers - 1);
  for (int i = 0; i < config.layers; ++i) {
    const bool sparse =
        (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    config.layer_kinds[static_cast<std::size_t>(i)] = sparse ? LayerKind::sparse : LayerKind::dense;
  }
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size", kMaxWidth);
}

void write_sparse_step(const ModelConfig& config, json& fields) {
  fields["decoder_sparse_step"] = 1;
  fields["mlp_only_layers"] = json::array();
  fields["intermediate_size"] = config.dense_inter;
}

void read_dense_first(const ConfigReader& in, ModelConfig& config) {
  const auto dense = in.integers("first_k_dense_replace", 0, kMaxWidth);
  if (dense.empty() || dense.front() == 0) return;
  std::fill_n(config.layer_kinds.begin(), std::min(dense.front(), config.layers), LayerKind::dense);
  config.dense_inter = in.size("intermediate_size", kMaxWidth);
}

void write_dense_first(const ModelConfig& config, json& fields) {
  fields["first_k_dense_replace"] = config.layers > 1 ? 1 : 0;
  fields["intermediate_size"] = config.dense_inter;
}

void read_mlp_layer_types(const ConfigReader& in, ModelConfig& config) {
  constexpr const char* kKey = "mlp_layer_types";
  if (!in.states(kKey)) return;
  const json& types = in.value(kKey);
  const bool whole = types.is_array() && types.size() == config.layer_kinds.size();
  for (std::size_t i = 0; i < config.layer_kinds.size(); ++i) {
    if (!whole || (types[i] != "sparse" && types[i] != "dense"))
      in.refuse(kKey, fmt::format("\"dense\" or \"sparse\" for each of {} layers", config.layers));
    config.layer_kinds[i] = types[i] == "sparse" ? LayerKind::sparse : LayerKind::dense;
  }
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size", kMaxWidth);
}

bool read_layer_types(const ConfigReader& in,
                      const std::string& limited,
                      const AttentionSpan& span,
                      ModelConfig& config) {
  if (!in.has("layer_types")) return false;
  const json& types = in.value("layer_types");
  const bool whole = types.is_array() && types.size() == config.layer_attention.size();
  for (std::size_t i = 0; i < config.layer_attention.size(); ++i) {
    if (!whole || (types[i] != limited && types[i] != "full_attention")) {
      in.refuse("layer_types",
                fmt::format(
                    "\"{}\" or \"full_attention\" for each of {} layers", limited, config.layers));
    }
    if (types[i] == limited) config.layer_attention[i].span = span;
  }
  return true;
}

void write_text_part(const char* model_type, json& fields) {
  json text = std::move(fields);
  fields = {{"architectures", text["architectures"]},
            {"model_type", text["model_type"]},
            {"torch_dtype", text["torch_dtype"]}};
  text.erase("architectures");
  text["model_type"] = model_type;
  fields["text_config"] = std::move(text);
}

void require_full_attention(const ConfigReader& in) {
  if (in.flag_or("use_sliding_window", false))
    in.refuse("use_sliding_window", "false (sliding windows are not supported)");
  if (!in.has("layer_types")) return;
  const json& types = in.value("layer_types");
  const bool full = types.is_array() && std::all_of(types.begin(), types.end(), [](const json& t) {
                      return t.is_string() && t.get_ref<const std::string&>() == "full_attention";
                    });
  if (!full) in.refuse("layer_types", "\"full_attention\" for every layer");
}

}  // namespace ferry
