// Attention of one rank's tokens, for all sequences of a step at once: what lies between the norm
// before it and the residual stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/model/attention_parts.h"
#include "ferry/model/config.h"
#include "ferry/model/head_share.h"
#include "ferry/model/weights.h"

namespace ferry {

/// Owns the scratch, sized at construction for `max_tokens` tokens; borrows the rest. Threads: one
/// at a time.
/// Numerics: queries and scores are f32; keys, values and the heads' results are rounded to the
/// activation type; every row is computed by itself, so neither the other tokens of the step nor
/// the number of threads changes a bit. Ranks that hold the same tokens share out heads and
/// columns, never a sum, so their number changes none either.
class Attention {
 public:
  /// `group`: the ranks that hold the same tokens. `gemm_scratch`: for inputs of hidden and of
  /// heads * head_dim elements.
  Attention(const ModelConfig& config,
            DType type,
            int max_tokens,
            TensorGroup& group,
            ThreadPool& pool,
            const GemmScratch& gemm_scratch);

  /// Before the first layer of a step: the tokens, those of one sequence in order of position and
  /// without gaps behind what its cache holds. Borrowed until the step's last layer.
  void begin_step(std::span<const TokenPlace> tokens);

  /// Adds the attention of `normed` [tokens, H] to `residual` [tokens, H], both of the activation
  /// type, and fills in the tokens' keys and values of the heads that this rank has a part in. The
  /// caches' lengths stay as they are.
  void forward(int layer,
               const DenseWeights::Layer& weights,
               const RowsView& normed,
               const MutableRowsView& residual);

 private:
  void project_qkv(int layer, const DenseWeights::Layer& weights, const RowsView& normed);
  void norm_heads(const DenseWeights::Layer& weights, float* query, float* key) const;
  void norm(float* x, std::int64_t width, const std::vector<float>& weight) const;
  void turn_heads(float* query, float* key, std::int64_t token) const;
  void rotate_and_store(int layer, const DenseWeights::Layer& weights, std::int64_t token);
  std::int32_t most_positions(const AttentionSpan& span) const;
  void attend(int layer, const std::vector<float>& sinks, const QueryBlock& block, int worker);

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
  TensorGroup& group_;
  const HeadShare own_;
  ThreadPool& pool_;
  const GemmScratch& gemm_scratch_;

  const std::vector<float> ones_;  // [head_dim]: the weights of a norm without any
  StepAngles angles_;
  QueryBlocks blocks_;  // of the step
  OutputProjection output_;
  std::span<const TokenPlace> tokens_;
  Buffer qkv_;        // f32 [tokens, qkv_width]: query heads, key heads, value heads
  Buffer heads_out_;  // [tokens, heads_width] of the activation type
  std::vector<AttendScratch> attend_scratch_;  // one a thread
};

}  // namespace ferry
