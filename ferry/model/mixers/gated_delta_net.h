// Gated delta net: a recurrence instead of attention. Queries, keys and values pass a short
// convolution over the tokens before them; then each head of values has a matrix that forgets a
// part of itself with every token, learns what the token's key should give, and is asked by its
// query. What it keeps of a sequence does not grow.
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

struct GatedDeltaNetWeights final : MixerWeights {
  OwnedMatrix in;                // [H, channels + value_width]: queries, keys, values, gates
  OwnedMatrix rates;             // [H, 2 value_heads]: betas and decays
  std::vector<float> taps;       // [taps, channels]
  std::vector<float> log_rate;   // [value_heads]
  std::vector<float> rate_bias;  // [value_heads]
  std::vector<float> norm;       // [value_dim]
  OwnedMatrix output;            // [value_width, H]
};

/// Where a member of a group keeps what is its own: for each of its key heads the convolution's
/// last inputs and a matrix for each of its value heads.
struct DeltaShare {
  /// One key head, and those of its value heads that are this member's.
  struct Group {
    int key_head = 0;
    HeadRange values;
    std::int64_t inputs_at = 0;    ///< f32 [taps - 1, width]
    std::int64_t matrices_at = 0;  ///< f32 [values, key_dim, value_dim]
    std::int64_t width = 0;        ///< of one token's query, key and values
  };

  DeltaShare(const DeltaConfig& config, const GroupMember& member);

  std::vector<Group> groups;
  std::int64_t floats = 0;
  std::size_t bytes() const;
};

/// What the layers of a decoder use one after the other, sized for a step's tokens.
class GatedDeltaNetScratch {
 public:
  explicit GatedDeltaNetScratch(const MixerContext& context);

  /// The first layer to call it does the work.
  void begin_step(const MixerStep& step);

  const ModelConfig& config;
  const DeltaConfig& delta;
  const DType type;
  const int max_tokens;
  const std::int64_t in_width;  // channels + value_width
  TensorGroup& group;
  const DeltaShare share;
  ThreadPool& pool;
  const GemmScratch& gemm_scratch;
  const OutputProjection output;
  const std::vector<float> query_norm, key_norm;  // [key_dim]: make an RMS norm one of lengths
  std::vector<StepRun> runs;                      // of the step
  std::int64_t tokens = 0;
  const Buffer projected;  // f32 [tokens, in_width]
  const Buffer rates;      // f32 [tokens, 2 value_heads], as projected
  const Buffer betas;      // f32 [tokens, value_heads]
  const Buffer decays;     // f32 [tokens, value_heads]
  const Buffer heads_out;  // [tokens, value_width] of the activation type
  std::vector<Buffer> of_worker;

 private:
  std::uint64_t step_ = kNoStep;
};

/// One layer. Borrows its weights and what the context borrows. Threads: one at a time.
/// Numerics: all is f32 from the projections to the norm behind the recurrence; state too, and the
/// result of each head is rounded to the activation type. Tokens go one by one, so that neither the
/// cut of a prompt nor what else is in the step changes a bit; threads and members share out heads.
class GatedDeltaNet final : public Mixer {
 public:
  GatedDeltaNet(MixerContext& context, int layer, const GatedDeltaNetWeights& weights);

  StateSpec state() const override;
  void begin_step(const MixerStep& step) override;
  void forward(const RowsView& normed, const MutableRowsView& residual) override;
  /// All of a step's tokens: what forward() has written counts from now on. Fewer: they run again.
  void commit(std::span<const AcceptedTokens> sequences) override;

 private:
  using Run = StepRun;
  using Group = DeltaShare::Group;
  struct Place;

  void project(const RowsView& normed, std::int64_t tokens);
  void rates_of(std::int64_t token);
  void advance(const Run& run, const Group& group, bool wanted, int worker);
  void convolve(const Run& run, std::int64_t i, const Place& place) const;
  const float* input(const Run& run, std::int64_t i, const Place& place, int part) const;
  void keep_inputs(const Run& run, const Place& place) const;
  void finish(float* out, const float* gate, std::byte* to, const Place& place) const;

  const std::shared_ptr<GatedDeltaNetScratch> scratch_;
  const int layer_;
  const GatedDeltaNetWeights& weights_;
  std::vector<double> decay_rates_;  // [value_heads]
  Buffer normed_;                    // [tokens, H] of the activation type: the step's, for commit()
};

const MixerKind& gated_delta_net_kind();

}  // namespace ferry
