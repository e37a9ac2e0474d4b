// Multi-head latent attention (DeepSeek-V2): of each position one short vector is kept, of which
// the keys and values of all heads are made, and one turned key that all heads share.
//
//   latent = norm(down(x))                       cached, [rank]
//   shared = turned(down(x))                     cached behind it, [rope]
//   key of head h   = keys[h] latent, shared     value of head h = values[h] latent
//
// No key or value is ever made. keys[h] goes to the query instead, once a query and not once a
// position: (keys[h] latent) . q = latent . (q keys[h]); and values[h] to the weighted sum of
// latents. So every head attends with a query of rank + rope elements over the cached rows
// themselves, in decoding and in prompts alike: a row's bits must not depend on how many stand
// beside it.
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
/// Numerics: the cached rows, what goes into a matrix, and the heads' results are rounded to the
/// activation type; queries over latents and scores are f32; every row is computed by itself. Ranks
/// that hold the same tokens share out heads; each caches all latents, which all heads read.
class LatentAttention {
 public:
  /// `gemm_scratch`: for the inputs that widest_input() of this config names.
  LatentAttention(const ModelConfig& config,
                  DType type,
                  int max_tokens,
                  TensorGroup& group,
                  ThreadPool& pool,
                  const GemmScratch& gemm_scratch);

  /// As Attention's.
  void begin_step(std::span<const TokenPlace> tokens);
  void forward(int layer,
               const DenseWeights::Layer& weights,
               const RowsView& normed,
               const MutableRowsView& residual);

 private:
  /// Tokens that go through the heads together: what bounds the scratch, as each of a model's many
  /// heads holds a wide query.
  static constexpr std::int64_t kTokensAtOnce = 64;

  void project_down(const DenseWeights::Layer& weights, const RowsView& normed);
  void store_latents(int layer, const DenseWeights::Layer& weights);
  void project_queries(const DenseWeights::Layer& weights);
  void make_queries(const DenseWeights::Layer& weights, std::int64_t first, std::int64_t count);
  void attend(int layer, std::int64_t first, std::int64_t count);
  void attend(int layer, std::int64_t first, const QueryBlock& block, int worker);
  void make_values(const DenseWeights::Layer& weights, std::int64_t first, std::int64_t count);

  /// For this rank's heads out[:, head] = in[:, head] * matrix of that head, both of `rows` rows, a
  /// head's piece behind that of the head before it.
  void each_head(std::span<const PackedMatrix> matrices,
                 std::int64_t rows,
                 const RowsView& in,
                 const MutableRowsView& out,
                 std::ptrdiff_t out_step,
                 DType out_type);

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens_.size()); }

  const ModelConfig& config_;
  const LatentConfig& latent_;
  DType type_;
  int max_tokens_;
  std::int64_t heads_;
  const HeadRange own_;     // this rank's
  std::int64_t rope_;       // elements that turn, of a query head and of the shared key
  std::int64_t rank_;       // of latents
  std::int64_t row_;        // of the cache: rank + rope
  std::int64_t head_dim_;   // of a query head: plain_dim + rope
  std::int64_t from_down_;  // what project_down makes first: compressed queries, or queries
  float scale_;             // of scores
  ThreadPool& pool_;
  const GemmScratch& gemm_scratch_;

  StepAngles angles_;
  QueryBlocks blocks_;  // of the tokens that go through the heads together
  OutputProjection output_;
  std::span<const TokenPlace> tokens_;
  Buffer down_;        // f32 [tokens, from_down + row]
  Buffer compressed_;  // [tokens, query_rank] of the activation type
  Buffer projected_;   // f32 [tokens, heads * head_dim]; none when down_ has the queries
  Buffer heads_out_;   // [tokens, heads * value_dim] of the activation type
  // Of kTokensAtOnce tokens:
  Buffer plain_;                               // [tokens, heads, plain_dim] of the activation type
  Buffer queries_;                             // f32 [tokens, heads, row]
  Buffer attended_;                            // [tokens, heads, rank] of the activation type
  std::vector<AttendScratch> attend_scratch_;  // one a thread
};

}  // namespace ferry
