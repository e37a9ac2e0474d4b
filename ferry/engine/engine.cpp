#include "ferry/engine/engine.h"

#include <optional>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/batcher.h"
#include "ferry/engine/logits_hash.h"
#include "ferry/engine/sequences.h"
#include "ferry/engine/step_link.h"

namespace ferry {

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
        transport_(transport),
        sequences_(decoder, max_context_, options.hash_logits),
        batcher_({.ranks = transport.size(),
                  .max_sequences = options.max_sequences_per_rank,
                  .max_tokens = options.max_tokens_per_step,
                  .record_bytes = record_capacity(max_context_, options.max_sequences_per_rank)}),
        link_(transport,
              record_capacity(max_context_, options.max_sequences_per_rank),
              result_capacity(options.max_sequences_per_rank)) {
    if (options.balance.on() && decoder.config().sparse_layers() > 0)
      balancer_.emplace(options.balance, decoder, transport, options.timeout);
  }

  std::uint64_t submit(Request request) {
    FERRY_CHECK(leads(), "only rank 0 takes requests");
    check_request(request, vocab_, max_context_);
    batcher_.enqueue(requests_, std::move(request));
    return requests_++;
  }

  void run(const std::function<void(const TokenEvent&)>& on_token) {
    try {
      while (run_step(on_token)) {
      }
    } catch (const TransportError& e) {
      throw TransportError(e.kind(), e.peer(), fmt::format("step {}: {}", step_, e.what()));
    }
  }

  const EngineStats& stats() const { return stats_; }

  const Balancer* balancer() const { return balancer_ ? &*balancer_ : nullptr; }

 private:
  using Clock = std::chrono::steady_clock;

  bool leads() const { return transport_.rank() == 0; }

  /// False when the record said that nothing is left to do. That one is answered too: its buffer is
  /// free only then.
  bool run_step(const std::function<void(const TokenEvent&)>& on_token) {
    const Clock::time_point begin = Clock::now();
    if (leads()) send_records();
    StepRecord record = link_.receive_record(step_);
    const bool stop = record.stop;
    link_.send_result(stop ? StepResult{.step = step_, .tokens = {}}
                           : run_record(std::move(record)));
    if (leads()) {
      const std::vector<StepResult> results = receive_results();
      if (!stop && balancer_) balancer_->take_loads(batcher_.planned_prompt_tokens() > 0);
      if (!stop) count_step(Clock::now() - begin);
      for (const StepResult& result : results) deliver(result, on_token);
    }
    ++step_;
    return !stop;
  }

  StepResult run_record(StepRecord record) {
    if (balancer_) balancer_->begin_step(record.moves);
    StepResult result = sequences_.run_step(std::move(record));
    if (balancer_) balancer_->end_step();
    return result;
  }

  void send_records() {
    const bool stop = batcher_.idle();
    std::vector<StepRecord> records = stop ? batcher_.plan_stop() : batcher_.plan();
    if (balancer_ && !stop) {
      const MoveOrders moves = balancer_->orders();
      for (StepRecord& record : records) record.moves = moves;
    }
    for (Rank r = 0; r < transport_.size(); ++r)
      link_.send_record(r, records[static_cast<std::size_t>(r)]);
  }

  std::vector<StepResult> receive_results() {
    std::vector<StepResult> results;
    for (Rank r = 0; r < transport_.size(); ++r) {
      results.push_back(link_.receive_result(r, step_, options_.timeout));
      batcher_.finish_step(r, results.back());
    }
    return results;
  }

  void count_step(std::chrono::nanoseconds time) {
    ++stats_.steps;
    if (batcher_.planned_prompt_tokens() > 0) {
      stats_.prefill_tokens += static_cast<std::uint64_t>(batcher_.planned_prompt_tokens());
      stats_.prefill_time += time;
    } else {
      stats_.decode_tokens += static_cast<std::uint64_t>(batcher_.planned_decode_tokens());
      stats_.decode_time += time;
    }
  }

  void deliver(const StepResult& result, const std::function<void(const TokenEvent&)>& on_token) {
    for (const TokenResult& token : result.tokens) {
      TokenEvent event{
          .request = token.id, .token = token.token, .last = token.last, .logits_sha256 = {}};
      if (token.last && options_.hash_logits) event.logits_sha256 = to_hex(token.logits_sha256);
      on_token(event);
    }
  }

  EngineOptions options_;
  int max_context_;
  int vocab_;
  Transport& transport_;
  Sequences sequences_;
  Batcher batcher_;  // used on rank 0 only
  StepLink link_;
  std::optional<Balancer> balancer_;
  EngineStats stats_;
  std::uint64_t step_ = 0;
  std::uint64_t requests_ = 0;
};

Engine::Engine(const EngineOptions& options, Decoder& decoder, Transport& transport)
    : impl_(std::make_unique<Impl>(options, decoder, transport)) {}

Engine::~Engine() = default;

std::uint64_t Engine::submit(Request request) { return impl_->submit(std::move(request)); }

void Engine::run(const std::function<void(const TokenEvent&)>& on_token) { impl_->run(on_token); }

const EngineStats& Engine::stats() const { return impl_->stats(); }

const Balancer* Engine::balancer() const { return impl_->balancer(); }

}  // namespace ferry
