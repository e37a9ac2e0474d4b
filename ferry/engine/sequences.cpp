#include "ferry/engine/sequences.h"

#include <algorithm>
#include <span>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

Sequences::Sequences(Decoder& decoder, int max_context, bool hash_logits)
    : decoder_(decoder),
      max_context_(max_context),
      hash_logits_(hash_logits),
      sampler_(decoder.pool()),
      pages_(decoder.state_layout()) {}

SequenceState Sequences::new_state(const Request& request) {
  return {pages_, most_positions(request, max_context_)};
}

void Sequences::admit(Admission admission) {
  SequenceState state = new_state(admission.request);
  Sequence sequence{
      .request = std::move(admission.request), .ids = {}, .state = std::move(state), .hash = {}};
  sequence.ids = sequence.request.prompt;
  sequence.ids.insert(sequence.ids.end(), admission.generated.begin(), admission.generated.end());
  if (hash_logits_) sequence.hash.emplace();
  sequence.processors = LogitsChain(sequence.request, admission.generated, decoder_.config().vocab);
  sequences_.emplace(admission.id, std::move(sequence));
}

void Sequences::evict(std::uint64_t id) {
  Sequence& sequence = sequences_.at(id);
  sequence.state = new_state(sequence.request);  // the old one's pages are free again
}

bool Sequences::finished(const Sequence& sequence) const {
  const auto& stop_ids = sequence.request.stop_ids;
  return sequence.generated() >= static_cast<std::size_t>(sequence.request.max_new_tokens) ||
         sequence.ids.size() > static_cast<std::size_t>(max_context_) ||
         std::find(stop_ids.begin(), stop_ids.end(), sequence.ids.back()) != stop_ids.end();
}

/// Behind it the choices have their draws' tokens. Each sequence is one thread's, but for the
/// draws.
void Sequences::choose_tokens(std::span<const float> logits) {
  const auto vocab = static_cast<std::size_t>(decoder_.config().vocab);
  for (Choice& choice : choices_) {
    choice.logits = logits.first(vocab);
    logits = logits.subspan(vocab);
  }
  draws_.resize(choices_.size());
  if (processed_.size() < choices_.size()) processed_.resize(choices_.size());
  const auto each = [&](auto work) {
    decoder_.pool().parallel_for(
        std::ssize(choices_), 1, [&](std::int64_t begin, std::int64_t end, int) {
          for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
            work(i);
        });
  };
  each([&](std::size_t i) {
    const Choice& choice = choices_[i];
    Sequence& sequence = *choice.sequence;
    if (sequence.hash) sequence.hash->add(choice.logits);
    draws_[i] = {
        .logits = sequence.processors.apply(choice.logits, sequence.history(), processed_[i]),
        .options = &sequence.request.sampling,
        .index = sequence.generated()};
  });
  sampler_.sample(draws_);
  each([&](std::size_t i) {
    const std::optional<int> top = choices_[i].sequence->request.top_logprobs;
    if (top) choices_[i].logprobs = logprobs_of(choices_[i].logits, draws_[i].token, *top);
  });
}

TokenResult Sequences::take_token(std::size_t i) {
  Choice& choice = choices_[i];
  Sequence& sequence = *choice.sequence;
  TokenResult result{
      .id = choice.id, .token = draws_[i].token, .logprobs = std::move(choice.logprobs)};
  sequence.ids.push_back(result.token);
  sequence.processors.advance(result.token);
  result.last = finished(sequence);
  if (result.last && sequence.hash) result.logits_sha256 = sequence.hash->finish();
  if (result.last) sequences_.erase(choice.id);
  return result;
}

StepResult Sequences::run_step(StepRecord record) {
  for (const std::uint64_t id : record.dropped) sequences_.erase(id);
  for (const std::uint64_t id : record.evicted) evict(id);
  for (Admission& admission : record.admissions) admit(std::move(admission));

  batch_.clear();
  for (const SequenceRun& run : record.runs) {
    Sequence& sequence = sequences_.at(run.id);
    const auto first = static_cast<std::size_t>(sequence.state.length());
    const auto tokens = static_cast<std::size_t>(run.tokens);
    FERRY_CHECK(first + tokens <= sequence.ids.size(),
                "request {} was to run {} tokens behind {}, but has {}",
                run.id,
                tokens,
                first,
                sequence.ids.size());
    const bool to_the_end = first + tokens == sequence.ids.size();
    batch_.push_back(
        {.state = &sequence.state,
         .tokens = std::span<const std::int32_t>(sequence.ids).subspan(first, tokens),
         .logits = to_the_end ? SequenceStep::Logits::last : SequenceStep::Logits::none});
  }
  const std::span<const float> logits = decoder_.forward(batch_);
  decoder_.commit();

  choices_.clear();
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    if (batch_[i].logits == SequenceStep::Logits::none) continue;
    const std::uint64_t id = record.runs[i].id;
    choices_.push_back({.id = id, .sequence = &sequences_.at(id), .logits = {}, .logprobs = {}});
  }
  choose_tokens(logits);
  StepResult result{.step = record.step, .tokens = {}};
  for (std::size_t i = 0; i < choices_.size(); ++i) result.tokens.push_back(take_token(i));
  return result;
}

}  // namespace ferry
