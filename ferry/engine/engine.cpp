#include "ferry/engine/engine.h"

#include <algorithm>
#include <climits>
#include <iterator>
#include <optional>
#include <unordered_map>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/batcher.h"
#include "ferry/engine/exchange_waits.h"
#include "ferry/engine/inbox.h"
#include "ferry/engine/logits_hash.h"
#include "ferry/engine/prompt_pacer.h"
#include "ferry/engine/sequences.h"
#include "ferry/engine/step_link.h"
#include "ferry/engine/survivors.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

namespace {

/// How often a rank 0 without work looks whether its peers live.
constexpr std::chrono::milliseconds kIdleLook{50};
constexpr std::chrono::seconds kSourcesEvery{1};

int or_any(int limit) { return limit == 0 ? INT_MAX : limit; }

/// What a sequence keeps on all ranks of its group together, which is what is counted.
StateLayout layout_of_group(const Decoder& decoder) {
  return StateLayout(state_specs(decoder.config(), decoder.activation_type()));
}

/// Of whole pages that fit; any number where there is no limit.
std::size_t state_bytes(const EngineOptions& options, const StateLayout& layout) {
  if (options.max_kv_tokens == 0) return SIZE_MAX;
  if (options.max_kv_tokens < kPagePositions) {
    fail<ConfigError>("{} positions for keys and values of a rank; at least {} are needed",
                      options.max_kv_tokens,
                      kPagePositions);
  }
  const auto positions =
      static_cast<std::size_t>(options.max_kv_tokens / kPagePositions * kPagePositions);
  const std::size_t each = layout.bytes_per_position();
  return positions > SIZE_MAX / each ? SIZE_MAX : positions * each;
}

/// Bits of a row depend on that row alone, or on where experts lie too.
bool reuse_is_exact(const EngineOptions& options, const Decoder& decoder) {
  const SparseLayers& layers = decoder.sparse_layers();
  if (!layers.sums_on_ranks()) return true;
  return !options.balance.rebalance.enabled && !layers.has_replicas();
}

bool keeps_prefixes(const EngineOptions& options,
                    const Decoder& decoder,
                    const StateLayout& layout) {
  return options.keep_prefixes && layout.fixed_bytes() == 0 && reuse_is_exact(options, decoder);
}

/// Where other bits were possible, a draft would show in what is chosen.
DraftOptions drafts_of(const EngineOptions& options, const Decoder& decoder) {
  check_drafts(options.drafts);
  if (options.drafts.on() && !reuse_is_exact(options, decoder))
    fail<ConfigError>(
        "--speculate changes bits where ranks sum first and experts have replicas or move; take a "
        "backend that combines per expert (--moe-a2a-backend pplx), or leave one of them out");
  return options.drafts;
}

std::size_t max_live(const EngineOptions& options, int groups) {
  if (options.max_waiting == 0) return 0;
  const auto places =
      static_cast<std::size_t>(groups) * static_cast<std::size_t>(options.max_sequences_per_rank);
  return std::min(places, static_cast<std::size_t>(or_any(options.max_running))) +
         static_cast<std::size_t>(options.max_waiting);
}

}  // namespace

int resolve_context(const ModelConfig& config, int wanted) {
  if (wanted < 0 || wanted > config.max_positions) {
    fail<ConfigError>("a context of {} positions is not possible; the model has 1..{}",
                      wanted,
                      config.max_positions);
  }
  return wanted == 0 ? config.max_positions : wanted;
}

class Engine::Impl {
 public:
  Impl(const EngineOptions& options, Decoder& decoder, Transport& transport)
      : options_(options),
        max_context_(resolve_context(decoder.config(), options.max_context)),
        vocab_(decoder.config().vocab),
        decoder_(decoder),
        transport_(transport),
        tp_(decoder.tp()),
        layout_(layout_of_group(decoder)),
        survivors_(decoder,
                   transport,
                   decoder.sparse_layers().masks() && decoder.tp() == 1 && !options.hash_logits),
        sequences_(decoder,
                   max_context_,
                   options.hash_logits && speaks(transport.rank()),
                   options.grammars),
        batcher_({.groups = groups(),
                  .max_sequences = options.max_sequences_per_rank,
                  .max_running = or_any(options.max_running),
                  .max_tokens = options.max_tokens_per_step,
                  .layout = layout_,
                  .state_bytes = state_bytes(options, layout_),
                  .record_bytes = record_bytes(),
                  .keep_prefixes = keeps_prefixes(options, decoder, layout_),
                  .max_context = max_context_,
                  .drafts = drafts_of(options, decoder)}),
        link_(transport,
              record_bytes(),
              result_capacity(
                  options.max_sequences_per_rank, options.max_tokens_per_step, transport.size())),
        inbox_(max_live(options, groups())),
        pacer_(options.max_tokens_per_step),
        waits_(transport.size()) {
    if (options.keep_prefixes && layout_.fixed_bytes() > 0 && leads() && options_.warn)
      options_.warn("prefix cache: off, as the model has recurrent layers");
    if (options.balance.on() && decoder.config().sparse_layers() > 0)
      balancer_.emplace(options.balance, decoder, transport, options.timeout);
  }

  std::optional<std::uint64_t> submit(Request request) {
    check(request);
    return inbox().submit(std::move(request));
  }

  void check(const Request& request) const {
    check_request(request, {vocab_, options_.grammars}, max_context_);
    const int wanted = most_positions(request, max_context_);
    if (batcher_.most_bytes(wanted) > state_bytes(options_, layout_)) {
      fail<ConfigError>(
          "prompt and new tokens may fill {} positions{}, but a rank has room for {}; ask for "
          "fewer tokens or raise --max-total-tokens",
          wanted,
          beside_positions(),
          options_.max_kv_tokens);
    }
  }

  /// What a sequence keeps beside its positions, for people, as positions; empty where it is
  /// nothing.
  std::string beside_positions() const {
    if (layout_.fixed_bytes() == 0) return "";
    const std::size_t each = layout_.bytes_per_position();
    return fmt::format(" and the memory of {} more (recurrent layers)",
                       (layout_.fixed_bytes() + each - 1) / each);
  }

  Inbox& inbox() {
    FERRY_CHECK(leads(), "only rank 0 takes requests");
    return inbox_;
  }

  void run(const std::function<void(const TokenEvent&)>& on_token) {
    try {
      while (run_step(on_token)) {
      }
    } catch (const TransportError& e) {
      throw TransportError(e.kind(), e.peer(), fmt::format("step {}: {}", step_, e.what()));
    }
  }

  EngineStats stats() const {
    EngineStats stats = stats_;
    stats.requests_running = batcher_.running();
    stats.requests_waiting = batcher_.waiting();
    stats.kv_tokens =
        static_cast<std::int64_t>(batcher_.used_bytes() / layout_.bytes_per_position());
    stats.kv_idle_tokens =
        static_cast<std::int64_t>(batcher_.idle_bytes() / layout_.bytes_per_position());
    stats.prefix_asked_tokens = batcher_.prefix_stats().asked;
    stats.prefix_reused_tokens = batcher_.prefix_stats().reused;
    stats.drafted_tokens = batcher_.draft_stats().drafted;
    stats.evictions = batcher_.evictions();
    const ExchangeStats exchanged = decoder_.sparse_layers().exchange_stats();
    stats.exchange_bytes = exchanged.bytes_wire;
    stats.exchange_network_bytes = exchanged.bytes_network;
    stats.exchange_time = decoder_.sparse_layers().exchange_time();
    stats.sources = waits_.counted();
    stats.straggler = waits_.straggler();
    return stats;
  }

  std::int64_t kv_capacity() const {
    const std::int64_t needed =
        static_cast<std::int64_t>(options_.max_sequences_per_rank) * max_context_;
    const std::int64_t of_group =
        options_.max_kv_tokens == 0 ? needed : std::min(needed, options_.max_kv_tokens);
    return of_group * (groups() - static_cast<int>(stats_.ranks_lost));
  }

  bool forget_prefixes() {
    FERRY_CHECK(leads(), "only rank 0 knows what is kept");
    return batcher_.forget_prefixes();
  }

  Balancer* balancer() { return balancer_ ? &*balancer_ : nullptr; }

 private:
  using Clock = std::chrono::steady_clock;

  /// Of a request that has given no token yet.
  struct Begun {
    Clock::time_point when;
    std::size_t cached_tokens = 0;
  };

  bool leads() const { return transport_.rank() == 0; }

  std::size_t record_bytes() const {
    return record_capacity(
        max_context_, options_.max_sequences_per_rank, options_.max_tokens_per_step);
  }

  int groups() const { return transport_.size() / tp_; }

  /// Whether the rank is the first of its group. All of a group run the same sequences to the same
  /// tokens; what this one says counts.
  bool speaks(Rank rank) const { return rank % tp_ == 0; }

  /// False when the record said that nothing is left to do. That one is answered too: its buffer is
  /// free only then.
  bool run_step(const std::function<void(const TokenEvent&)>& on_token) {
    if (leads()) take_mail();
    const Clock::time_point begin = Clock::now();
    if (leads()) send_records();
    StepRecord record = receive_record();
    const bool stop = record.stop;
    StepResult own = stop ? StepResult{.step = step_, .tokens = {}} : run_record(std::move(record));
    if (stop || Clock::now() - told_sources_ >= kSourcesEvery) {
      told_sources_ = Clock::now();
      own.sources = decoder_.sparse_layers().source_stats();
    }
    survivors_.without_the_gone([&] { link_.send_result(own); });
    if (leads()) {
      std::vector<StepResult> results = receive_results();
      lose_groups();
      look_for_straggler();
      if (!stop && balancer_) take_loads();
      if (!stop) count_step(Clock::now() - begin);
      for (StepResult& result : results) deliver(result, on_token);
    }
    ++step_;
    return !stop;
  }

  StepRecord receive_record() {
    StepRecord record = survivors_.without_the_gone([this] { return link_.receive_record(step_); });
    survivors_.lose(record.gone);
    return record;
  }

  StepResult run_record(StepRecord record) {
    if (balancer_)
      balancer_->begin_step(record.gone.any() ? std::nullopt : std::optional(record.moves));
    StepResult result{.step = step_, .tokens = {}};
    try {
      result = sequences_.run_step(std::move(record));
    } catch (const LostTokens&) {
      if (!survivors_.go_on()) throw;
      result.lost = true;
    }
    survivors_.look();
    result.gone = survivors_.gone();
    if (balancer_) survivors_.without_the_gone([this] { balancer_->end_step(); });
    return result;
  }

  /// Comes back when there is a step to plan, or none will ever be.
  void take_mail() {
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
      if (!batcher_.idle() || !mail.open) return;
      while (!inbox_.wait(kIdleLook)) {
        survivors_.without_the_gone([this] { transport_.progress(); });
        lose_groups();
      }
    }
  }

  void send_records() {
    const bool stop = batcher_.idle();
    std::vector<StepRecord> records = stop ? batcher_.plan_stop() : batcher_.plan(pacer_.tokens());
    if (balancer_ && !stop) {
      const MoveOrders moves = balancer_->orders();
      for (StepRecord& record : records) record.moves = moves;
    }
    for (StepRecord& record : records) {
      record.gone = survivors_.gone();
      for (const Admission& admission : record.admissions)
        began_.try_emplace(admission.id, Begun{.when = Clock::now()});
    }
    for (const PrefixReuse& reuse : batcher_.planned_reuse())
      if (const auto begun = began_.find(reuse.id); begun != began_.end())
        begun->second.cached_tokens = reuse.tokens;
    for (Rank r = 0; r < transport_.size(); ++r) {
      if (!survivors_.lives(r)) continue;
      survivors_.without_the_gone(
          [&] { link_.send_record(r, records[static_cast<std::size_t>(r / tp_)]); });
    }
  }

  std::vector<StepResult> receive_results() {
    std::vector<StepResult> results;
    RankSet gone;
    for (Rank r = 0; r < transport_.size(); ++r) {
      std::optional<StepResult> result = survivors_.without_the_gone([&] {
        return survivors_.lives(r) ? std::optional(link_.receive_result(r, step_, options_.timeout))
                                   : std::nullopt;
      });
      if (!result) continue;
      gone |= result->gone;
      waits_.take(r, result->sources);
      if (!speaks(r)) {
        check_same_tokens(r, *result, results.back());
        continue;
      }
      inbox_.finished(batcher_.finish_step(r / tp_, *result));
      results.push_back(std::move(*result));
    }
    survivors_.lose(gone);
    return results;
  }

  void look_for_straggler() {
    const std::optional<std::string> line = waits_.look(Clock::now(), survivors_.gone());
    if (line && options_.warn) options_.warn(*line);
  }

  void take_loads() {
    survivors_.without_the_gone([this] { balancer_->await_loads(); });
    balancer_->take_loads(batcher_.planned_prompt_tokens() > 0);
  }

  /// What ran on ranks that are gone starts over on others.
  void lose_groups() {
    const std::size_t gone = survivors_.gone().count();
    if (gone == stats_.ranks_lost) return;
    std::size_t restarts = 0;
    std::string names;
    for (Rank r = 0; r < transport_.size(); ++r) {
      if (survivors_.lives(r)) continue;
      restarts += batcher_.lose_group(r);
      names += fmt::format("{}{}", names.empty() ? "" : ", ", r);
    }
    stats_.ranks_lost = gone;
    stats_.restarts += restarts;
    if (!options_.warn) return;
    options_.warn(fmt::format(
        "without rank {} from now on: {} of {} ranks go on, {} sequences start over on them",
        names,
        static_cast<std::size_t>(transport_.size()) - gone,
        transport_.size(),
        restarts));
  }

  void check_same_tokens(Rank rank, const StepResult& found, const StepResult& expected) const {
    const auto same = [](const TokenResult& a, const TokenResult& b) {
      return a.id == b.id && a.token == b.token && a.last == b.last;
    };
    FERRY_CHECK(std::ranges::equal(found.tokens, expected.tokens, same),
                "rank {} chose other tokens than rank {}, which holds the same sequences",
                rank,
                rank / tp_ * tp_);
  }

  void count_step(std::chrono::nanoseconds time) {
    ++stats_.steps;
    const std::uint64_t accepted = batcher_.draft_stats().accepted - stats_.accepted_tokens;
    stats_.accepted_tokens += accepted;
    pacer_.observe(batcher_.most_prompt_tokens(), batcher_.planned_decode_tokens(), time);
    if (batcher_.planned_prompt_tokens() > 0) {
      stats_.prefill_tokens += static_cast<std::uint64_t>(batcher_.planned_prompt_tokens());
      stats_.prefill_time += time;
    } else {
      stats_.decode_tokens +=
          static_cast<std::uint64_t>(batcher_.planned_decode_tokens()) + accepted;
      stats_.decode_time += time;
    }
  }

  void deliver(StepResult& result, const std::function<void(const TokenEvent&)>& on_token) {
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
  void keep(PromptResult& part) {
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

  EngineOptions options_;
  int max_context_;
  int vocab_;
  Decoder& decoder_;
  Transport& transport_;
  int tp_;  // ranks of a group, which all run the same sequences
  const StateLayout layout_;
  Survivors survivors_;
  Sequences sequences_;
  Batcher batcher_;  // used on rank 0 only
  StepLink link_;
  Inbox inbox_;                     // used on rank 0 only
  PromptPacer pacer_;               // on rank 0 only
  ExchangeWaits waits_;             // on rank 0 only
  Clock::time_point told_sources_;  // to rank 0; at first long ago
  std::optional<Balancer> balancer_;
  EngineStats stats_;
  // On rank 0 only, of requests that have given no token yet:
  std::unordered_map<std::uint64_t, PromptResult> prompts_;
  std::unordered_map<std::uint64_t, Begun> began_;
  std::uint64_t step_ = 0;
};

Engine::Engine(const EngineOptions& options, Decoder& decoder, Transport& transport)
    : impl_(std::make_unique<Impl>(options, decoder, transport)) {}

Engine::~Engine() = default;

std::optional<std::uint64_t> Engine::submit(Request request) {
  return impl_->submit(std::move(request));
}

void Engine::check(const Request& request) const { impl_->check(request); }

void Engine::cancel(std::uint64_t request) { impl_->inbox().cancel(request); }

void Engine::post(std::function<void()> task) { impl_->inbox().post(std::move(task)); }

void Engine::open() { impl_->inbox().set_open(true); }

void Engine::close() { impl_->inbox().set_open(false); }

void Engine::run(const std::function<void(const TokenEvent&)>& on_token) { impl_->run(on_token); }

bool Engine::forget_prefixes() { return impl_->forget_prefixes(); }

EngineStats Engine::stats() const { return impl_->stats(); }

std::int64_t Engine::kv_capacity() const { return impl_->kv_capacity(); }

const Balancer* Engine::balancer() const { return impl_->balancer(); }

Balancer* Engine::balancer() { return impl_->balancer(); }

}  // namespace ferry
