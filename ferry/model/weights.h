// Weights of a model, packed once at load for the kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/config.h"
#include "ferry/moe/moe_layer.h"

namespace ferry {

/// Owned memory of one packed matrix.
struct OwnedMatrix {
  Buffer memory;
  PackedMatrix view;
};

/// What every rank needs alike: all but the routed experts. One copy serves all thread ranks of a
/// process. Immutable after load.
struct DenseWeights {
  struct Layer {
    std::vector<float> input_norm;      // [H]
    std::vector<float> attention_norm;  // [H], before the MLP
    OwnedMatrix qkv;                    // [H, (heads + 2 kv_heads) * head_dim]
    std::vector<float> qkv_bias;        // empty = none
    OwnedMatrix output;                 // [heads * head_dim, H]
    std::vector<float> output_bias;     // empty = none
    std::vector<float> query_norm;      // [head_dim]; empty = none
    std::vector<float> key_norm;
    // Dense layer:
    OwnedMatrix mlp_gate_up, mlp_down;
    // Sparse layer:
    OwnedMatrix router;  // f32
    OwnedMatrix shared_gate_up, shared_down;
    OwnedMatrix shared_gate;  // f32 [H, 1]
  };

  DType dtype = DType::f32;  // of weights and activations: f32 or bf16
  Buffer embedding;          // [vocab, H] of dtype
  std::vector<float> final_norm;
  OwnedMatrix head;  // [H, vocab]
  std::vector<Layer> layers;
};

/// The routed experts that one rank holds: for each sparse layer its slots.
struct ExpertWeights {
  struct Slot {
    OwnedMatrix gate_up, down;  // empty memory = empty slot
  };

  std::vector<Placement> placements;     // [layers]; dense layers hold a trivial one
  std::vector<std::vector<Slot>> slots;  // [layers][slots_per_rank], empty for dense layers
};

/// Called with bytes done and bytes in all as loading goes on; from one thread at a time.
using LoadProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// The type weights are held in: what --weights says, else the checkpoint's (f16 is held as f32,
/// which loses nothing).
DType weight_dtype(const ModelConfig& config, std::optional<DType> wanted);

/// Throw ModelError naming file, tensor, expected and found shape.
DenseWeights load_dense_weights(const Checkpoint& checkpoint,
                                DType dtype,
                                ThreadPool& pool,
                                const LoadProgress& progress);
ExpertWeights load_expert_weights(const Checkpoint& checkpoint,
                                  DType dtype,
                                  Rank rank,
                                  int ranks,
                                  ThreadPool& pool,
                                  const LoadProgress& progress);

}  // namespace ferry
