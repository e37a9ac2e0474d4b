// Groups of config.json's fields that several families share: what their read and write functions
// are made of. For the family .cpp files only.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/model/config.h"

namespace ferry {

/// What a family calls the sizes of its routed experts.
struct ExpertFields {
  const char* experts = "num_experts";
  const char* inter = "moe_intermediate_size";
  const char* topk = "num_experts_per_tok";
};

/// A number in [1, max], or a list of such a number for each layer, which must be the same for all.
int size_of_all_layers(const ConfigReader& in, const char* key, int max);

/// Fills in moe.experts, topk and inter, and the router's two.
void read_experts(const ConfigReader& in, const ExpertFields& names, ModelConfig& config);
void write_experts(const ModelConfig& config, const ExpertFields& names, nlohmann::json& fields);

/// Layers that `mlp_only_layers` and `decoder_sparse_step` name are dense, `intermediate_size`
/// wide.
void read_sparse_step(const ConfigReader& in, ModelConfig& config);
void write_sparse_step(const ModelConfig& config, nlohmann::json& fields);

/// The first `first_k_dense_replace` layers are dense, `intermediate_size` wide.
void read_dense_first(const ConfigReader& in, ModelConfig& config);
void write_dense_first(const ModelConfig& config, nlohmann::json& fields);

/// Which layers are dense, by name, where the file has `mlp_layer_types`; else nothing changes.
void read_mlp_layer_types(const ConfigReader& in, ModelConfig& config);

/// Layers that `layer_types` calls `limited` see `span`, those it calls "full_attention" all, and
/// it names no others. False where there is no such field.
bool read_layer_types(const ConfigReader& in,
                      const std::string& limited,
                      const AttentionSpan& span,
                      ModelConfig& config);

/// For a random model whose text model is one part of several: what `fields` has goes into its
/// text_config, under the text model's own type.
void write_text_part(const char* model_type, nlohmann::json& fields);

/// Refuses fields by which some layers would see less than all positions.
void require_full_attention(const ConfigReader& in);

}  // namespace ferry
