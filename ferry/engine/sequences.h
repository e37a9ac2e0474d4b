// The sequences that one rank runs: their ids, states and samplers. Turns a step's record into one
// call of the decoder and its logits into tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "ferry/engine/logits_chain.h"
#include "ferry/engine/logits_hash.h"
#include "ferry/engine/request.h"
#include "ferry/engine/step_record.h"
#include "ferry/model/decoder.h"
#include "ferry/state/kept_pages.h"
#include "ferry/state/sequence_state.h"

namespace ferry {

/// Threads: one at a time. Decoder and grammars are borrowed.
class Sequences {
 public:
  /// `grammars`: of the tokenizer; null where there is none.
  Sequences(Decoder& decoder, int max_context, bool hash_logits, Grammars* grammars);

  /// Collective, as Decoder::forward is. A draft's tokens run behind the one that its sequence
  /// knows; as long as each that is drawn is the draft's next, the row of that one gives another,
  /// drawn as it would be in a step of its own. What is not drawn never was. Keeps and forgets
  /// pages, drops and evicts as the record says, takes in its admissions, runs its tokens and
  /// samples where a sequence has come to its end; finished sequences leave. Where the decoder
  /// throws LostTokens, all that is done but the tokens have not run, and the next record may run
  /// them.
  StepResult run_step(StepRecord record);

  /// Collective, behind run_step(), also where that has lost its tokens: what its record asks the
  /// model to draft, of sequences that go on, goes into its result. Nothing where it asks for no
  /// pass. What fails here leaves the step as it is; where drafts lose tokens, there are none.
  void draft(StepResult& result);

  /// All of run_step() but its tokens, which do not run: nothing where that is done already.
  void apply(StepRecord& record);

  /// Goes on with the decoder of another epoch: of the same model, with a pool that lives on.
  void move_to(Decoder& decoder) { decoder_ = &decoder; }

 private:
  struct Sequence {
    Request request;
    std::vector<std::int32_t> ids;  ///< prompt, then what was generated
    SequenceState state;
    std::optional<LogitsHash> hash;
    LogitsChain processors;
    bool tells_prompt = false;  ///< log probabilities of its prompt are wanted still

    std::size_t generated() const { return ids.size() - request.prompt.size(); }

    TokenHistory history() const {
      const std::span<const std::int32_t> all(ids);
      return {.prompt = all.first(request.prompt.size()),
              .generated = all.subspan(request.prompt.size())};
    }
  };

  void keep_pages(const StepRecord& record);
  void admit(Admission admission);
  SequenceState new_state(const Request& request);
  void evict(std::uint64_t id);
  void plan_batch(const StepRecord& record);
  SequenceStep::Logits wanted_logits(const Sequence& sequence, std::size_t tokens) const;
  std::vector<PromptResult> read_prompts(const StepRecord& record, std::span<const float> logits);
  void draw_tokens(StepResult& result);
  void choose_tokens();
  TokenResult take_token(std::size_t i);
  void end(std::uint64_t id);
  bool finished(const Sequence& sequence) const;

  Decoder* decoder_;
  int max_context_;
  bool hash_logits_;
  Grammars* grammars_;
  Sampler sampler_;
  PagePool pages_;  // before those whose states lie in it
  KeptPages kept_{pages_};
  std::unordered_map<std::uint64_t, Sequence> sequences_;
  // Of those that the last step has finished: the next record says what of them is kept.
  std::unordered_map<std::uint64_t, SequenceState> ended_;
  std::optional<std::uint64_t> applied_;  // the last step whose orders are carried out
  std::vector<SequenceStep> batch_;
  std::vector<int> accepted_;               // of each of the batch's sequences
  std::vector<std::int32_t> drafted_runs_;  // tokens of those that have a draft

  /// A draft that the step's record asks for.
  struct AskedDraft {
    std::uint64_t id = 0;
    std::int32_t tokens = 0;
  };

  std::vector<AskedDraft> asked_;
  int passes_ = 0;  // of the layer that drafts

  /// A token of a prompt, and what speaks for it.
  struct PromptToken {
    std::span<const float> logits;
    std::int32_t token = 0;
    int top = 0;
    std::span<const std::int32_t> asked;
    Logprobs* to = nullptr;
  };

  /// A sequence that has come to the end of its tokens, and the next one.
  struct Choice {
    std::size_t place = 0;  ///< in the batch
    std::uint64_t id = 0;
    Sequence* sequence = nullptr;
    std::span<const float> logits;        ///< the model's
    std::span<const float> behind;        ///< those of the draft's tokens
    std::span<const std::int32_t> draft;  ///< what it and those after it may be
    std::optional<Logprobs> logprobs = {};
    bool done = false;
  };

  std::vector<PromptToken> prompt_tokens_;
  std::vector<Choice> choices_;
  std::vector<Draw> draws_;                    // of these, in their order
  std::vector<std::vector<float>> processed_;  // a row of logits for each, once it has processors
};

}  // namespace ferry
