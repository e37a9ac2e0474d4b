// What DeepSeek's families share, and others took from them: GLM-4.5 has the experts of DeepSeek-V3
// behind another attention. For the families' .cpp files only.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/model/config.h"
#include "ferry/model/family.h"

namespace ferry {

TensorNames deepseek_names();

/// The same without latent attention's.
TensorNames deepseek_expert_names();

/// The same names with those of a layer that predicts further tokens, which is the layer behind the
/// last. Its embedding and head are the model's own, of which checkpoints may hold copies there.
TensorNames with_draft_names(TensorNames names);

/// Latent attention, dense first layers, the sizes of experts and of shared ones. Of the router,
/// what both generations call alike: groups, renormalize and scaling.
void read_deepseek(const ConfigReader& in, ModelConfig& config);

/// Of that, what latent attention is made of. Where `head_share`, partial_rotary_factor is said of
/// a whole head instead of its part that turns.
void read_latent_attention(const ConfigReader& in, ModelConfig& config, bool head_share = false);

/// Of that, all but attention.
void read_deepseek_experts(const ConfigReader& in, ModelConfig& config);

/// The score of a group is that of its two best experts, so it must have two.
void score_groups_by_two(const ConfigReader& in, RouterOptions& router);

/// The same for a random model: `config` has its sizes. Compressed queries where `query_rank`.
void write_deepseek(const ModelConfig& config, bool query_rank, nlohmann::json& fields);

/// Of that, dense first layers, experts and shared ones.
void write_deepseek_experts(const ModelConfig& config, nlohmann::json& fields);

/// n_group and topk_group in the proportions of the published models, where E divides that way.
void write_groups(const ModelConfig& config, nlohmann::json& fields);

/// All but the attention of DeepSeek-V3's graph: sigmoid scores, a bias for the choice alone,
/// groups by their two best experts.
void read_deepseek_v3_experts(const ConfigReader& in, ModelConfig& config);

/// DeepSeek-V3's graph, which Kimi-K2 has too.
void read_deepseek_v3(const ConfigReader& in, ModelConfig& config);

}  // namespace ferry
