#include "ferry/model/weights.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "ferry/checkpoint/packed_file.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "ferry/model/layer_tables.h"
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

/// A slice is not one piece of a file.
bool stay_in_file(const Packer& packer, const FfnLayout& layout) {
  return packer.in_place() && layout.slice.tp == 1;
}

/// Fills the slots of one sparse layer that hold an expert.
void load_slots(Packer& packer,
                const FfnPart& expert,
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
  // Panels are multiples of 64 bytes, so every part is aligned as kernels want it.
  const std::size_t block_bytes = expert_block_bytes(layout.view(nullptr, nullptr));
  const bool in_place = stay_in_file(packer, layout);
  if (!in_place) layer.memory = Buffer(filled * block_bytes);
  std::byte* next = layer.memory.data();
  for (int slot = 0; slot < slots; ++slot) {
    if (!holds(slot)) continue;
    const TensorPlace at{layer_idx, layer.placement.expert_of(first + slot)};
    GatedFfnWeights& view = layer.slots[static_cast<std::size_t>(slot)];
    if (in_place) {
      view = at_block(view, packer.block_in_place(expert, at));
      continue;
    }
    std::byte* block = std::exchange(next, next + block_bytes);
    packer.block(expert, at, layout, block);
    view = at_block(view, block);
  }
}

/// A rank's layers under a placement, their slots not filled.
ExpertWeights placed_experts(const ModelConfig& config,
                             const ExpertPlacement& placement,
                             const ExpertHolder& holder) {
  FERRY_CHECK(placement.layers() == config.all_layers() &&
                  (config.sparse_layers() == 0 || placement.experts() == config.moe.experts),
              "a placement of {} layers and {} experts for a model of {} and {}",
              placement.layers(),
              placement.experts(),
              config.all_layers(),
              config.moe.experts);
  ExpertWeights weights;
  weights.holder = holder;
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    weights.layers.push_back(
        {config.sparse(layer) ? placement.layer(layer) : Placement::identity(1, placement.ranks()),
         {},
         {}});
  }
  return weights;
}

/// Of each layer; those of dense ones are empty.
std::vector<FfnLayout> expert_layouts(const Checkpoint& checkpoint,
                                      const WeightChoice& choice,
                                      const GroupMember& slice) {
  const ModelConfig& config = checkpoint.config();
  std::vector<FfnLayout> layouts(static_cast<std::size_t>(config.all_layers()));
  for (int layer = 0; layer < config.all_layers(); ++layer)
    if (config.sparse(layer))
      layouts[static_cast<std::size_t>(layer)] =
          expert_layout(checkpoint, choice, expert_part(config), layer, slice);
  return layouts;
}

std::size_t block_bytes(const FfnLayout& layout) {
  return expert_block_bytes(layout.view(nullptr, nullptr));
}

/// The blocks of an older epoch. A block that is taken is in use; the others may be written over.
class HeldBlocks {
 public:
  /// `layouts`: of all layers.
  HeldBlocks(ExpertWeights held, std::span<const FfnLayout> layouts)
      : memory_(std::move(held.more)) {
    for (std::size_t i = 0; i < held.layers.size(); ++i) {
      ExpertWeights::Layer& layer = held.layers[i];
      const auto first = static_cast<SlotId>(held.holder.rank * std::ssize(layer.slots));
      for (std::size_t slot = 0; slot < layer.slots.size(); ++slot) {
        const std::byte* block = layer.slots[slot].gate_up.data;
        if (block == nullptr) continue;
        const ExpertId expert = layer.placement.expert_of(first + static_cast<SlotId>(slot));
        blocks_.emplace(std::pair(static_cast<int>(i), expert), block);
      }
      memory_.push_back({std::move(layer.memory), block_bytes(layouts[i])});
    }
  }

  /// The block of this expert, once for each that there is; null where none is left.
  const std::byte* take(int layer, ExpertId expert) {
    const auto found = blocks_.extract({layer, expert});
    if (found.empty()) return nullptr;
    used_.insert(found.mapped());
    return found.mapped();
  }

  /// Gives memory without a block in use back, and says which blocks of the rest are free, by their
  /// room.
  std::multimap<std::size_t, std::byte*> free_blocks() {
    std::multimap<std::size_t, std::byte*> free;
    std::erase_if(memory_, [&](const ExpertWeights::Blocks& blocks) {
      const Buffer& memory = blocks.memory;
      const auto used = used_.lower_bound(memory.data());
      return used == used_.end() || *used >= memory.data() + memory.size();
    });
    for (const auto& [memory, bytes] : memory_) {
      for (std::size_t at = 0; at + bytes <= memory.size(); at += bytes)
        if (!used_.contains(memory.data() + at)) free.emplace(bytes, memory.data() + at);
    }
    return free;
  }

  std::vector<ExpertWeights::Blocks> memory() && { return std::move(memory_); }

 private:
  std::vector<ExpertWeights::Blocks> memory_;
  std::multimap<std::pair<int, ExpertId>, const std::byte*> blocks_;
  std::set<const std::byte*, std::less<>> used_;
};

/// An expert that a slot wants and no block has.
struct Missing {
  TensorPlace at;
  GatedFfnWeights* slot = nullptr;  // of its shapes

  std::size_t bytes() const { return expert_block_bytes(*slot); }
};

/// A block for each: the smallest free one that has room, else one in new memory. The largest
/// choose first, so that none is left without a block that would have held it.
std::vector<std::pair<std::byte*, const Missing*>> places_for(
    std::span<const Missing> missing,
    std::multimap<std::size_t, std::byte*>& free,
    std::vector<ExpertWeights::Blocks>& more) {
  std::vector<const Missing*> order;
  for (const Missing& one : missing) order.push_back(&one);
  std::ranges::stable_sort(order, std::ranges::greater{}, &Missing::bytes);
  std::vector<std::pair<std::byte*, const Missing*>> places;
  std::vector<const Missing*> left;
  for (const Missing* one : order) {
    const auto block = free.lower_bound(one->bytes());
    if (block == free.end()) {
      left.push_back(one);
      continue;
    }
    places.emplace_back(block->second, one);
    free.erase(block);
  }
  while (!left.empty()) {
    const std::size_t bytes = left.front()->bytes();
    const auto end =
        std::ranges::find_if(left, [&](const Missing* one) { return one->bytes() != bytes; });
    const auto count = static_cast<std::size_t>(end - left.begin());
    more.push_back({Buffer(count * bytes), bytes});
    for (std::size_t n = 0; n < count; ++n)
      places.emplace_back(more.back().memory.data() + n * bytes, left[n]);
    left.erase(left.begin(), end);
  }
  return places;
}

/// Whether all routed experts are stored as that type holds them. Four bits are too few to round to
/// unasked.
bool experts_hold(const Checkpoint& checkpoint, WeightType type) {
  bool all = true;
  for_each_tensor(unstacked(checkpoint.config()), [&](const TensorSpec& spec) {
    if (all && spec.role == TensorRole::expert) all = checkpoint.matrix(spec).holds(type);
  });
  return all;
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

Activations parse_activations(std::string_view name, std::string_view option) {
  if (name == "auto") return Activations::automatic;
  if (name == "int8") return Activations::int8;
  fail<ConfigError>("{} {}: choose auto or int8", option, name);
}

std::string_view activations_name(Activations activations) {
  return activations == Activations::int8 ? "int8" : "auto";
}

namespace {

WeightChoice choose_types(const Checkpoint& checkpoint, std::optional<WeightType> wanted) {
  if (wanted) return {.type = *wanted};
  if (const StoredFormat* format = checkpoint.config().stored_format.get()) {
    // What no type holds as it is becomes elements: another quantised type would round again.
    const bool of_bf16 = checkpoint.weight_type() == DType::bf16;
    if (format->holds_each() && of_bf16) return {.type = WeightType::bf16, .as_stored = true};
    const auto held = format->held();
    if (held && (held != WeightType::mxfp4 || experts_hold(checkpoint, *held)))
      return {.type = *held, .plain_stays = true};
  }
  return {.type = checkpoint.weight_type() == DType::bf16 ? WeightType::bf16 : WeightType::f32};
}

}  // namespace

WeightChoice choose_weights(const Checkpoint& checkpoint,
                            std::optional<WeightType> wanted,
                            Activations activations) {
  const bool int8_rows = activations == Activations::int8;
  if (const PackedFile* packed = checkpoint.source().packed()) {
    const PackedChoice& choice = packed->choice();
    if (wanted && weight_type_name(*wanted) != choice.asked) {
      fail<ConfigError>(
          "--weights {}: {} is packed {}; leave it out, or give the checkpoint that "
          "it was made of",
          weight_type_name(*wanted),
          checkpoint.directory(),
          choice.asked.empty() ? "as its checkpoint had them" : "as " + choice.asked);
    }
    if (int8_rows && !choice.int8_rows) {
      fail<ConfigError>(
          "--activations int8: {} is packed for other rows; `ferry pack --activations int8` packs "
          "the checkpoint that it was made of for these",
          checkpoint.directory());
    }
    return {.type = choice.type,
            .plain_stays = choice.plain_stays,
            .as_stored = choice.as_stored,
            .int8_rows = choice.int8_rows};
  }
  WeightChoice choice = choose_types(checkpoint, wanted);
  choice.int8_rows = int8_rows;
  if (int8_rows) choice.type = with_int8_rows(choice.type);
  return choice;
}

DenseWeights load_dense_weights(const Checkpoint& checkpoint,
                                const WeightChoice& choice,
                                ThreadPool& pool,
                                const LoadProgress& progress,
                                const GroupMember& member) {
  const ModelConfig& config = checkpoint.config();
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
  LayerPacker outside(packer, -1);
  read_embedding(config, outside, weights);
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    LayerPacker table(packer, layer);
    weights.layers.push_back(read_layer(config, layer, table));
    if (layer >= config.layers) read_draft(config, table, weights);
  }
  read_head(config, outside, weights);
  if (packer.in_place()) weights.file = checkpoint.shared_source();
  return weights;
}

ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertPlacement& placement,
                                  const ExpertHolder& holder,
                                  ThreadPool& pool,
                                  const LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  const FfnPart expert = expert_part(config);
  const std::vector<FfnLayout> layouts = expert_layouts(checkpoint, choice, holder.slice);
  ExpertWeights weights = placed_experts(config, placement, holder);
  const auto here = [&](const TensorSpec& spec) -> std::uint64_t {
    if (spec.expert < 0) return 0;
    const Placement& map = weights.layers[static_cast<std::size_t>(spec.layer)].placement;
    const auto replicas = map.replicas(spec.expert);
    return static_cast<std::uint64_t>(std::ranges::count_if(
        replicas, [&](SlotId slot) { return map.rank_of(slot) == holder.rank; }));
  };
  Packer packer(checkpoint, choice, pool, progress, tensor_bytes(checkpoint, here));
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    const auto i = static_cast<std::size_t>(layer);
    if (config.sparse(layer))
      load_slots(packer, expert, layouts[i], holder.rank, layer, weights.layers[i]);
  }
  if (packer.in_place()) weights.file = checkpoint.shared_source();
  return weights;
}

ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertHolder& holder,
                                  int ranks,
                                  ThreadPool& pool,
                                  const LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  const int experts = config.sparse_layers() > 0 ? config.moe.experts : 1;
  return load_expert_weights(checkpoint,
                             choice,
                             ExpertPlacement::identity(config.all_layers(), experts, ranks),
                             holder,
                             pool,
                             progress);
}

ExpertWeights next_expert_weights(ExpertWeights held,
                                  const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertPlacement& placement,
                                  const ExpertHolder& holder,
                                  ThreadPool& pool) {
  const ModelConfig& config = checkpoint.config();
  const FfnPart expert = expert_part(config);
  const std::vector<FfnLayout> layouts = expert_layouts(checkpoint, choice, holder.slice);
  ExpertWeights weights = placed_experts(config, placement, holder);
  const GroupMember& slice = held.holder.slice;
  FERRY_CHECK(
      held.layers.empty() || (slice.member == holder.slice.member && slice.tp == holder.slice.tp),
      "slice {} of {} cannot become slice {} of {}",
      slice.member,
      slice.tp,
      holder.slice.member,
      holder.slice.tp);
  HeldBlocks blocks(std::move(held), layouts);
  std::vector<Missing> missing;
  for (int i = 0; i < config.all_layers(); ++i) {
    if (!config.sparse(i)) continue;
    ExpertWeights::Layer& layer = weights.layers[static_cast<std::size_t>(i)];
    const int slots = layer.placement.slots_per_rank();
    const FfnLayout& layout = layouts[static_cast<std::size_t>(i)];
    layer.slots.assign(static_cast<std::size_t>(slots), layout.view(nullptr, nullptr));
    for (int local = 0; local < slots; ++local) {
      const ExpertId wanted = layer.placement.expert_of(holder.rank * slots + local);
      if (wanted < 0) continue;
      GatedFfnWeights& slot = layer.slots[static_cast<std::size_t>(local)];
      if (const std::byte* block = blocks.take(i, wanted))
        slot = at_block(slot, block);
      else
        missing.push_back({.at = {i, wanted}, .slot = &slot});
    }
  }
  std::multimap<std::size_t, std::byte*> free = blocks.free_blocks();
  weights.more = std::move(blocks).memory();
  const LoadProgress silent;
  Packer packer(checkpoint, choice, pool, silent, /*total=*/0);
  if (packer.in_place()) weights.file = checkpoint.shared_source();
  std::erase_if(missing, [&](const Missing& one) {
    const bool stays = stay_in_file(packer, layouts[static_cast<std::size_t>(one.at.layer)]);
    if (stays) *one.slot = at_block(*one.slot, packer.block_in_place(expert, one.at));
    return stays;
  });
  for (const auto& [block, one] : places_for(missing, free, weights.more)) {
    const FfnLayout& layout = layouts[static_cast<std::size_t>(one->at.layer)];
    packer.block(expert, one->at, layout, block);
    *one->slot = at_block(*one->slot, block);
  }
  return weights;
}

}  // namespace ferry
