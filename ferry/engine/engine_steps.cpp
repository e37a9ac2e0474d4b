// The loop that all ranks run in step.
#include <algorithm>
#include <iterator>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/engine_impl.h"
#include "ferry/engine/logits_hash.h"

namespace ferry {

namespace {

/// How often a rank 0 without work looks whether its peers live.
constexpr std::chrono::milliseconds kIdleLook{50};
constexpr std::chrono::seconds kSourcesEvery{1};

}  // namespace

/// A record without a step is answered too: its buffer is free only then.
Engine::Impl::After Engine::Impl::run_step(const OnToken& on_token) {
  if (leads()) take_mail();
  const Clock::time_point begin = Clock::now();
  if (leads()) {
    plan_step();
    send_records();
  }
  StepRecord record = receive_record();
  const After after = record.stop         ? After::stop
                      : record.next_epoch ? After::next_epoch
                                          : After::step;
  const bool runs = after == After::step;
  StepResult own = runs ? run_record(std::move(record)) : StepResult{.step = step_, .tokens = {}};
  if (!runs || Clock::now() - told_sources_ >= kSourcesEvery) {
    told_sources_ = Clock::now();
    own.sources = members_->decoder.sparse_layers().source_stats();
  }
  members_->survivors.without_the_gone([&] { members_->link.send_result(own); });
  if (leads()) {
    receive_results();
    lose_groups();
    look_for_straggler();
    if (runs && members_->balancer) take_loads();
    if (runs) count_step(Clock::now() - begin);
    deliver(on_token);
  }
  if (runs) failures_ = 0;
  ++step_;
  return after;
}

StepRecord Engine::Impl::receive_record() {
  StepRecord record =
      members_->survivors.without_the_gone([this] { return members_->link.receive_record(); });
  FERRY_CHECK(record.step == step_, "expected the record of step {}, got {}", step_, record.step);
  members_->survivors.lose(record.gone);
  return record;
}

StepResult Engine::Impl::run_record(StepRecord record) {
  Survivors& survivors = members_->survivors;
  std::optional<Balancer>& balancer = members_->balancer;
  if (balancer)
    balancer->begin_step(record.gone.any() ? std::nullopt : std::optional(record.moves));
  StepResult result{.step = step_, .tokens = {}};
  try {
    result = sequences_.run_step(std::move(record));
  } catch (const LostTokens&) {
    if (!survivors.go_on()) throw;
    result.lost = true;
  }
  if (epochs_) answered_ = result;
  // Whatever ends in here, the step has given its tokens.
  sequences_.draft(result);
  if (epochs_) answered_->drafts = result.drafts;
  survivors.look();
  result.gone = survivors.gone();
  if (balancer) survivors.without_the_gone([&] { balancer->end_step(); });
  return result;
}

/// Comes back when there is a step to plan, or none will ever be, or ranks are to come or go.
void Engine::Impl::take_mail() {
  for (;;) {
    Inbox::Mail mail = inbox_.take();
    for (Admission& admission : mail.admissions) batcher_.enqueue(std::move(admission));
    std::size_t cancelled = 0;
    for (const std::uint64_t id : mail.cancelled) {
      cancelled += batcher_.cancel(id) ? 1 : 0;
      prompts_.erase(id);
      began_.erase(id);
    }
    inbox_.finished(cancelled);
    for (const Inbox::Task& task : mail.tasks) task();
    open_ = mail.open;
    if (!batcher_.idle() || !open_) return;
    while (!inbox_.wait(kIdleLook)) {
      members_->survivors.without_the_gone([this] { members_->transport.progress(); });
      lose_groups();
      if (wants_next_epoch()) return;
    }
  }
}

void Engine::Impl::plan_step() {
  const bool stop = batcher_.idle() && !open_;
  const bool next_epoch = !stop && wants_next_epoch();
  taken_.assign(static_cast<std::size_t>(groups()), stop || next_epoch);
  if (stop || next_epoch) {
    records_ = stop ? batcher_.plan_stop() : batcher_.plan_next_epoch();
    return;
  }
  records_ = batcher_.plan(pacer_.tokens());
  const MoveOrders moves = members_->balancer ? members_->balancer->orders() : MoveOrders{};
  for (StepRecord& record : records_) {
    record.moves = moves;
    for (const Admission& admission : record.admissions)
      began_.try_emplace(admission.id, Begun{.when = Clock::now()});
  }
  for (const PrefixReuse& reuse : batcher_.planned_reuse())
    if (const auto begun = began_.find(reuse.id); begun != began_.end())
      begun->second.cached_tokens = reuse.tokens;
}

void Engine::Impl::send_records() {
  Survivors& survivors = members_->survivors;
  for (StepRecord& record : records_) record.gone = survivors.gone();
  for (Rank r = 0; r < ranks_; ++r) {
    if (!survivors.lives(r)) continue;
    survivors.without_the_gone(
        [&] { members_->link.send_record(r, records_[static_cast<std::size_t>(r / tp_)]); });
  }
}

/// Of the first rank of a group, once for each step that was planned.
void Engine::Impl::take_result(Rank rank, StepResult result) {
  const auto group = static_cast<std::size_t>(rank / tp_);
  if (taken_[group]) return;
  taken_[group] = true;
  inbox_.finished(batcher_.finish_step(rank / tp_, result));
  results_.push_back(std::move(result));
}

void Engine::Impl::receive_results() {
  Survivors& survivors = members_->survivors;
  RankSet gone;
  for (Rank r = 0; r < ranks_; ++r) {
    std::optional<StepResult> result = survivors.without_the_gone([&] {
      return survivors.lives(r)
                 ? std::optional(members_->link.receive_result(r, step_, options_.timeout))
                 : std::nullopt;
    });
    if (!result) continue;
    gone |= result->gone;
    members_->waits.take(r, result->sources);
    if (speaks(r))
      take_result(r, std::move(*result));
    else
      check_same_tokens(r, *result);
  }
  survivors.lose(gone);
}

void Engine::Impl::look_for_straggler() {
  const std::optional<std::string> line =
      members_->waits.look(Clock::now(), members_->survivors.gone());
  if (line && options_.warn) options_.warn(*line);
}

void Engine::Impl::take_loads() {
  Balancer& balancer = *members_->balancer;
  members_->survivors.without_the_gone([&] { balancer.await_loads(); });
  balancer.take_loads(batcher_.planned_prompt_tokens() > 0);
}

/// What ran on ranks that are gone starts over on others.
void Engine::Impl::lose_groups() {
  const Survivors& survivors = members_->survivors;
  const std::size_t gone = survivors.gone().count();
  if (gone == members_->lost) return;
  std::size_t restarts = 0;
  std::string names;
  for (Rank r = 0; r < ranks_; ++r) {
    if (survivors.lives(r)) continue;
    restarts += batcher_.lose_group(r);
    names += fmt::format("{}{}", names.empty() ? "" : ", ", r);
  }
  stats_.ranks_lost += gone - std::exchange(members_->lost, gone);
  stats_.restarts += restarts;
  if (!options_.warn) return;
  options_.warn(fmt::format(
      "without rank {} from now on: {} of {} ranks go on, {} sequences start over on them",
      names,
      static_cast<std::size_t>(ranks_) - gone,
      ranks_,
      restarts));
}

/// With what the first rank of its group has just said.
void Engine::Impl::check_same_tokens(Rank rank, const StepResult& found) const {
  if (results_.empty()) return;  // of a record without a step
  const auto same = [](const TokenResult& a, const TokenResult& b) {
    return a.id == b.id && a.token == b.token && a.last == b.last;
  };
  FERRY_CHECK(std::ranges::equal(found.tokens, results_.back().tokens, same),
              "rank {} chose other tokens than rank {}, which holds the same sequences",
              rank,
              rank / tp_ * tp_);
}

void Engine::Impl::count_step(std::chrono::nanoseconds time) {
  ++stats_.steps;
  const std::uint64_t accepted = batcher_.draft_stats().accepted - stats_.accepted_tokens;
  stats_.accepted_tokens += accepted;
  pacer_.observe(batcher_.most_prompt_tokens(), batcher_.planned_decode_tokens(), time);
  if (batcher_.planned_prompt_tokens() > 0) {
    stats_.prefill_tokens += static_cast<std::uint64_t>(batcher_.planned_prompt_tokens());
    stats_.prefill_time += time;
  } else {
    stats_.decode_tokens += static_cast<std::uint64_t>(batcher_.planned_decode_tokens()) + accepted;
    stats_.decode_time += time;
  }
}

void Engine::Impl::deliver(const OnToken& on_token) {
  for (StepResult& result : std::exchange(results_, {})) deliver(result, on_token);
}

void Engine::Impl::deliver(StepResult& result, const OnToken& on_token) {
  for (PromptResult& part : result.prompts) keep(part);
  for (TokenResult& token : result.tokens) {
    TokenEvent event{.request = token.id,
                     .token = token.token,
                     .last = token.last,
                     .logits_sha256 = {},
                     .logprobs = std::move(token.logprobs),
                     .prompt_logprobs = {},
                     .began = {},
                     .cached_tokens = 0};
    if (const auto began = began_.find(token.id); began != began_.end()) {
      event.began = began->second.when;
      event.cached_tokens = began->second.cached_tokens;
      began_.erase(began);
    }
    if (const auto told = prompts_.find(token.id); told != prompts_.end()) {
      event.prompt_logprobs = std::move(told->second.logprobs);
      prompts_.erase(told);
    }
    if (token.last && options_.hash_logits) event.logits_sha256 = to_hex(token.logits_sha256);
    on_token(event);
  }
}

/// Until the prompt's end. One that started over is told again from its beginning.
void Engine::Impl::keep(PromptResult& part) {
  PromptResult& told = prompts_[part.id];
  if (part.position <= told.position || told.logprobs.empty()) {
    told = std::move(part);
    return;
  }
  FERRY_CHECK(part.position <= told.position + told.logprobs.size(),
              "request {} tells of its prompt from position {} on, but {} is next",
              part.id,
              part.position,
              told.position + told.logprobs.size());
  told.logprobs.resize(part.position - told.position);
  std::ranges::move(part.logprobs, std::back_inserter(told.logprobs));
}

}  // namespace ferry
