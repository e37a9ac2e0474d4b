// The decoder: token ids in, logits out. Attention and dense layers run on the ranks that hold the
// tokens, one or a group that shares the work; every MoE layer is one exchange over all ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ferry/core/threads.h"
#include "ferry/model/config.h"
#include "ferry/model/decoder_options.h"
#include "ferry/model/sparse_layers.h"
#include "ferry/model/weights.h"
#include "ferry/state/sequence_state.h"
#include "ferry/transport.h"

namespace ferry {

/// The tokens of one sequence in one step, behind the ones its state holds.
struct SequenceStep {
  enum class Logits : std::uint8_t { none, last, all };

  SequenceState* state = nullptr;        ///< with room for the tokens
  std::span<const std::int32_t> tokens;  ///< ids, checked against the vocabulary by the caller
  Logits logits = Logits::last;          ///< for which of these tokens logits are wanted
};

/// A sequence for which tokens are drafted: behind those that its state holds comes `token`, and
/// behind that perhaps what is written to `draft`.
struct DraftRun {
  SequenceState* state = nullptr;  ///< of one position or more, with room for draft.size() more
  std::int32_t token = 0;          ///< checked as those of a step
  std::span<std::int32_t> draft;
};

/// One rank's decoder. Construction is collective. Threads: one at a time.
/// A token's logits are the same bits whatever else is in the step, however the prompt is cut into
/// steps, for any number of ranks, any tp and threads (per-expert-combine backends;
/// docs/numerics.md).
class Decoder {
 public:
  /// `dense`: shared by the thread ranks of one process, hence the shared_ptr. `experts`: what
  /// load_expert_weights gave this rank.
  Decoder(const ModelConfig& config,
          std::shared_ptr<const DenseWeights> dense,
          ExpertWeights experts,
          const DecoderOptions& options,
          Transport& transport,
          ThreadPool& pool);
  ~Decoder();

  /// Collective: all ranks call it the same number of times; a rank without tokens passes an empty
  /// batch. Ranks of one group pass the same batch, each with states of its own. Returns the wanted
  /// logits, f32 [wanted tokens, vocab] in order of the batch; valid until the next call. REQUIRES:
  /// at most max_tokens tokens; a state of state_layout() for each sequence, no further than the
  /// model's max_positions.
  ///
  /// No state advances before commit(): the batch may be run again, or another instead. Throws
  /// LostTokens when tokens lack an expert's result because a rank is gone and backends mask it;
  /// then nothing is there to commit.
  std::span<const float> forward(std::span<const SequenceStep> batch);

  /// Behind forward(): of each sequence of its batch, how many of its tokens, from the first on,
  /// are to stay; the others never were. REQUIRES: the batch's states are as forward() left them.
  void commit(std::span<const int> accepted);
  /// All of them.
  void commit();

  /// Drafts by the layer that predicts further tokens, each token from the one before it: the most
  /// probable one (of equal ones the lowest), or any where logits are not numbers. Collective: all
  /// ranks call it behind commit() with the same `passes`, which no draft exceeds; ranks of a group
  /// with the same runs. Leaves states as they were. Throws LostTokens as forward() does, where the
  /// drafts are worth nothing. REQUIRES: ModelConfig::draft_layers; at most max_tokens runs.
  void draft(std::span<const DraftRun> runs, int passes);

  /// What a sequence's state consists of on this rank.
  const StateLayout& state_layout() const;

  /// The experts that this rank holds, and where all ranks hold theirs. Layers without experts are
  /// known to it, too.
  SparseLayers& sparse_layers();
  const SparseLayers& sparse_layers() const;

  const ModelConfig& config() const;
  /// This rank's threads, for work between its calls.
  ThreadPool& pool();
  /// Where the time of forward() goes; stands still until it is started.
  StepClock& clock();
  /// Ranks that hold the same sequences as this one, itself included.
  int tp() const;
  /// Of hidden states: the type of the dense weights.
  DType activation_type() const;
  /// Of keys and values as they are kept.
  WireType kv_type() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
