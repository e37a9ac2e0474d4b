#include "ferry/model/weights.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "ferry/model/head_share.h"
#include "ferry/model/pack_stored.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 64;

std::int64_t panels_of(std::int64_t columns) { return ceil_div(columns, kPanelColumns); }

std::size_t packed_bytes(WeightType type, std::int64_t k, std::int64_t panels) {
  return PackedMatrix::packed_panel_bytes(type, k) * static_cast<std::size_t>(panels);
}

std::byte* as_bytes(float* x) { return reinterpret_cast<std::byte*>(x); }

/// Names of the three matrices of a gated feed-forward block, and of their biases.
struct FfnNames {
  std::string_view gate, up, down;
  std::string_view gate_bias = {}, up_bias = {}, down_bias = {};
};

/// The shapes of a packed block.
struct FfnLayout {
  WeightType type = WeightType::f32;
  std::int64_t hidden = 0;
  std::int64_t inter = 0;
  bool biased = false;

  std::size_t gate_up_bytes() const { return packed_bytes(type, hidden, 2 * panels_of(inter)); }

  std::size_t down_bytes() const { return packed_bytes(type, inter, panels_of(hidden)); }

  GatedFfnWeights view(const std::byte* gate_up, const std::byte* down) const {
    return {.gate_up = {.type = type, .k = hidden, .n = 2 * inter, .data = gate_up},
            .down = {.type = type, .k = inter, .n = hidden, .data = down},
            .biased = biased};
  }
};

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

/// Packs tensors of one checkpoint on all threads and counts the bytes read.
class Packer {
 public:
  Packer(const Checkpoint& checkpoint,
         const WeightChoice& weights,
         ThreadPool& pool,
         const LoadProgress& progress,
         std::uint64_t total,
         const GroupMember& member = {})
      : checkpoint_(checkpoint),
        weights_(weights),
        pool_(pool),
        progress_(progress),
        member_(member),
        total_(total) {
    report(0);
  }

  /// The tensors that names stand for from now on.
  void at(int layer, int expert = -1) {
    layer_ = layer;
    expert_ = expert;
  }

  /// Vectors as f32, one behind the other.
  std::vector<float> vector(
      std::initializer_list<std::pair<std::string_view, std::int64_t>> names_and_sizes) {
    std::vector<float> out;
    for (const auto& [name, n] : names_and_sizes) {
      const StoredMatrix column = find(name, {n});
      out.resize(out.size() + static_cast<std::size_t>(n));
      column.read_rows(0, n, DType::f32, as_bytes(out.data() + out.size() - n));
      done_with(column);
    }
    return out;
  }

  using NamesAndRows = std::initializer_list<std::pair<std::string_view, std::int64_t>>;

  /// Matrices [n, k] packed as one of [k, n + n + ..], of the chosen type where none is given.
  /// `panels`: those that are wanted; empty: all.
  OwnedMatrix matrix(NamesAndRows names_and_rows,
                     std::int64_t k,
                     std::optional<WeightType> wanted = {},
                     std::span<const PanelRange> panels = {}) {
    std::vector<StoredMatrix> sources;
    std::int64_t columns = 0;
    for (const auto& [name, rows] : names_and_rows) {
      sources.push_back(find_matrix(name, rows, k));
      columns += rows;
    }
    const WeightType type = wanted.value_or(type_for(sources));
    OwnedMatrix matrix;
    matrix.memory = Buffer(packed_bytes(type, k, panels_of(columns)));
    matrix.view = {.type = type, .k = k, .n = columns, .data = matrix.memory.data()};
    pack(sources, {.type = type, .data = matrix.memory.data(), .panels = panels});
    return matrix;
  }

  /// The heads' key and value matrices of a latent_up: rows of plain_dim keys, then value_dim
  /// values, head by head. Those of keys lie the other way round than it, as queries meet them.
  /// Packs those of the member's heads.
  std::pair<HeadMatrices, HeadMatrices> latent_head_matrices(std::string_view name,
                                                             int num_heads,
                                                             const LatentConfig& latent) {
    const std::int64_t plain = latent.plain_dim;
    const std::int64_t value = latent.value_dim;
    const std::int64_t rank = latent.rank;
    const StoredMatrix source = find_matrix(name, num_heads * (plain + value), rank);
    HeadMatrices keys = head_matrices(num_heads, plain, rank);
    HeadMatrices values = head_matrices(num_heads, rank, value);
    const HeadRange own = latent_heads(num_heads, member_);
    pool_.parallel_for(own.size(), 1, [&](std::int64_t begin, std::int64_t end, int) {
      std::vector<float> rows(static_cast<std::size_t>((plain + value) * rank));
      std::vector<float> turned(static_cast<std::size_t>(plain * rank));
      for (std::int64_t h = own.begin + begin; h < own.begin + end; ++h) {
        source.read_rows(h * (plain + value), plain + value, DType::f32, as_bytes(rows.data()));
        for (std::int64_t i = 0; i < plain; ++i)
          for (std::int64_t j = 0; j < rank; ++j)
            turned[static_cast<std::size_t>(j * plain + i)] =
                rows[static_cast<std::size_t>(i * rank + j)];
        pack_f32(turned.data(), keys.views[static_cast<std::size_t>(h)]);
        pack_f32(rows.data() + plain * rank, values.views[static_cast<std::size_t>(h)]);
      }
    });
    done_with(source);
    return {std::move(keys), std::move(values)};
  }

  /// The member's share of such a matrix.
  OwnedMatrix shared_out(NamesAndRows names_and_rows, std::int64_t k) {
    std::int64_t columns = 0;
    for (const auto& [name, rows] : names_and_rows) columns += rows;
    const PanelRange own = member_.panels(columns);
    return matrix(names_and_rows, k, {}, {&own, 1});
  }

  const GroupMember& member() const { return member_; }

  /// The member's share of a gated block into memory of this layout; gate's and up's panels
  /// alternate.
  void ffn(const FfnNames& names, const FfnLayout& layout, std::byte* gate_up, std::byte* down) {
    const std::size_t panel = PackedMatrix::packed_panel_bytes(layout.type, layout.hidden);
    const StoredMatrix gate = find_matrix(names.gate, layout.inter, layout.hidden);
    const StoredMatrix up = find_matrix(names.up, layout.inter, layout.hidden);
    const PanelRange own_inter = member_.panels(layout.inter);
    const PanelRange own_hidden = member_.panels(layout.hidden);
    pack({&gate, 1}, {layout.type, gate_up, 2, {&own_inter, 1}});
    pack({&up, 1}, {layout.type, gate_up + panel, 2, {&own_inter, 1}});
    const StoredMatrix source = find_matrix(names.down, layout.hidden, layout.inter);
    pack({&source, 1}, {layout.type, down, 1, {&own_hidden, 1}});
  }

  /// The block's biases: gate's and up's as their columns lie in panels, then down's.
  void ffn_biases(const FfnNames& names, const FfnLayout& layout, float* out) {
    const auto gate = vector({{names.gate_bias, layout.inter}});
    const auto up = vector({{names.up_bias, layout.inter}});
    const auto down = vector({{names.down_bias, layout.hidden}});
    float* const down_out = out + 2 * panels_of(layout.inter) * kPanelColumns;
    std::fill(out, down_out + panels_of(layout.hidden) * kPanelColumns, 0.0F);
    for (std::int64_t c = 0; c < layout.inter; ++c) {
      float* place = out + 2 * (c / kPanelColumns) * kPanelColumns + c % kPanelColumns;
      place[0] = gate[static_cast<std::size_t>(c)];
      place[kPanelColumns] = up[static_cast<std::size_t>(c)];
    }
    std::ranges::copy(down, down_out);
  }

  OwnedFfn ffn(const FfnNames& names, std::int64_t inter) {
    const std::int64_t hidden = checkpoint_.config().hidden;
    const StoredMatrix gate = find_matrix(names.gate, inter, hidden);
    const FfnLayout layout{type_for({&gate, 1}), hidden, inter};
    OwnedFfn owned{Buffer(layout.gate_up_bytes()), Buffer(layout.down_bytes()), {}};
    ffn(names, layout, owned.gate_up.data(), owned.down.data());
    owned.view = layout.view(owned.gate_up.data(), owned.down.data());
    return owned;
  }

  /// Rows as elements of the activations' type.
  Buffer rows(std::string_view name, std::int64_t rows, std::int64_t width) {
    const StoredMatrix source = find_matrix(name, rows, width);
    const DType dtype = activation_type(weights_.type);
    const auto row_bytes = width * static_cast<std::ptrdiff_t>(dtype_bytes(dtype));
    Buffer out(static_cast<std::size_t>(rows * row_bytes));
    pool_.parallel_for(rows, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
      source.read_rows(begin, end - begin, dtype, out.data() + begin * row_bytes);
    });
    done_with(source);
    return out;
  }

 private:
  std::string named(std::string_view pattern) const {
    return tensor_name(checkpoint_.names(), pattern, layer_, expert_);
  }

  StoredMatrix find(std::string_view name, std::vector<std::int64_t> shape) const {
    StoredMatrix matrix = checkpoint_.matrix(
        {.name = named(name), .shape = std::move(shape), .layer = layer_, .expert = expert_});
    advise_read_soon(matrix.data);
    return matrix;
  }

  StoredMatrix find_matrix(std::string_view name, std::int64_t rows, std::int64_t columns) const {
    return find(name, {rows, columns});
  }

  void done_with(const StoredMatrix& matrix) {
    advise_read_done(matrix.data);
    report(matrix.bytes());
  }

  /// How a matrix made of these is held.
  WeightType type_for(std::span<const StoredMatrix> sources) const {
    const bool plain = std::ranges::all_of(sources, &StoredMatrix::is_plain);
    return plain && weights_.plain_stays ? weight_type(activation_type(weights_.type))
                                         : weights_.type;
  }

  /// Memory for a matrix [k, n] a head, of elements: codes share scales the other way round.
  HeadMatrices head_matrices(std::int64_t num_heads, std::int64_t k, std::int64_t n) const {
    const WeightType type = weight_type(activation_type(weights_.type));
    const std::size_t bytes = packed_bytes(type, k, panels_of(n));
    HeadMatrices heads{Buffer(bytes * static_cast<std::size_t>(num_heads)), {}};
    for (std::size_t h = 0; h < static_cast<std::size_t>(num_heads); ++h) {
      heads.views.push_back(
          {.type = type, .k = k, .n = n, .data = heads.memory.data() + h * bytes});
    }
    return heads;
  }

  /// Packs [n, k] numbers where `matrix` lies, in memory of this object's making.
  static void pack_f32(const float* source, const PackedMatrix& matrix) {
    pack_matrix({.type = matrix.type,
                 .source = reinterpret_cast<const std::byte*>(source),
                 .k = matrix.k,
                 .n = matrix.n,
                 .out = const_cast<std::byte*>(matrix.data)});
  }

  void pack(std::span<const StoredMatrix> sources, const PackTarget& target) {
    pack_stored(sources, target, pool_);
    for (const StoredMatrix& source : sources) done_with(source);
  }

  void report(std::size_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const Checkpoint& checkpoint_;
  WeightChoice weights_;
  ThreadPool& pool_;
  const LoadProgress& progress_;
  const GroupMember member_;  // whose columns of shared out matrices are packed
  int layer_ = -1;
  int expert_ = -1;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
};

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
  switch (checkpoint.config().quantization) {
    case Quantization::fp8:
      return {.type = WeightType::fp8, .plain_stays = true};
    case Quantization::int8:
      return {.type = WeightType::int8, .plain_stays = true};
    case Quantization::int4:
      return {.type = WeightType::int4, .plain_stays = true};
    case Quantization::mxfp4:  // as elements: no other type holds them without a rounding
    case Quantization::none:
      break;
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
