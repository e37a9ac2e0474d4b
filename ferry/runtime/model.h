// A model, opened once and run on ranks: what the program, tests, benchmarks and embedding callers
// share. Prints nothing: what people may want to read comes by callbacks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ferry/core/threads.h"
#include "ferry/engine/engine.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/decoder.h"
#include "ferry/model/weights.h"
#include "ferry/runtime/model_options.h"
#include "ferry/text/grammars.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

/// What a model tells while it is opened and run; each may be empty.
struct ModelListener {
  std::function<void(const std::string& line)> info;  ///< on the thread that opens
  std::function<void(const std::string& line)> warn;  ///< from the engine of rank 0, on its thread
  /// Something begins to load: "dense weights", or "experts of rank 0", which stands for those of
  /// all ranks. The function that it returns hears how far that is, and is destroyed at the end. On
  /// the thread, and in the process, that loads.
  std::function<LoadProgress(std::string_view what)> loading;
};

/// A checkpoint as the launching process opens it, before there are ranks, so that a bad one gives
/// one line. Ranks read it, as threads or through the fork. Immutable once open. Threads: any;
/// starts none but while it loads, so that processes may be forked.
class Model {
 public:
  /// Opens the checkpoint and checks the options against it. Throws ConfigError or ModelError.
  static Model open(const ModelOptions& options, ModelListener listener = {});

  /// With the backend that was chosen, and with all that ranks must have alike in
  /// launch.agreement.
  const ModelOptions& options() const { return options_; }

  const ModelConfig& config() const { return checkpoint_.config(); }

  const Checkpoint& checkpoint() const { return checkpoint_; }

  /// Null when the checkpoint has none.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }

  /// The tokenizer; throws ModelError that says what misses it.
  const Tokenizer& need_tokenizer() const;

  int max_context() const { return max_context_; }

  const WeightChoice& weights() const { return weights_; }

  /// What rows are rounded to: as asked for, or as a packed checkpoint was.
  Activations activations() const {
    return weights_.int8_rows ? Activations::int8 : Activations::automatic;
  }

  /// How matrices are held, for people: "bf16", "bf16, q4_k, q6_k".
  const std::string& held_as() const { return held_as_; }

  /// Of keys and values as they are kept.
  WireType kv_type() const;

  /// Where experts lie at the start; a layer for each of the model's.
  const ExpertPlacement& experts() const { return experts_; }

  /// The text of ids without special tokens, none without a tokenizer. Ids that the model has but
  /// its tokenizer has not (padding of the vocabulary) give nothing.
  std::string text_of(std::span<const std::int32_t> ids) const;

  /// Starts the ranks of options().launch, binds them to their cores, and calls `body` on each with
  /// its decoder. Dense weights are loaded before there are ranks, once for all of this process.
  /// Returns and throws as run_ranks() does.
  int run(const std::function<int(Decoder&, Transport&)>& body) const;

  /// The same with an engine: calls `lead` on rank 0, which submits requests and calls Engine::run
  /// exactly once. Rank 0 may be another process: what it finds out it must pass on itself.
  int run_engine(const std::function<int(Engine&)>& lead) const;

  // Rank by rank, for a caller that has its transports and threads already.

  /// All but the routed experts, for every rank of this process to share.
  std::shared_ptr<const DenseWeights> load_dense() const;

  /// This rank's decoder, with the experts of its slots; collective. `dense`: of load_dense(); null
  /// loads what this rank computes with, and no more. Borrows the model, `transport` and `pool`.
  /// Throws ConfigError when the transport has another number of ranks than options().launch.
  Decoder decoder_on(Transport& transport,
                     ThreadPool& pool,
                     std::shared_ptr<const DenseWeights> dense = nullptr) const;

  /// What `rank` of so many holds: as `held` for next_decoder_on(), for a rank that foresees what
  /// it will be.
  ExpertWeights experts_of(Rank rank, int ranks, ThreadPool& pool) const;

  /// The decoder of this rank in the next epoch (membership.h), over however many ranks that is;
  /// collective. `held`: what SparseLayers::take_experts() of its last decoder gave, or nothing for
  /// a newcomer. `dense` as above; a rank that stays gives what it had. Experts lie as the options
  /// say for this number of ranks. Options are not compared: give the same agreement to join().
  Decoder next_decoder_on(Transport& transport,
                          ThreadPool& pool,
                          ExpertWeights held,
                          std::shared_ptr<const DenseWeights> dense = nullptr) const;

  /// An engine over it; collective. Measures the memory for keys and values where the options ask
  /// for that. Borrows both.
  Engine engine_on(Decoder& decoder, Transport& transport) const;

  /// The same for a rank that comes to others whose engines run already: what they have measured
  /// stays, and rank 0 alone needs to know it.
  Engine late_engine_on(Decoder& decoder, Transport& transport) const;

 private:
  Model(const ModelOptions& options, ModelListener listener, Checkpoint checkpoint);

  EngineOptions engine_options() const;
  void choose_backend();
  void agree();
  LoadProgress loading(std::string_view what) const;
  WeightChoice choice_of_experts() const;
  std::uint64_t mapped_bytes() const;
  ExpertHolder holder_of(Rank rank) const;
  std::shared_ptr<const DenseWeights> load_dense(const GroupMember& member, ThreadPool& pool) const;

  ModelOptions options_;
  ModelListener listener_;
  Checkpoint checkpoint_;
  // Both stay where they are when the model is moved.
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Grammars> grammars_;
  int max_context_;
  WeightChoice weights_;
  std::string held_as_;
  ExpertPlacement experts_;
};

}  // namespace ferry
