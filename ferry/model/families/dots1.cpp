// dots.llm1: Qwen3's attention before DeepSeek-V3's experts; windows in later layers where
// config.json sets them.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

/// Named by layer_types, or those behind the first max_window_layers.
void read_windows(const ConfigReader& in, ModelConfig& config) {
  const int width = in.size_or("sliding_window", kMaxWidth, 0);
  if (width == 0) return require_full_attention(in);
  const AttentionSpan window{AttentionSpan::Kind::window, width};
  if (read_layer_types(in, "sliding_attention", window, config)) return;
  const std::vector<std::int32_t> full = in.integers("max_window_layers", 0, kMaxWidth);
  for (int i = full.empty() ? config.layers : full.front(); i < config.layers; ++i)
    config.layer_attention[static_cast<std::size_t>(i)].span = window;
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_windows(in, config);
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.qk_norm = QkNorm::head;
  read_deepseek_v3_experts(in, config);
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek_experts(config, fields);
  fields["attention_bias"] = false;
  fields["sliding_window"] = nullptr;
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.5;
}

}  // namespace

ModelFamily dots1_family() {
  return {.architecture = "Dots1ForCausalLM",
          .model_type = "dots1",
          .names = deepseek_expert_names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
