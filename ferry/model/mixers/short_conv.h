// Gated short convolution (LFM2): each channel of a token is a sum over the last few tokens, with a
// gate before it and one behind. What it keeps of a sequence are the gated inputs of the tokens
// that the next one's sum reaches back to.
//
//   before, behind, x = in_proj of the token, [H] each
//   y = out_proj of behind * sum over taps of weight[tap] * (before * x of the token that far back)
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

struct ShortConvWeights final : MixerWeights {
  OwnedMatrix in;           // [H, 3 H]: gates before, gates behind, what is convolved
  std::vector<float> taps;  // [taps, H], the oldest token's first
  OwnedMatrix output;       // [H, H]
};

/// What the layers of a decoder use one after the other, sized for a step's tokens.
class ShortConvScratch {
 public:
  explicit ShortConvScratch(const MixerContext& context);

  /// The first layer to call it does the work.
  void begin_step(const MixerStep& step);

  const ModelConfig& config;
  const DType type;
  const int max_tokens;
  const std::int64_t hidden;
  TensorGroup& group;
  const int heads;        // channels are shared out in as many pieces
  const ColumnRange own;  // this member's channels
  ThreadPool& pool;
  const GemmScratch& gemm_scratch;
  const OutputProjection output;
  std::vector<StepRun> runs;  // of the step
  std::int64_t tokens = 0;
  const Buffer projected;    // f32 [tokens, 3 H]
  const Buffer out;          // [tokens, H] of the activation type
  std::vector<Buffer> sums;  // of each thread: f32 [own]

 private:
  std::uint64_t step_ = kNoStep;
};

/// One layer. Borrows its weights and what the context borrows. Threads: one at a time.
/// Numerics: all is f32 from the projection on, the state too; what goes into the output projection
/// is rounded to the activation type. Sums go from the oldest token on, each product and sum
/// rounded. Members of a group share out channels.
class ShortConv final : public Mixer {
 public:
  ShortConv(MixerContext& context, int layer, const ShortConvWeights& weights);

  StateSpec state() const override;
  void begin_step(const MixerStep& step) override;
  void forward(const RowsView& normed, const MutableRowsView& residual) override;
  /// Where not all tokens count: keeps what the last that does leaves behind.
  void commit(std::span<const AcceptedTokens> sequences) override;

 private:
  using Run = StepRun;

  void gate(std::int64_t token);
  void convolve(const Run& run, std::int64_t i, float* sums);
  void keep(const Run& run, std::int64_t tokens);
  const float* input(const Run& run, std::int64_t i) const;

  const std::shared_ptr<ShortConvScratch> scratch_;
  const int layer_;
  const ShortConvWeights& weights_;
  const Buffer inputs_;  // f32 [tokens, own]: the step's, gated, for commit() too
};

const MixerKind& short_conv_kind();

}  // namespace ferry
