// Attention of one rank's tokens, for all sequences of a step at once: what lies between the norm
// before it and the residual stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/model/attention_parts.h"
#include "ferry/model/config.h"
#include "ferry/model/weights.h"
#include "ferry/moe/parallel_gemm.h"

namespace ferry {

/// Owns the scratch, sized at construction for `max_tokens` tokens; borrows the rest. Threads: one
/// at a time.
/// Numerics: queries and scores are f32; keys, values and the heads' results are rounded to the
/// activation type; every row is computed by itself, so neither the other tokens of the step nor
/// the number of threads changes a bit.
class Attention {
 public:
  /// `gemm_scratch`: for inputs of hidden and of heads * head_dim elements.
  Attention(const ModelConfig& config,
            DType type,
            int max_tokens,
            ThreadPool& pool,
            const GemmScratch& gemm_scratch);

  /// Before the first layer of a step: the tokens, those of one sequence in order of position and
  /// without gaps behind what its cache holds. Borrowed until the step's last layer.
  void begin_step(std::span<const TokenPlace> tokens);

  /// Adds the attention of `normed` [tokens, H] to `residual` [tokens, H], both of the activation
  /// type, and fills in the tokens' keys and values. The caches' lengths stay as they are.
  void forward(int layer,
               const DenseWeights::Layer& weights,
               const RowsView& normed,
               const MutableRowsView& residual);

 private:
  void project_qkv(const DenseWeights::Layer& weights, const RowsView& normed);
  void norm(float* x, std::int64_t width, const std::vector<float>& weight) const;
  void rotate_and_store(int layer, const DenseWeights::Layer& weights, std::int64_t token);
  std::int32_t most_positions(const AttentionSpan& span) const;
  void attend(int layer, std::int64_t token, int head, int worker);

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens_.size()); }

  float* qkv_row(std::int64_t token) const { return qkv_.as<float>() + token * qkv_width_; }

  const ModelConfig& config_;
  DType type_;
  int max_tokens_;
  int heads_, kv_heads_;
  std::int64_t head_dim_;
  std::int64_t heads_width_;  // heads * head_dim
  std::int64_t kv_width_;     // kv_heads * head_dim
  std::int64_t qkv_width_;    // heads_width + 2 kv_width
  ThreadPool& pool_;
  const GemmScratch& gemm_scratch_;

  StepAngles angles_;
  OutputProjection output_;
  std::span<const TokenPlace> tokens_;
  Buffer qkv_;        // f32 [tokens, qkv_width]: query heads, key heads, value heads
  Buffer heads_out_;  // [tokens, heads_width] of the activation type
  std::vector<Buffer> attend_scratch_;  // one a thread: f32 result [head_dim], scores [positions]
};

}  // namespace ferry
