// What a checkpoint's config.json says, as plain data. The engine reads only this and never asks
// which model it is; what differs between families lies in family.h and families/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/rope.h"
#include "ferry/router.h"
#include "ferry/state/attention_span.h"

namespace ferry {

class StoredFormat;
class TensorSource;

/// How the routed experts lie in a checkpoint. Together: two tensors of all experts, in each the
/// matrices the other way round (but `rows`), and where there are biases, two of those.
enum class ExpertStorage : std::uint8_t {
  apart,        ///< three matrices of each, as a Linear has them
  halves,       ///< together; gate's columns before up's
  alternating,  ///< together; gate's columns and up's alternate
  rows,         ///< together, each matrix as a Linear has it; gate's rows before up's
};

/// The mixture-of-experts block that all sparse layers of a model share.
struct MoeConfig {
  int experts = 0;           ///< E
  int topk = 0;              ///< K <= E
  int inter = 0;             ///< width of one expert
  Gating gating;             ///< how an expert's gate and up become one
  bool expert_bias = false;  ///< the experts' projections have biases
  bool router_bias = false;  ///< so has the router's
  bool weigh_rows = false;   ///< the router's weights go onto what experts read, not onto results
  ExpertStorage storage = ExpertStorage::apart;
  RouterOptions router;         ///< the formula, its experts and topk those above
  bool selection_bias = false;  ///< the choice, not the weights, adds a bias to each score
  int shared_inter = 0;         ///< width of the shared expert; 0 = none
  bool shared_gate = false;     ///< its result is multiplied by sigmoid(hidden . gate)

  bool stacked() const { return storage != ExpertStorage::apart; }
};

enum class LayerKind : std::uint8_t { dense, sparse };

/// Queries that grow with their position, so that their softmax stays as sharp over more keys
/// (Llama 4's temperature tuning).
struct QueryGrowth {
  int step = 0;  ///< positions between one size and the next; 0 = no growth
  double strength = 0;
  bool counts_itself = true;  ///< the first step ends with position step - 1, not with step

  /// By how much the query at `position` is multiplied: 1 + strength * ln(1 + steps so far).
  float factor(std::int32_t position) const;
};

/// Names of mixers (mixers/mixer.h), as far as families speak of them.
inline constexpr std::string_view kAttention = "attention";
inline constexpr std::string_view kLatentAttention = "latent attention";
inline constexpr std::string_view kGatedDeltaNet = "gated delta net";
inline constexpr std::string_view kShortConv = "short convolution";

/// What differs between the attention of a model's layers.
struct LayerAttention {
  std::string_view mixer = kAttention;  ///< the kind of attention, by its name
  AttentionSpan span;
  bool rope = true;  ///< false: queries and keys do not turn with their position
  QueryGrowth growth = {};
  bool shares_choice = false;  ///< no indexer: it sees the positions that the last one chose
  bool skips_first = false;    ///< position 0 has no row of its own: only its own query sees it

  /// The first position that the query at `position` sees.
  std::int64_t first(std::int64_t position) const;
};

/// Where queries and keys are normalised (RMS norm).
enum class QkNorm : std::uint8_t {
  none,
  head,         ///< each head, weights [head_dim], before the rotation
  whole,        ///< all heads of a token together, weights of that width, before the rotation
  turned,       ///< each head, without weights, after the rotation; in layers that turn
  turned_head,  ///< each head, weights [head_dim], after the rotation
};

/// What chooses the positions that a query of latent attention sees (mixers/indexer.h): `topk` of
/// those up to its own.
struct IndexerConfig {
  int topk = 0;  ///< 0 = it sees all
  int heads = 0;
  int dim = 0;               ///< of a head, whose first rope.dim elements turn
  bool interleaved = false;  ///< as that of RopeOptions, which may differ from attention's
};

/// Latent attention (mixers/latent_attention.h): a query head has plain_dim elements that do not
/// turn and rope.dim behind them that do; head_dim is the two together.
struct LatentConfig {
  int rank = 0;        ///< of the vector that keys and values are made of; 0 = no layer has any
  int query_rank = 0;  ///< likewise of queries; 0 = made of the hidden state itself
  int plain_dim = 0;
  int value_dim = 0;      ///< of a value head
  float rms_eps = 1e-6F;  ///< of the norms of latents and compressed queries
  IndexerConfig indexer;
};

/// Gated delta net (mixers/gated_delta_net.h): each key head, which has a query too, serves
/// value_heads / key_heads heads of values.
struct DeltaConfig {
  int key_heads = 0;  ///< 0 = no layer has any
  int value_heads = 0;
  int key_dim = 0;    ///< of a key head
  int value_dim = 0;  ///< of a value head
  int taps = 0;       ///< of the convolution: a token and those before it
  /// How the projections lie: one key head's rows of all kinds together, or those of each kind.
  bool by_key_head = false;

  std::int64_t key_width() const { return std::int64_t{key_heads} * key_dim; }

  std::int64_t value_width() const { return std::int64_t{value_heads} * value_dim; }

  /// Of what is convolved: queries, keys and values.
  std::int64_t channels() const { return 2 * key_width() + value_width(); }
};

/// Invariants (checked by load_config): all sizes positive, heads % kv_heads == 0, head_dim even,
/// layer_kinds and layer_attention [all_layers()], 1 <= topk <= experts where any layer is sparse.
struct ModelConfig {
  std::string architecture;  ///< "Qwen3MoeForCausalLM"; key of the table in family.h
  std::string model_type;    ///< "qwen3_moe"

  int hidden = 0;  ///< H
  int layers = 0;
  int predictors = 0;    ///< layers that the checkpoint has behind these, to predict further tokens
  int draft_layers = 0;  ///< of those, that are in use for drafts: 0 or 1
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  ///< even; heads * head_dim need not be hidden
  int vocab = 0;
  int max_positions = 0;
  int dense_inter = 0;  ///< width of the feed-forward block of dense layers
  float rms_eps = 1e-6F;
  RopeOptions rope;
  bool attention_bias = false;  ///< q, k and v projections have a bias
  bool output_bias = false;     ///< so has the output projection
  bool sinks = false;           ///< each head's softmax has a score more, which has no value
  bool attention_gate = false;  ///< q's projection has behind each head as many rows again, whose
                                ///< sigmoid multiplies what the head gives
  bool norms_from_one = false;  ///< norms multiply by 1 + weight (not that of a gated delta net)
  QkNorm qk_norm = QkNorm::none;
  bool tied_embeddings = false;  ///< logits use the embedding matrix; there is no lm_head

  LatentConfig latent;
  DeltaConfig delta;
  int conv_taps = 0;  ///< of short convolutions: a token and those before it; 0 = no layer has any
  std::vector<LayerAttention> layer_attention;  ///< [all_layers()]

  std::vector<LayerKind> layer_kinds;  ///< [all_layers()]
  MoeConfig moe;

  /// Type the checkpoint says its weights have; absent when config.json is silent. Single tensors
  /// may differ. Checkpoint::weight_type() always knows.
  std::optional<DType> dtype;
  /// How matrices may be stored quantised; null: all lie as plain elements. Copies of a config
  /// share it.
  std::shared_ptr<const StoredFormat> stored_format;
  /// Generation ends on any of these, all within the vocabulary; may be empty.
  std::vector<std::int32_t> eos_ids;
  /// What whoever runs it should know, a line each; may be empty.
  std::vector<std::string> notes;

  bool sparse(int layer) const {
    return layer_kinds[static_cast<std::size_t>(layer)] == LayerKind::sparse;
  }

  /// Whether the norms of queries and keys have weights.
  bool qk_norm_weights() const { return qk_norm != QkNorm::none && qk_norm != QkNorm::turned; }

  /// Those that predict further tokens included, as far as they are in use.
  int sparse_layers() const;

  int all_layers() const { return layers + draft_layers; }
};

/// The same model with the first of its layers that predict further tokens in use: layer `layers`,
/// like any other to whoever loads, places and runs layers. Throws ConfigError, in the words of the
/// program's options, where the checkpoint has none or the family's are not supported; `file` is
/// what errors call the config.
ModelConfig with_draft_layer(ModelConfig config, const std::string& file);

/// The same model with each expert's matrices as tensors of their own: what for_each_tensor()
/// (family.h) then lists can be had of a checkpoint of either form.
ModelConfig unstacked(ModelConfig config);

/// Reads the source's config.json and, where there is one, the eos_token_id of its
/// generation_config.json. Throws ModelError naming file, field, what was expected and what was
/// found.
ModelConfig load_config(const TensorSource& source);

/// The same of the model at a path, whether or not there are weights in a directory.
ModelConfig load_config(const std::filesystem::path& directory);

/// The same from text; `file` is what errors call it.
ModelConfig parse_config(std::string_view text, const std::string& file);

}  // namespace ferry
