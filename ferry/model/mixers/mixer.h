// A mixer is what lets the tokens of a sequence see each other: attention of some kind. Every layer
// has one, and the layers of a model may have different kinds. All that is known about a kind (its
// tensors, what it keeps of a sequence, what it computes) is answered here by the kind itself;
// docs/adding_a_model.md says how to add one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/model/config.h"
#include "ferry/model/tensor_table.h"
#include "ferry/state/sequence_state.h"
#include "ferry/state/state_spec.h"
#include "ferry/wire.h"

namespace ferry {

/// One token of a step: the sequence it belongs to and its absolute position there.
struct TokenPlace {
  SequenceState* state = nullptr;
  std::int32_t position = 0;
};

/// The tokens of one sequence in a step, and how many of them, from the first on, are to stay.
struct AcceptedTokens {
  SequenceState* state = nullptr;
  std::int64_t first = 0;  ///< of the step's tokens
  int tokens = 0;
  int accepted = 0;
};

/// The tokens of one step, those of one sequence in order of position and without gaps behind what
/// its state holds. Borrowed until the step's last layer. No two steps of a decoder have the same
/// number, so that what layers share is made ready once a step.
struct MixerStep {
  std::uint64_t number = 0;
  std::span<const TokenPlace> tokens;
};

/// The tokens of one sequence in a step.
struct StepRun {
  SequenceState* state = nullptr;
  std::int64_t first = 0;
  std::int64_t tokens = 0;
};

/// One for each sequence of the step, in its order, in place of what `runs` holds.
void find_runs(const MixerStep& step, std::vector<StepRun>& runs);

/// No step has this number.
inline constexpr std::uint64_t kNoStep = UINT64_MAX;

/// Throws BrokenContract where a step has more tokens than there is room for.
void check_room(const MixerStep& step, int max_tokens);

/// One layer's mixer: what lies between the norm before it and the residual stream. Threads: one at
/// a time. Ranks that hold the same tokens call the same functions in the same order.
class Mixer {
 public:
  virtual ~Mixer() = default;

  /// What it keeps of a sequence on this rank.
  virtual StateSpec state() const = 0;

  /// Before the first layer of a step.
  virtual void begin_step(const MixerStep& step) = 0;

  /// Adds what it makes of `normed` [tokens, H] to `residual` [tokens, H], both of the activation
  /// type, and writes the tokens' state behind what is committed.
  virtual void forward(const RowsView& normed, const MutableRowsView& residual) = 0;

  /// Behind the step, before its sequences' states advance: what was accepted of each. A step that
  /// another follows without it never was. What lies by position needs nothing: rows that were not
  /// accepted are written over.
  virtual void commit(std::span<const AcceptedTokens>) {}
};

/// What the mixers of one decoder are made with; borrowed by them.
struct MixerContext {
  const ModelConfig& config;
  DType type;        ///< of activations
  WireType kv_type;  ///< of keys and values as they are kept
  int max_tokens;    ///< of a step
  TensorGroup& group;
  ThreadPool& pool;
  const GemmScratch& gemm_scratch;  ///< for inputs of up to widest_input() elements
  /// What shared() has made, by its type.
  std::unordered_map<std::type_index, std::shared_ptr<void>> made = {};

  /// Scratch that all layers of one kind use one after the other: made for the first that asks, and
  /// owned by all of them.
  template <class Scratch>
  std::shared_ptr<Scratch> shared() {
    std::shared_ptr<void>& place = made[typeid(Scratch)];
    if (!place) place = std::make_shared<Scratch>(*this);
    return std::static_pointer_cast<Scratch>(place);
  }
};

/// What one layer's mixer does for one token, for the floors of benchmarks.
struct MixerWork {
  double weights = 0;   ///< numbers that the token meets
  double position = 0;  ///< multiply-adds for each position that it sees
};

/// A kind of mixer: one object without state for all layers that have it.
class MixerKind {
 public:
  virtual ~MixerKind() = default;

  /// As ModelConfig's layers name it and messages do.
  virtual std::string_view name() const = 0;

  /// What of this layer's config it does not implement, with the fields of config.json that ask for
  /// it; empty when nothing.
  virtual std::string_view unsupported(const ModelConfig& config, int layer) const = 0;

  /// Reads the table of a layer's tensors, and returns what was packed of them.
  virtual std::unique_ptr<MixerWeights> read(const ModelConfig& config,
                                             int layer,
                                             const TensorNames& names,
                                             TensorTable& table) const = 0;

  /// What a layer keeps of a sequence, on this member of a group; keys and values as `kv_type`.
  virtual StateSpec state(const ModelConfig& config,
                          int layer,
                          WireType kv_type,
                          const GroupMember& member) const = 0;

  /// Elements of the widest row that goes into a product, and of the widest that members gather.
  virtual std::int64_t widest_input(const ModelConfig& config) const = 0;
  virtual std::int64_t widest_gathered(const ModelConfig& config) const = 0;

  virtual MixerWork work(const ModelConfig& config) const = 0;

  /// What makes keys and values, for people.
  virtual std::string describe(const ModelConfig& config) const = 0;

  /// `weights`: what read() gave for this layer; borrowed.
  virtual std::unique_ptr<Mixer> make(MixerContext& context,
                                      int layer,
                                      const MixerWeights& weights) const = 0;
};

/// The kind that a layer of this model has.
const MixerKind& mixer_of(const ModelConfig& config, int layer);

/// Throws ModelError naming `file`, the layer, its mixer and what is not supported, where a layer's
/// config asks for something that its mixer does not implement.
void check_mixers(const ModelConfig& config, const std::string& file);

/// Each layer's state. Behind them, where a layer drafts, what it reads of the token before: the
/// last hidden state, of which rows of `activations` are kept for the next step.
std::vector<StateSpec> state_specs(const ModelConfig& config,
                                   WireType kv_type,
                                   const GroupMember& member = {},
                                   DType activations = DType::f32);

/// The last of these. REQUIRES: a layer drafts.
StateSpec hidden_state_spec(const ModelConfig& config, DType activations);

}  // namespace ferry
