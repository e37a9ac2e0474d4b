#include "ferry/engine/sequences.h"

#include <algorithm>
#include <span>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

Sequences::Sequences(Decoder& decoder, int max_context, bool hash_logits, Grammars* grammars)
    : decoder_(&decoder),
      max_context_(max_context),
      hash_logits_(hash_logits),
      grammars_(grammars),
      sampler_(decoder.pool()),
      pages_(decoder.state_layout()) {}

SequenceState Sequences::new_state(const Request& request) {
  return {pages_, most_positions(request, max_context_)};
}

void Sequences::keep_pages(const StepRecord& record) {
  for (const KeepOrder& keep : record.keeps) {
    const auto ended = ended_.find(keep.sequence);
    SequenceState& state =
        ended != ended_.end() ? ended->second : sequences_.at(keep.sequence).state;
    kept_.keep(keep.number, keep.before, keep.page, state);
  }
  ended_.clear();
  for (auto& [id, sequence] : sequences_) sequence.state.let_go();
  for (const std::uint64_t number : record.forgotten_windows) kept_.forget_windows(number);
  for (const std::uint64_t number : record.forgotten) kept_.forget(number);
  if (record.forget_all) kept_.clear();
}

void Sequences::admit(Admission admission) {
  SequenceState state = new_state(admission.request);
  Sequence sequence{
      .request = std::move(admission.request), .ids = {}, .state = std::move(state), .hash = {}};
  sequence.ids = sequence.request.prompt;
  sequence.ids.insert(sequence.ids.end(), admission.generated.begin(), admission.generated.end());
  if (hash_logits_) sequence.hash.emplace();
  // Where it has given tokens on another rank, that one has told the prompt's with the first.
  sequence.tells_prompt = sequence.request.prompt_logprobs_from && admission.generated.empty();
  sequence.processors =
      LogitsChain(sequence.request, admission.generated, {decoder_->config().vocab, grammars_});
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
void Sequences::choose_tokens() {
  draws_.resize(choices_.size());
  if (processed_.size() < choices_.size()) processed_.resize(choices_.size());
  const auto each = [&](auto work) {
    decoder_->pool().parallel_for(
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
  const auto asks = [](const Choice& choice) {
    return choice.sequence->request.top_logprobs.has_value();
  };
  if (std::none_of(choices_.begin(), choices_.end(), asks)) return;
  each([&](std::size_t i) {
    const Request& request = choices_[i].sequence->request;
    if (!request.top_logprobs) return;
    choices_[i].logprobs = logprobs_of(
        choices_[i].logits, draws_[i].token, *request.top_logprobs, request.logprob_ids);
  });
}

/// In rounds, each of which draws a token of every sequence that has given its draft so far: the
/// state of its processors is that of a step of its own, and nothing is ever rolled back.
void Sequences::draw_tokens(StepResult& result) {
  while (!choices_.empty()) {
    choose_tokens();
    for (std::size_t i = 0; i < choices_.size(); ++i) result.tokens.push_back(take_token(i));
    std::erase_if(choices_, [](const Choice& choice) { return choice.done; });
  }
}

TokenResult Sequences::take_token(std::size_t i) {
  Choice& choice = choices_[i];
  Sequence& sequence = *choice.sequence;
  TokenResult result{
      .id = choice.id, .token = draws_[i].token, .logprobs = std::move(choice.logprobs)};
  sequence.tells_prompt = false;
  sequence.ids.push_back(result.token);
  sequence.processors.advance(result.token);
  result.last = finished(sequence);
  if (result.last && sequence.hash) result.logits_sha256 = sequence.hash->finish();
  choice.done = result.last || choice.draft.empty() || choice.draft.front() != result.token;
  if (choice.done) return result;
  ++accepted_[choice.place];
  choice.draft = choice.draft.subspan(1);
  const std::size_t vocab = choice.logits.size();
  choice.logits = choice.behind.first(vocab);
  choice.behind = choice.behind.subspan(vocab);
  return result;
}

void Sequences::end(std::uint64_t id) {
  const auto found = sequences_.find(id);
  ended_.emplace(id, std::move(found->second.state));
  sequences_.erase(found);
}

SequenceStep::Logits Sequences::wanted_logits(const Sequence& sequence, std::size_t tokens) const {
  const auto first = static_cast<std::size_t>(sequence.state.length());
  const std::size_t end = first + tokens;
  // Logits of a token say how probable the next one is.
  if (sequence.tells_prompt && first + 1 < sequence.request.prompt.size() &&
      end >= first_prompt_logprob(sequence.request))
    return SequenceStep::Logits::all;
  return end == sequence.ids.size() ? SequenceStep::Logits::last : SequenceStep::Logits::none;
}

/// Shares the step's logits out: to the sequences that get a token, which become choices, and to
/// tokens of prompts. Returns what is told of these.
std::vector<PromptResult> Sequences::read_prompts(const StepRecord& record,
                                                  std::span<const float> logits) {
  const auto vocab = static_cast<std::size_t>(decoder_->config().vocab);
  std::vector<PromptResult> results;
  results.reserve(batch_.size());  // pointers into it are kept
  choices_.clear();
  prompt_tokens_.clear();
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    if (batch_[i].logits == SequenceStep::Logits::none) continue;
    const bool all = batch_[i].logits == SequenceStep::Logits::all;
    const std::size_t rows = all ? batch_[i].tokens.size() : 1;
    const std::span<const float> own = logits.first(rows * vocab);
    logits = logits.subspan(rows * vocab);
    Sequence& sequence = sequences_.at(record.runs[i].id);
    const std::span<const std::int32_t> draft = record.runs[i].draft;
    const auto end = static_cast<std::size_t>(sequence.state.length()) + batch_[i].tokens.size();
    if (end == sequence.ids.size() + draft.size()) {
      const std::span<const float> behind = own.last(draft.size() * vocab);
      choices_.push_back({.place = i,
                          .id = record.runs[i].id,
                          .sequence = &sequence,
                          .logits = own.first(own.size() - behind.size()).last(vocab),
                          .behind = behind,
                          .draft = draft});
    }
    if (!all || !draft.empty()) continue;
    const Request& request = sequence.request;
    const std::size_t begin = end - rows;
    const std::size_t from = std::max(begin + 1, first_prompt_logprob(request));
    const std::size_t to = std::min(end + 1, request.prompt.size());
    if (from >= to) continue;
    PromptResult& result = results.emplace_back();
    result = {.id = record.runs[i].id,
              .position = static_cast<std::uint32_t>(from),
              .logprobs = std::vector<Logprobs>(to - from)};
    for (std::size_t position = from; position < to; ++position)
      prompt_tokens_.push_back({.logits = own.subspan((position - 1 - begin) * vocab, vocab),
                                .token = request.prompt[position],
                                .top = request.top_logprobs.value_or(0),
                                .asked = request.logprob_ids,
                                .to = &result.logprobs[position - from]});
  }
  decoder_->pool().parallel_for(
      std::ssize(prompt_tokens_), 1, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t i = first; i < last; ++i) {
          const PromptToken& token = prompt_tokens_[static_cast<std::size_t>(i)];
          *token.to = logprobs_of(token.logits, token.token, token.top, token.asked);
        }
      });
  return results;
}

void Sequences::plan_batch(const StepRecord& record) {
  batch_.clear();
  accepted_.clear();
  drafted_runs_.clear();
  asked_.clear();
  passes_ = record.passes;
  std::size_t drafted = 0;
  for (const SequenceRun& run : record.runs)
    if (!run.draft.empty()) drafted += run.draft.size() + 1;
  drafted_runs_.reserve(drafted);  // spans of it are kept
  for (const SequenceRun& run : record.runs) {
    Sequence& sequence = sequences_.at(run.id);
    const auto first = static_cast<std::size_t>(sequence.state.length());
    const auto tokens = static_cast<std::size_t>(run.tokens);
    const std::size_t known = tokens - std::min(run.draft.size(), tokens);
    FERRY_CHECK(run.draft.empty() ? first + tokens <= sequence.ids.size()
                                  : known == 1 && first + known == sequence.ids.size(),
                "request {} was to run {} tokens behind {}, {} of a draft, but has {}",
                run.id,
                tokens,
                first,
                run.draft.size(),
                sequence.ids.size());
    SequenceStep step{.state = &sequence.state,
                      .tokens = std::span<const std::int32_t>(sequence.ids).subspan(first, known),
                      .logits = wanted_logits(sequence, known)};
    if (!run.draft.empty()) {
      const std::size_t begin = drafted_runs_.size();
      drafted_runs_.push_back(sequence.ids.back());
      drafted_runs_.insert(drafted_runs_.end(), run.draft.begin(), run.draft.end());
      step.tokens = std::span<const std::int32_t>(drafted_runs_).subspan(begin);
      step.logits = SequenceStep::Logits::all;
    }
    batch_.push_back(step);
    accepted_.push_back(static_cast<int>(known));
    if (run.drafts > 0) asked_.push_back({.id = run.id, .tokens = run.drafts});
  }
}

void Sequences::apply(StepRecord& record) {
  if (applied_ == record.step) return;
  applied_ = record.step;
  keep_pages(record);
  for (const std::uint64_t id : record.dropped) sequences_.erase(id);
  for (const std::uint64_t id : record.evicted) evict(id);
  for (Admission& admission : record.admissions) admit(std::move(admission));
  for (const BeginOrder& begin : record.begins)
    kept_.give(begin.number, begin.pages, sequences_.at(begin.sequence).state);
}

StepResult Sequences::run_step(StepRecord record) {
  apply(record);
  plan_batch(record);
  const std::span<const float> logits = decoder_->forward(batch_);
  StepResult result{.step = record.step, .tokens = {}, .prompts = {}};
  result.prompts = read_prompts(record, logits);
  draw_tokens(result);
  decoder_->commit(accepted_);
  for (const TokenResult& token : result.tokens)
    if (token.last) end(token.id);
  return result;
}

void Sequences::draft(StepResult& result) {
  if (passes_ == 0) return;
  std::vector<DraftRun> runs;
  std::vector<DraftResult> drafts;
  drafts.reserve(asked_.size());  // spans of them are kept
  for (const AskedDraft& asked : asked_) {
    if (result.lost) break;  // the others draft all the same
    const auto found = sequences_.find(asked.id);
    if (found == sequences_.end()) continue;  // that was its last token
    Sequence& sequence = found->second;
    DraftResult& draft = drafts.emplace_back();
    draft.id = asked.id;
    draft.tokens.resize(static_cast<std::size_t>(asked.tokens));
    runs.push_back({.state = &sequence.state, .token = sequence.ids.back(), .draft = draft.tokens});
  }
  try {
    decoder_->draft(runs, passes_);
    result.drafts = std::move(drafts);
  } catch (const LostTokens&) {
    // They were guesses.
  }
}

}  // namespace ferry
