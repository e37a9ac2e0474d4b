// The indexer of DeepSeek sparse attention (DeepSeek-V3.2): few small heads that say how much each
// earlier position matters to a token, and so choose those that its attention sees.
//
//   key    = turned(layer_norm(wk x))                       kept of each position, [dim]
//   query  = turned(wq c), c the compressed query           [heads, dim]
//   score of position p = sum over heads h of weight[h] * max(0, query[h] . key[p] / sqrt(dim)),
//   weight = weights_proj x / sqrt(heads)
//
// The topk greatest scores are chosen, of equal ones the lowest positions. A token that sees no
// more than topk positions sees all, and nothing is scored for it. A layer may have no indexer and
// see what the last one before it has chosen.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/model/mixers/attention_parts.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

struct IndexerWeights {
  OwnedMatrix queries;       // [query_rank, heads * dim]
  OwnedMatrix key_weights;   // [H, dim + heads]: a position's key, the weights behind it
  std::vector<float> norm;   // of keys, [dim]
  std::vector<float> shift;  // added behind it, [dim]
};

/// What keys are kept as beside keys and values of this type: as those, but where they are
/// quantised as bf16, since a key that is off moves choices.
DType index_key_type(WireType kv_type);

/// Reads the table of one layer's tensors.
void read_indexer(const ModelConfig& config,
                  const TensorNames& names,
                  TensorTable& table,
                  IndexerWeights& to);

/// What all layers of a decoder use one after the other, and the choice of the last of them that
/// has an indexer. Threads: one at a time; chosen() from several. Numerics: what goes into a matrix
/// is rounded to the activation type, keys to index_key_type(), all else is f32, norms in doubles;
/// every token is computed by itself. Each rank of a group makes the whole choice.
class Indexer {
 public:
  explicit Indexer(const MixerContext& context);

  /// The first layer to call it does the work.
  void begin_step(const MixerStep& step);

  struct Inputs {
    RowsView normed;             ///< [tokens, H] of the activation type
    RowsView compressed;         ///< likewise [tokens, query_rank]
    std::ptrdiff_t kept_at = 0;  ///< where a key begins in the rows that the layer keeps, in bytes
  };

  /// Keeps the keys of the step's tokens and chooses what each of these sees.
  void run(int layer, const IndexerWeights& weights, const Inputs& in);

  /// The positions that the step's token sees, rising; empty: all up to its own.
  std::span<const std::int32_t> chosen(std::int64_t token) const;

 private:
  /// Tokens that are scored together: what bounds the scratch, as each has a score a position.
  static constexpr std::int64_t kTokensAtOnce = 32;

  bool sees_all(std::int64_t token) const {
    return tokens_[static_cast<std::size_t>(token)].position < indexer_.topk;
  }

  void keep_keys(int layer, const IndexerWeights& weights, const Inputs& in);
  void make_queries(const IndexerWeights& weights,
                    const Inputs& in,
                    std::int64_t first,
                    std::int64_t count);
  void score(int layer, const Inputs& in, std::int64_t first, std::int64_t count);
  void choose(std::int64_t first, std::int64_t count);

  const IndexerConfig& indexer_;
  const DType key_type_;
  const int max_tokens_;
  const std::int64_t max_positions_;
  const std::int64_t at_once_;  // kTokensAtOnce, or max_tokens
  ThreadPool& pool_;
  const GemmScratch& gemm_scratch_;
  StepAngles angles_;
  std::span<const TokenPlace> tokens_;
  std::uint64_t step_ = kNoStep;
  const Buffer key_weights_;                         // f32 [tokens, dim + heads]
  const Buffer queries_;                             // f32 [at_once, heads * dim]
  const Buffer scores_;                              // f32 [at_once, max_positions]
  std::vector<std::int32_t> chosen_;                 // [tokens, topk]
  std::vector<std::vector<std::uint32_t>> scratch_;  // of each thread, [max_positions]
};

}  // namespace ferry
