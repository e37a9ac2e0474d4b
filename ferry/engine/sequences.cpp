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

TokenResult Sequences::choose_token(std::uint64_t id,
                                    Sequence& sequence,
                                    std::span<const float> logits) {
  if (sequence.hash) sequence.hash->add(logits);
  TokenResult result{.id = id};
  const Request& request = sequence.request;
  result.token = sampler_.sample(sequence.processors.apply(logits, sequence.history(), processed_),
                                 request.sampling,
                                 sequence.generated());
  if (request.top_logprobs)
    result.logprobs = logprobs_of(logits, result.token, *request.top_logprobs);
  sequence.ids.push_back(result.token);
  sequence.processors.advance(result.token);
  result.last = finished(sequence);
  if (result.last && sequence.hash) result.logits_sha256 = sequence.hash->finish();
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
  std::span<const float> logits = decoder_.forward(batch_);
  decoder_.commit();

  StepResult result{.step = record.step, .tokens = {}};
  const auto vocab = static_cast<std::size_t>(decoder_.config().vocab);
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    if (batch_[i].logits == SequenceStep::Logits::none) continue;
    const std::uint64_t id = record.runs[i].id;
    const auto sequence = sequences_.find(id);
    result.tokens.push_back(choose_token(id, sequence->second, logits.first(vocab)));
    logits = logits.subspan(vocab);
    if (result.tokens.back().last) sequences_.erase(sequence);
  }
  return result;
}

}  // namespace ferry
