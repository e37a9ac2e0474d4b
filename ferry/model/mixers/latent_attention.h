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
//
// Where the model has an indexer (indexer.h), its keys lie behind these in the rows that are kept,
// and a token's heads attend over the rows alone that it has chosen, copied side by side.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/types.h"
#include "ferry/model/mixers/attention_parts.h"
#include "ferry/model/mixers/head_share.h"
#include "ferry/model/mixers/indexer.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

struct LatentAttentionWeights final : MixerWeights {
  OwnedMatrix down;                // [H, queries or compressed ones + rank + rope.dim]
  std::vector<float> query_norm;   // of compressed queries; empty = none
  OwnedMatrix query_up;            // [query_rank, heads * head_dim]; none when queries come of down
  std::vector<float> latent_norm;  // [rank]
  HeadMatrices head_keys;          // [plain_dim, rank]: a query's plain part -> one over latents
  HeadMatrices head_values;        // [rank, value_dim]
  OwnedMatrix output;              // [heads * value_dim, H]
  IndexerWeights indexer;          // of layers that have one
};

/// What the latent attention layers of a decoder use one after the other, sized for a step's
/// tokens.
class LatentAttentionScratch {
 public:
  /// Tokens that go through the heads together: what bounds the scratch, as each of a model's many
  /// heads holds a wide query.
  static constexpr std::int64_t kTokensAtOnce = 64;

  explicit LatentAttentionScratch(const MixerContext& context);

  /// The first layer to call it does the work.
  void begin_step(const MixerStep& step);

  const ModelConfig& config;
  const LatentConfig& latent;
  const DType type;
  const WireType kv_type;
  const int max_tokens;
  TensorGroup& group;
  const std::int64_t heads;
  const HeadRange own;              // this rank's
  const std::int64_t rope;          // elements that turn, of a query head and of the shared key
  const std::int64_t rank;          // of latents
  const std::int64_t row;           // that is kept: rank + rope
  const std::ptrdiff_t kept_bytes;  // of it, in kv_type; the indexer's key lies behind
  const std::int64_t head_dim;      // of a query head: plain_dim + rope
  const std::int64_t from_down;     // what project_down makes first: compressed queries, or queries
  const float scale;                // of scores
  ThreadPool& pool;
  const GemmScratch& gemm_scratch;

  StepAngles angles;
  QueryBlocks blocks;  // of the tokens that go through the heads together
  const OutputProjection output;
  std::span<const TokenPlace> tokens;
  const Buffer down;        // f32 [tokens, from_down + row]
  const Buffer compressed;  // [tokens, query_rank] of the activation type
  const Buffer projected;   // f32 [tokens, heads * head_dim]; none when `down` has the queries
  const Buffer heads_out;   // [tokens, heads * value_dim] of the activation type
  // Of kTokensAtOnce tokens:
  Buffer plain;                       // [tokens, heads, plain_dim] of the activation type
  Buffer queries;                     // f32 [tokens, heads, row]
  Buffer attended;                    // [tokens, heads, rank] of the activation type
  std::vector<AttendScratch> attend;  // one a thread
  // Chosen rows side by side, one a thread: [topk] of kept_bytes.
  std::vector<Buffer> chosen_rows;

 private:
  std::uint64_t step_ = kNoStep;
};

/// One layer. Borrows its weights and what the context borrows. Threads: one at a time.
/// Numerics: the kept rows, what goes into a matrix, and the heads' results are rounded to the
/// activation type; queries over latents and scores are f32; every row is computed by itself. Ranks
/// that hold the same tokens share out heads; each keeps all latents, which all heads read.
class LatentAttention final : public Mixer {
 public:
  LatentAttention(MixerContext& context, int layer, const LatentAttentionWeights& weights);

  StateSpec state() const override;
  void begin_step(const MixerStep& step) override;
  void forward(const RowsView& normed, const MutableRowsView& residual) override;

 private:
  void project_down(const RowsView& normed);
  void store_latents();
  void project_queries();
  void make_queries(std::int64_t first, std::int64_t count);

  /// The rows that a block's queries see: all up to their own positions, or `end` chosen ones.
  struct SeenRows {
    PagedRows rows;
    int page_shift = kOnePage;
    std::int64_t end = 0;  // 0: up to their own
  };

  void attend(std::int64_t first, std::int64_t count);
  void attend(std::int64_t first, const QueryBlock& block, const SeenRows& seen, int worker);
  bool any_chooses(std::int64_t first, std::int64_t count) const;
  void attend_to_chosen(std::int64_t first, std::int64_t begin, std::int64_t end, int worker);
  SeenRows all_rows(std::int64_t token) const;
  void make_values(std::int64_t first, std::int64_t count);

  /// For this rank's heads out[:, head] = in[:, head] * matrix of that head, both of `rows` rows, a
  /// head's piece behind that of the head before it.
  void each_head(std::span<const PackedMatrix> matrices,
                 std::int64_t rows,
                 const RowsView& in,
                 const MutableRowsView& out,
                 std::ptrdiff_t out_step,
                 DType out_type);

  std::int64_t num_tokens() const { return std::ssize(scratch_->tokens); }

  const std::shared_ptr<LatentAttentionScratch> scratch_;
  const std::shared_ptr<Indexer> indexer_;  // null: the model has none
  const int layer_;
  const LatentAttentionWeights& weights_;
};

const MixerKind& latent_attention_kind();

}  // namespace ferry
