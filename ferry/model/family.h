// Model families: what differs between checkpoints, as a table. A new family is one file in
// families/ and one line in family.cpp. Tensor names are patterns, so that the loader, the writer
// of random models and `ferry inspect` share one list.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/model/config.h"

namespace ferry {

class ConfigReader;

/// Patterns; "{layer}" and "{expert}" stand for numbers (tensor_name() fills them in). Matrices lie
/// as [out, in], as PyTorch's Linear keeps them.
struct TensorNames {
  std::string_view prefix = {};  ///< of all names: where a checkpoint of more has its text model
  std::string_view inside = {};  ///< of all that begin with "model.": what stands behind that

  std::string_view embedding;   ///< [vocab, H]
  std::string_view final_norm;  ///< [H]
  std::string_view lm_head;     ///< [vocab, H], absent when tied

  std::string_view attention_norm;                ///< [H], before attention
  std::string_view ffn_norm;                      ///< [H], before the feed-forward block
  std::string_view q_weight, k_weight, v_weight;  ///< [heads|kv_heads * head_dim, H]
  std::string_view q_bias, k_bias, v_bias;        ///< [heads|kv_heads * head_dim]
  std::string_view o_weight, o_bias;              ///< [H, heads * head_dim], [H]
  std::string_view q_norm, k_norm;                ///< [head_dim], or all heads' width
  std::string_view sinks;                         ///< [heads]
  // Latent attention; what comes of the hidden state is "down", the rest "up".
  std::string_view query_down, query_down_norm;  ///< [query_rank, H], [query_rank]
  std::string_view query_up;                     ///< [heads * head_dim, query_rank]
  std::string_view latent_down, latent_norm;     ///< [rank + rope.dim, H], [rank]
  std::string_view latent_up;                    ///< [heads * (plain_dim + value_dim), rank]
  // An indexer.
  std::string_view index_query, index_key;       ///< [heads * dim, query_rank], [dim, H]
  std::string_view index_norm, index_norm_bias;  ///< [dim]
  std::string_view index_weights;                ///< [heads, H]
  // A short convolution.
  std::string_view conv_in, conv_taps, conv_out;  ///< [3 H, H], [H, 1, taps], [H, H]
  // Gated delta net: what is convolved and, but for `delta_gate`, the gates; their rates; the rest.
  std::string_view delta_in, delta_gate;              ///< [channels (+ value_width), H], or apart
  std::string_view delta_rates;                       ///< [2 value_heads, H]: of beta and decay
  std::string_view delta_beta, delta_decay;           ///< [value_heads, H], where those lie apart
  std::string_view delta_taps;                        ///< [channels, 1, taps]
  std::string_view delta_log_rate, delta_rate_bias;   ///< [value_heads]
  std::string_view delta_norm, delta_out;             ///< [value_dim], [H, value_width]
  std::string_view dense_gate, dense_up, dense_down;  ///< [dense_inter, H] x2, [H, dense_inter]
  std::string_view router, router_bias;               ///< [E, H], [E]
  std::string_view selection_bias;                    ///< [E]
  std::string_view expert_gate, expert_up;            ///< [inter, H]
  std::string_view expert_down;                       ///< [H, inter]
  std::string_view expert_gate_bias, expert_up_bias;  ///< [inter]
  std::string_view expert_down_bias;                  ///< [H]
  // Those of all experts together (ExpertStorage).
  std::string_view stacked_gate_up, stacked_down;  ///< [E, H, 2 inter], [E, inter, H]; as
                                                   ///< rows [E, 2 inter, H], [E, H, inter]
  std::string_view stacked_gate_up_bias, stacked_down_bias;  ///< [E, 2 inter], [E, H]
  std::string_view shared_gate, shared_up;                   ///< [shared_inter, H]
  std::string_view shared_down;                              ///< [H, shared_inter]
  std::string_view shared_scale;                             ///< [1, H], the sigmoid gate
  // A layer that predicts further tokens, beside what every layer has: norms of the token's
  // embedding and of the hidden state before it, what makes one of the two, and the head's norm.
  std::string_view draft_embedding_norm, draft_hidden_norm;  ///< [H]
  std::string_view draft_projection;                         ///< [H, 2 H], the embedding's first
  std::string_view draft_final_norm;                         ///< [H]
  /// Where what it has as a layer lies, numbered from 0, in place of "model.layers.{layer}.";
  /// empty: there, behind the last layer.
  std::string_view draft_place;

  bool draft_layer() const { return !draft_projection.empty(); }
};

/// The names that the Hugging Face Qwen lineage shares.
extern const TensorNames kQwenTensorNames;

struct ModelFamily {
  std::string_view architecture;  ///< as in config.json's "architectures"
  std::string_view model_type;    ///< as in config.json's "model_type"
  /// What transformers writes instead where it has another name for the published architecture.
  std::string_view architecture_saved = {};
  /// Whose defaults hold for fields that the file leaves out (config_defaults.h); empty:
  /// model_type's.
  std::string_view config_class = {};
  const char* eps_field = "rms_norm_eps";  ///< what config.json calls that of its norms
  bool latent = false;  ///< latent attention, whose sizes of heads the family reads itself
  /// The object of config.json that describes the text model, where that is one part of several;
  /// null: config.json itself.
  const char* text_fields = nullptr;
  TensorNames names;
  /// What config.json calls the number of layers that predict further tokens, and what holds where
  /// it does not say.
  const char* predictors_field = "num_nextn_predict_layers";
  int predictors = 0;
  /// Fills in what the family decides; the shared fields are already read and checked.
  void (*read)(const ConfigReader& fields, ModelConfig& config);
  /// The inverse for writers: adds the family's own fields to the config.json of a model of these
  /// sizes, with the flags that its published checkpoints have.
  void (*write)(const ModelConfig& config, nlohmann::json& fields);
};

/// All families, in the order they are listed to the user.
std::span<const ModelFamily> model_families();

/// By architecture or model_type; null when there is none.
const ModelFamily* find_family(std::string_view name);

/// The family of a config that load_config made.
const ModelFamily& family_of(const ModelConfig& config);

/// Which layer a tensor belongs to whose name is one of the patterns, filled in with any numbers;
/// -1 for one outside the layers; absent for a name that the family does not know.
std::optional<int> known_layer(const TensorNames& names, std::string_view name);

/// One of the patterns, filled in for a layer of this model.
std::string tensor_name(const ModelConfig& config,
                        std::string_view pattern,
                        int layer = -1,
                        int expert = -1);

/// One of the patterns, filled in as it stands.
std::string tensor_name(const TensorNames& names,
                        std::string_view pattern,
                        int layer = -1,
                        int expert = -1);

enum class TensorRole : std::uint8_t {
  embedding,
  norm,
  matrix,
  own_way,  ///< a matrix that its mixer packs itself, from elements
  bias,
  router,
  rates,
  indexer,
  expert
};

/// One tensor a model of this config must have.
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  TensorRole role = TensorRole::matrix;
  int layer = -1;   ///< -1: outside the layers
  int expert = -1;  ///< -1: not of one routed expert alone

  std::int64_t elements() const;
};

/// Calls visit for every tensor a model of this config must have, layer by layer, in the order a
/// loader wants them. Visits instead of listing: a lying config may ask for billions.
void for_each_tensor(const ModelConfig& config,
                     const std::function<void(const TensorSpec&)>& visit);

}  // namespace ferry
