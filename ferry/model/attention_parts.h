// What every kind of attention is made of: the tokens of a step and how far each turns, and the
// projection that ends in the residual stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/model/kv_cache.h"
#include "ferry/model/rope.h"
#include "ferry/moe/parallel_gemm.h"
#include "ferry/moe/tensor_group.h"

namespace ferry {

/// One token of a step: the sequence it belongs to and its absolute position there.
struct TokenPlace {
  KvCache* cache = nullptr;
  std::int32_t position = 0;
};

/// Tokens a thread takes at a time for work along rows.
inline constexpr std::int64_t kAttentionRowGrain = 4;

/// `rows` rows of `width` elements.
Buffer rows_buffer(std::int64_t rows, std::int64_t width, DType type);

inline std::ptrdiff_t row_bytes(std::int64_t width, DType type) {
  return width * static_cast<std::ptrdiff_t>(dtype_bytes(type));
}

/// The rotary angles of a step's tokens. Threads: turn() from several, begin_step() from one.
class StepAngles {
 public:
  StepAngles(const RopeOptions& options, int max_tokens);

  void begin_step(std::span<const TokenPlace> tokens, ThreadPool& pool);

  /// Turns one head of the step's token number `token` in place.
  void turn(float* head, std::int64_t token) const;

 private:
  const Rope rope_;
  Buffer cos_, sin_;  // f32 [tokens, rope_.pairs()]
};

/// How many of the attentions of single heads are worth a task: those of few positions are quicker
/// than waking a thread. `multiplies`: of one head at the longest of these positions.
std::int64_t attend_grain(std::int64_t multiplies);

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

  /// `heads`: of the activation type; `bias`: may be empty; `layer`: for messages.
  void add(int layer,
           const HeadRows& heads,
           std::int64_t tokens,
           const PackedMatrix& weights,
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
