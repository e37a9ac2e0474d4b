// Weights of a model, packed once at load for the kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/checkpoint/held_rows.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/expert_placement.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/config.h"
#include "ferry/model/owned_weights.h"
#include "ferry/moe/moe_layer.h"

namespace ferry {

/// What every rank needs alike: all but the routed experts. One copy serves all thread ranks of a
/// process. Immutable after load. One that was loaded for a single member of a group lacks the
/// panels that only others compute; its matrices are as large, but pages never written cost
/// nothing.
struct DenseWeights {
  struct Layer {
    std::vector<float> attention_norm;    // [H], before the mixer
    std::unique_ptr<MixerWeights> mixer;  // of the layer's kind
    std::vector<float> ffn_norm;          // [H], before the feed-forward block
    OwnedFfn ffn;                         // dense layers
    OwnedMatrix router;                   // sparse layers: f32 [H, E]
    std::vector<float> router_bias;       // [E]; empty = none
    std::vector<float> selection_bias;    // likewise
    OwnedFfn shared;                      // shared expert of sparse layers
    OwnedMatrix shared_gate;              // f32 [H, 1]
  };

  /// Of a layer that predicts further tokens, beside what it has as a layer.
  struct Draft {
    std::vector<float> embedding_norm, hidden_norm;  // [H]
    OwnedMatrix projection;                          // [2 H, H]
    std::vector<float> final_norm;                   // [H]
  };

  GroupMember member;        // whose share this is; alone: everybody's
  DType dtype = DType::f32;  // of activations: f32 or bf16
  HeldRows embedding;        // [vocab, H], read as dtype
  std::vector<float> final_norm;
  OwnedMatrix head;                          // [H, vocab]
  std::vector<Layer> layers;                 // [all_layers()]
  Draft draft;                               // where the last of them predicts further tokens
  std::shared_ptr<const TensorSource> file;  // of what lies there, WeightChoice::in_place
};

/// Whose routed experts. Several ranks that hold slices of the same ones are one rank to a
/// placement.
struct ExpertHolder {
  Rank rank = 0;           ///< of the placement
  GroupMember slice = {};  ///< of every expert there
};

/// The routed experts that one rank holds.
struct ExpertWeights {
  struct Layer {
    Placement placement;                 // a dense layer holds a trivial one
    Buffer memory;                       // of all slots: large enough for huge pages
    std::vector<GatedFfnWeights> slots;  // [slots_per_rank], views of memory, null in empty slots;
                                         // none in dense layers
  };

  /// Memory of blocks that came later, `block_bytes` from one to the next; slots may point into it.
  struct Blocks {
    Buffer memory;
    std::size_t block_bytes = 0;
  };

  std::vector<Layer> layers;
  std::vector<Blocks> more;
  ExpertHolder holder;                       // whose
  std::shared_ptr<const TensorSource> file;  // of slots that point into it, WeightChoice::in_place
};

/// One routed expert as a block: gate and up, then down, then their biases, in one piece.
std::size_t expert_block_bytes(const GatedFfnWeights& weights);
/// The same shapes at another block; null = an empty slot.
GatedFfnWeights at_block(GatedFfnWeights weights, const std::byte* block);

/// Called with bytes of the checkpoint read and bytes to read in all; from the loading thread.
using LoadProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// What rows are rounded to before they meet weights.
enum class Activations : std::uint8_t {
  automatic,  ///< what the format of the weights asks for
  int8        ///< where weights are ggml's blocks or mxfp4 to int8, too, with a scale for each 32 k
};

/// From and to the names of the program's flag. Throws ConfigError.
Activations parse_activations(std::string_view name, std::string_view option);
std::string_view activations_name(Activations activations);

/// How matrices are held. Router and norms are not meant, they stay f32; nor embeddings, which stay
/// as they are or become elements of the activations' type.
struct WeightChoice {
  WeightType type = WeightType::f32;
  /// Matrices outside the routed experts that the checkpoint does not hold quantised stay so.
  bool plain_stays = false;
  /// `type` is that of elements, and matrices whose codes a type of weights has as they are keep
  /// them, each by itself: docs/checkpoints.md, "GGUF".
  bool as_stored = false;
  /// Matrices whose type has a form that meets int8 rows have that.
  bool int8_rows = false;
  /// What a packed checkpoint has as it is to be held stays in its file, which is mapped; nobody
  /// may write there. Slices of experts are read all the same. Means nothing for other checkpoints.
  bool in_place = false;
};

/// What --weights says, else as the checkpoint has them (f16 is held as f32, which loses nothing).
/// A packed one has them in one way: throws ConfigError where --weights or --activations say
/// another. Whether any matrix will meet int8 rows says check_activations() (summary.h).
WeightChoice choose_weights(const Checkpoint& checkpoint,
                            std::optional<WeightType> wanted,
                            Activations activations = Activations::automatic);

/// Packs all but the routed experts; f32 weights held as bf16 are rounded to nearest even, what is
/// quantised as docs/numerics.md says.
/// `member`: whose share is wanted, where one rank alone will use it.
/// `progress` may be empty. Throws ModelError naming file, tensor, expected and found shape, before
/// anything is packed.
DenseWeights load_dense_weights(const Checkpoint& checkpoint,
                                const WeightChoice& choice,
                                ThreadPool& pool,
                                const LoadProgress& progress,
                                const GroupMember& member = {});

/// Packs the routed experts that `holder` has under `placement`, which has a layer for each of the
/// model's (those of dense ones are not looked at). As above.
ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertPlacement& placement,
                                  const ExpertHolder& holder,
                                  ThreadPool& pool,
                                  const LoadProgress& progress);

/// The same under the identity on `ranks` ranks, without replicas.
ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertHolder& holder,
                                  int ranks,
                                  ThreadPool& pool,
                                  const LoadProgress& progress);

/// What load_expert_weights() gives, for a rank of the next epoch that held `held` in the last one,
/// as whatever rank and under whatever placement. Experts that it holds again stay where they lie;
/// the others come from the checkpoint, into the memory of those that go first. REQUIRES: the same
/// checkpoint, choice and slice.
ExpertWeights next_expert_weights(ExpertWeights held,
                                  const Checkpoint& checkpoint,
                                  const WeightChoice& choice,
                                  const ExpertPlacement& placement,
                                  const ExpertHolder& holder,
                                  ThreadPool& pool);

}  // namespace ferry
