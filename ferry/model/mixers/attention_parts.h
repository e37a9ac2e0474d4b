// What every kind of attention is made of: the tokens of a step and how far each turns, and the
// projection that ends in the residual stream.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/mixers/head_share.h"
#include "ferry/model/mixers/mixer.h"
#include "ferry/model/rope.h"

namespace ferry {

/// Tokens a thread takes at a time for work along rows.
inline constexpr std::int64_t kAttentionRowGrain = 4;

/// `rows` rows of `width` elements.
Buffer rows_buffer(std::int64_t rows, std::int64_t width, DType type);

inline std::ptrdiff_t row_bytes(std::int64_t width, DType type) {
  return width * static_cast<std::ptrdiff_t>(dtype_bytes(type));
}

inline std::byte* bytes_of(float* x) { return reinterpret_cast<std::byte*>(x); }

inline const std::byte* bytes_of(const float* x) { return reinterpret_cast<const std::byte*>(x); }

/// The taps of convolutions as tensors have them, [channels, taps], become [taps, channels].
void by_tap(std::vector<float>& taps, int num_taps);

/// The rotary angles of a step's tokens. Threads: turn() from several, begin_step() from one.
class StepAngles {
 public:
  StepAngles(const RopeOptions& options, int max_tokens, ThreadPool& pool);

  void begin_step(std::span<const TokenPlace> tokens);

  /// Turns one head of the step's token number `token` in place.
  void turn(float* head, std::int64_t token) const;

 private:
  ThreadPool& pool_;
  const Rope rope_;
  Buffer cos_, sin_;  // f32 [tokens, rope_.pairs()]
};

/// Queries that share each pass over their keys and values: some heads, all readers of the same
/// ones, of some tokens of one sequence.
struct QueryBlock {
  std::int64_t first_token = 0;
  std::int64_t tokens = 0;
  int first_head = 0;
  int heads = 0;

  std::int64_t queries() const { return tokens * heads; }

  std::int64_t token(std::int64_t query) const { return first_token + query / heads; }

  int head(std::int64_t query) const { return first_head + static_cast<int>(query % heads); }
};

/// A step's queries in blocks of up to kAttendQueries, smaller ones where threads would have none.
/// Which block a query is in changes no bit of its result. Threads: at() from several.
class QueryBlocks {
 public:
  /// Allocates for `max_tokens` tokens and `max_heads` heads.
  QueryBlocks(int max_tokens, int max_heads);

  /// For `tokens` and this rank's query heads, of which `readers` in a row share a key-value head.
  /// Of one sequence, up to `most_tokens` go into a block.
  void build(std::span<const TokenPlace> tokens,
             const HeadRange& own,
             int readers,
             int threads,
             std::int64_t most_tokens = kAttendQueries);

  std::int64_t size() const { return std::ssize(tokens_) * std::ssize(heads_); }

  /// All blocks of one head follow each other, and so find its keys in cache.
  QueryBlock at(std::int64_t i) const {
    return block(i % std::ssize(tokens_), i / std::ssize(tokens_));
  }

  /// The same in another order: all blocks of the same tokens follow each other.
  QueryBlock at_by_token(std::int64_t i) const {
    return block(i / std::ssize(heads_), i % std::ssize(heads_));
  }

 private:
  struct TokenBlock {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };

  QueryBlock block(std::int64_t tokens, std::int64_t heads) const;

  std::vector<TokenBlock> tokens_;
  std::vector<HeadRange> heads_;
};

/// How many blocks are worth a task: those of few positions are quicker than waking a thread.
/// `multiplies`: of one head at the longest of these positions.
std::int64_t attend_grain(std::int64_t multiplies);

/// What one thread needs for a block: results f32 [kAttendQueries, value_dim] and scores.
class AttendScratch {
 public:
  AttendScratch(std::int64_t value_dim, std::int64_t max_positions);

  float* out(std::int64_t query) const { return memory_.as<float>() + query * value_dim_; }

  /// `args` with scores for its queries.
  AttendArgs with_scores(AttendArgs args) const;

 private:
  std::int64_t value_dim_;
  std::int64_t stride_;  // between rows of scores
  Buffer memory_;
};

/// As the kernels read a stream of a sequence's state.
inline PagedRows paged(const StateRows& rows) { return {rows.pages, rows.offset, rows.stride}; }

inline constexpr int kPageShift = std::countr_zero(static_cast<unsigned>(kPagePositions));

/// Rows of all heads' results, of which each member of a group has filled in its own heads'.
struct HeadRows {
  MutableRowsView rows;
  int heads = 0;
  int kv_heads = 0;           ///< heads are dealt out as head_share() says
  std::int64_t head_dim = 0;  ///< of one head's result
};

/// The heads' results times the output matrix, added to the residual stream; all members of the
/// group come out with the same. Owns scratch for `max_tokens` tokens. Threads: one at a time.
class OutputProjection {
 public:
  OutputProjection(int max_tokens,
                   int hidden,
                   DType type,
                   TensorGroup& group,
                   ThreadPool& pool,
                   const GemmScratch& gemm_scratch);

  /// `heads`: of the activation type; `weights`: strips; `bias`: may be empty; `layer`: for
  /// messages.
  void add(int layer,
           const HeadRows& heads,
           std::int64_t tokens,
           std::span<const PackedMatrix> weights,
           const std::vector<float>& bias,
           const MutableRowsView& residual) const;

 private:
  int hidden_;
  DType type_;
  TensorGroup& group_;
  ThreadPool& pool_;
  const GemmScratch& gemm_scratch_;
  Buffer projected_;  // f32 [tokens, H]
};

}  // namespace ferry
