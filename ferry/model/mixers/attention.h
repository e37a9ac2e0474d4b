// The attention that most models have: heads of queries over heads of keys and values, for the
// tokens of all sequences of a step at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/types.h"
#include "ferry/model/mixers/attention_parts.h"
#include "ferry/model/mixers/head_share.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

struct AttentionWeights final : MixerWeights {
  OwnedMatrix qkv;                 // [H, qkv_width]: queries, with a gate behind each head's; k; v
  std::vector<float> qkv_bias;     // empty = none
  OwnedMatrix output;              // [heads * head_dim, H]
  std::vector<float> output_bias;  // empty = none
  std::vector<float> sinks;        // [heads]; empty = none
  std::vector<float> query_norm;   // [head_dim] or of all heads together; empty = none
  std::vector<float> key_norm;
};

/// What the attention layers of a decoder use one after the other, sized for a step's tokens.
class AttentionScratch {
 public:
  explicit AttentionScratch(const MixerContext& context);

  /// The first layer to call it does the work.
  void begin_step(const MixerStep& step);

  const ModelConfig& config;
  const DType type;
  const WireType kv_type;
  const int max_tokens;
  const int heads, kv_heads;
  const std::int64_t head_dim;
  const std::int64_t heads_width;    // heads * head_dim
  const std::int64_t query_stride;   // between heads' queries: one has a gate behind it, or not
  const std::int64_t queries_width;  // heads * query_stride
  const std::int64_t kv_width;       // kv_heads * head_dim
  const std::int64_t qkv_width;      // queries_width + 2 kv_width
  TensorGroup& group;
  const HeadShare own;
  ThreadPool& pool;
  const GemmScratch& gemm_scratch;

  const std::vector<float> ones;  // [head_dim]: the weights of a norm without any
  StepAngles angles;
  QueryBlocks blocks;  // of the step
  const OutputProjection output;
  std::span<const TokenPlace> tokens;
  const Buffer qkv;        // f32 [tokens, qkv_width]: query heads, key heads, value heads
  const Buffer heads_out;  // [tokens, heads_width] of the activation type
  std::vector<AttendScratch> attend;  // one a thread

  float* qkv_row(std::int64_t token) const { return qkv.as<float>() + token * qkv_width; }

  float* query(std::int64_t token, int head) const { return qkv_row(token) + head * query_stride; }

 private:
  std::uint64_t step_ = kNoStep;
};

/// One layer. Borrows its weights and what the context borrows. Threads: one at a time.
/// Numerics: queries and scores are f32; keys and values are rounded to the type that they are kept
/// in, each head's by itself, and the heads' results to the activation type; every row is computed
/// by itself, so neither the other tokens of the step nor the number of threads changes a bit.
/// Ranks that hold the same tokens share out heads and columns, never a sum, so their number
/// changes none either.
class Attention final : public Mixer {
 public:
  Attention(MixerContext& context, int layer, const AttentionWeights& weights);

  StateSpec state() const override;
  void begin_step(const MixerStep& step) override;
  void forward(const RowsView& normed, const MutableRowsView& residual) override;

 private:
  void project_qkv(const RowsView& normed);
  void norm_heads(float* query, float* key) const;
  void norm_own(float* query,
                float* key,
                const std::vector<float>& query_norm,
                const std::vector<float>& key_norm) const;
  void norm(float* x, std::int64_t width, const std::vector<float>& weight) const;
  void turn_heads(float* query, float* key, std::int64_t token) const;
  void rotate_and_store(std::int64_t token);
  std::int64_t most_positions() const;
  void attend(const QueryBlock& block, int worker);
  void gate(float* out, std::int64_t token, int head) const;

  std::int64_t num_tokens() const { return std::ssize(scratch_->tokens); }

  const std::shared_ptr<AttentionScratch> scratch_;
  const int layer_;
  const LayerAttention how_;
  const AttentionWeights& weights_;
};

const MixerKind& attention_kind();

}  // namespace ferry
