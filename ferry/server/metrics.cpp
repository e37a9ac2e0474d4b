#include "ferry/server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cmath>
#include <functional>
#include <sstream>
#include <utility>
#include <vector>

#include "ferry/version.h"

namespace ferry {

namespace {

namespace prom = prometheus;

/// Prometheus adds one for all that is longer.
prom::Histogram::BucketBoundaries seconds_buckets() {
  prom::Histogram::BucketBoundaries bounds;
  for (std::size_t i = 0; i + 1 < TimeCounts::kBuckets; ++i) bounds.push_back(TimeCounts::edge(i));
  return bounds;
}

/// Lengths in tokens, a bucket for each factor of two.
prom::Histogram::BucketBoundaries token_buckets() {
  prom::Histogram::BucketBoundaries bounds;
  for (int i = 0; i <= 20; ++i) bounds.push_back(std::exp2(i));
  return bounds;
}

/// The upper edge of the bucket that holds the quantile.
double quantile(const prom::Histogram& histogram, double q) {
  const auto data = histogram.Collect().histogram;
  if (data.sample_count == 0) return 0;
  const double wanted = q * static_cast<double>(data.sample_count);
  double last = 0;
  for (const auto& bucket : data.bucket) {
    if (std::isfinite(bucket.upper_bound)) last = bucket.upper_bound;
    if (static_cast<double>(bucket.cumulative_count) >= wanted) break;
  }
  return last;
}

}  // namespace

class Metrics::Impl {
 public:
  prom::Counter& counter(const char* name, const char* help) {
    return prom::BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }

  prom::Histogram& histogram(const char* name,
                             const char* help,
                             const prom::Histogram::BucketBoundaries& bounds = seconds_buckets()) {
    return prom::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, bounds);
  }

  prom::Gauge& gauge(const char* name, const char* help) {
    return prom::BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }

  /// The engine counts these itself; they only grow.
  static void raise_to(prom::Counter& counter, double value) {
    if (value > counter.Value()) counter.Increment(value - counter.Value());
  }

  History history;
  prom::Registry registry;
  prom::Counter& finished = counter("ferry_requests_finished_total",
                                    "Requests answered to the end, also by a stop string");
  prom::Family<prom::Counter>& reasons = prom::BuildCounter()
                                             .Name("ferry_request_success_total")
                                             .Help("The same by what ended them: stop, length")
                                             .Register(registry);
  prom::Counter& stopped = reasons.Add({{"finished_reason", "stop"}});
  prom::Counter& full = reasons.Add({{"finished_reason", "length"}});
  prom::Family<prom::Counter>& answers = prom::BuildCounter()
                                             .Name("ferry_http_responses_total")
                                             .Help("Answers by route and status")
                                             .Register(registry);
  prom::Counter& cancelled = counter("ferry_requests_cancelled_total",
                                     "Requests whose client went away, or that were aborted");
  prom::Counter& refused = counter("ferry_requests_refused_total", "Requests refused for overload");
  prom::Counter& prompt = counter("ferry_prompt_tokens_total", "Tokens of prompts");
  prom::Counter& generated = counter("ferry_generation_tokens_total", "Tokens generated");
  prom::Counter& steps = counter("ferry_steps_total", "Steps that all ranks ran");
  prom::Counter& prefix_asked = counter("ferry_prefix_cache_queries_total",
                                        "Tokens of prompts that were looked for among kept pages");
  prom::Counter& prefix_reused =
      counter("ferry_prefix_cache_hits_total",
              "Of ferry_prefix_cache_queries_total, found: they did not run again");
  prom::Counter& drafted = counter("ferry_drafted_tokens_total",
                                   "Tokens that ran since they might come next (--speculate)");
  prom::Counter& accepted =
      counter("ferry_accepted_tokens_total", "Of ferry_drafted_tokens_total, those that stayed");
  prom::Counter& evictions =
      counter("ferry_evictions_total", "Sequences that started over for want of KV pages");
  prom::Counter& exchange_bytes =
      counter("ferry_all_to_all_bytes_total", "Payload that left or entered the memory of rank 0");
  prom::Counter& exchange_network_bytes =
      counter("ferry_all_to_all_network_bytes_total",
              "Of ferry_all_to_all_bytes_total, what left for another host");
  prom::Counter& exchange_seconds =
      counter("ferry_all_to_all_seconds_total",
              "Time of rank 0 in dispatch and combine, waits for other ranks included");
  prom::Counter& ranks_lost =
      counter("ferry_ranks_lost_total", "Ranks that died and that the others go on without");
  prom::Counter& restarts =
      counter("ferry_restarts_total", "Sequences that started over because their rank was lost");
  prom::Histogram& first_token =
      histogram("ferry_time_to_first_token_seconds", "From the request to its first token");
  prom::Histogram& next_token =
      histogram("ferry_inter_token_latency_seconds", "From a token to the next of its request");
  prom::Histogram& whole =
      histogram("ferry_request_duration_seconds", "From the request to its last token");
  prom::Histogram& queue =
      histogram("ferry_request_queue_seconds", "From the request to its first step");
  prom::Histogram& prompt_lengths = histogram(
      "ferry_request_prompt_tokens", "Prompt tokens of finished requests", token_buckets());
  prom::Histogram& output_lengths = histogram(
      "ferry_request_generation_tokens", "Tokens that finished requests got", token_buckets());
  prom::Gauge& running = gauge("ferry_requests_running", "Requests that run now");
  prom::Gauge& members = gauge("ferry_ranks", "Ranks of the group");
  prom::Gauge& epoch =
      gauge("ferry_epoch", "Of the group: how often ranks have come or gone (--elastic)");
  prom::Gauge& waiting = gauge("ferry_requests_waiting", "Requests that wait for a place");
  prom::Gauge& kv_used = gauge("ferry_kv_tokens", "Positions of keys and values that are held");
  prom::Gauge& kv_idle =
      gauge("ferry_kv_idle_tokens", "Beside ferry_kv_tokens, kept for prompts to come");
  prom::Gauge& kv_capacity = gauge("ferry_kv_capacity_tokens", "Positions that may be held");
  prom::Gauge& prefill_rate = gauge("ferry_prefill_tokens_per_second", "Over all prefill steps");
  prom::Gauge& decode_rate = gauge("ferry_decode_tokens_per_second", "Over all decode steps");
  prom::Family<prom::Gauge>& balance =
      prom::BuildGauge()
          .Name("ferry_expert_balancedness")
          .Help("Mean over max of the ranks' rows in the window, by sparse layer")
          .Register(registry);
  std::vector<prom::Gauge*> balance_of_layer;  // what the family has now
  prom::Family<prom::Counter>& waits =
      prom::BuildCounter()
          .Name("ferry_exchange_wait_seconds_total")
          .Help("Time that a rank's exchanges waited in which this source was the one waited for")
          .Register(registry);
  prom::Family<prom::Counter>& rows =
      prom::BuildCounter()
          .Name("ferry_exchange_rows_received_total")
          .Help("Rows that a rank's experts got from this source: one for each (token, slot)")
          .Register(registry);
  prom::Gauge& straggler =
      gauge("ferry_exchange_straggler_rank",
            "The rank that all others waited for in the last 30 s; -1 where there is none");
  std::vector<prom::Counter*> waits_of_pair;  // [R][R], rank and then source
  std::vector<prom::Counter*> rows_of_pair;

  std::uint64_t epoch_of_pairs = 0;

  void set_sources(const std::vector<SourceStats>& sources, std::uint64_t now);
};

/// Ranks of another epoch are others: their counters begin anew, as those of a process would that
/// was started again.
void Metrics::Impl::set_sources(const std::vector<SourceStats>& sources, std::uint64_t now) {
  if (std::exchange(epoch_of_pairs, now) != now) {
    for (prom::Counter* counter : waits_of_pair) waits.Remove(counter);
    for (prom::Counter* counter : rows_of_pair) rows.Remove(counter);
    waits_of_pair.clear();
    rows_of_pair.clear();
  }
  const auto ranks = static_cast<std::size_t>(std::lround(std::sqrt(sources.size())));
  for (std::size_t pair = waits_of_pair.size(); pair < sources.size(); ++pair) {
    const prom::Labels labels{{"rank", std::to_string(pair / ranks)},
                              {"source", std::to_string(pair % ranks)}};
    waits_of_pair.push_back(&waits.Add(labels));
    rows_of_pair.push_back(&rows.Add(labels));
  }
  for (std::size_t pair = 0; pair < sources.size(); ++pair) {
    raise_to(*waits_of_pair[pair], static_cast<double>(sources[pair].wait_ns()) * 1e-9);
    raise_to(*rows_of_pair[pair], static_cast<double>(sources[pair].rows_received));
  }
}

Metrics::Metrics(const std::string& model) : impl_(std::make_unique<Impl>()) {
  prom::BuildGauge()
      .Name("ferry_info")
      .Help("What is served")
      .Register(impl_->registry)
      .Add({{"model_name", model}, {"version", std::string(version())}})
      .Set(1);
}

Metrics::~Metrics() = default;

void Metrics::prompt_tokens(std::size_t tokens) {
  impl_->prompt.Increment(static_cast<double>(tokens));
  impl_->history.accepted();
}

void Metrics::token(bool first, double since) {
  impl_->generated.Increment();
  (first ? impl_->first_token : impl_->next_token).Observe(since);
  impl_->history.token(first, since);
}

void Metrics::queued(double seconds) {
  impl_->queue.Observe(seconds);
  impl_->history.queued(seconds);
}

void Metrics::ended(const EndedRequest& request) {
  impl_->history.ended();
  if (request.ending == EndedRequest::Ending::cancelled) return impl_->cancelled.Increment();
  impl_->finished.Increment();
  (request.ending == EndedRequest::Ending::stop ? impl_->stopped : impl_->full).Increment();
  impl_->whole.Observe(request.seconds);
  impl_->prompt_lengths.Observe(static_cast<double>(request.prompt_tokens));
  impl_->output_lengths.Observe(request.tokens);
}

void Metrics::answered(const std::string& route, int status) {
  impl_->answers.Add({{"code", std::to_string(status)}, {"route", route}}).Increment();
  impl_->history.answered(status);
}

void Metrics::refused() { impl_->refused.Increment(); }

double Metrics::first_token_quantile(double q) const { return quantile(impl_->first_token, q); }

double Metrics::next_token_quantile(double q) const { return quantile(impl_->next_token, q); }

double Metrics::generated_tokens() const { return impl_->generated.Value(); }

const History& Metrics::history() const { return impl_->history; }

std::string Metrics::text(const EngineState& state) {
  const EngineStats& stats = state.stats;
  const auto rate = [](std::uint64_t tokens, std::chrono::nanoseconds time) {
    const double seconds = std::chrono::duration<double>(time).count();
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  impl_->running.Set(static_cast<double>(stats.requests_running));
  impl_->waiting.Set(static_cast<double>(stats.requests_waiting));
  impl_->members.Set(stats.ranks);
  impl_->epoch.Set(static_cast<double>(stats.epoch));
  impl_->kv_used.Set(static_cast<double>(stats.kv_tokens));
  impl_->kv_idle.Set(static_cast<double>(stats.kv_idle_tokens));
  impl_->kv_capacity.Set(static_cast<double>(state.kv_capacity));
  impl_->prefill_rate.Set(rate(stats.prefill_tokens, stats.prefill_time));
  impl_->decode_rate.Set(rate(stats.decode_tokens, stats.decode_time));
  // Absent where nothing is counted: any number would be a statement.
  if (state.balancedness.empty())
    for (prom::Gauge* gauge : std::exchange(impl_->balance_of_layer, {}))
      impl_->balance.Remove(gauge);
  for (std::size_t layer = 0; layer < state.balancedness.size(); ++layer) {
    prom::Gauge& gauge = impl_->balance.Add({{"layer", std::to_string(layer)}});
    gauge.Set(state.balancedness[layer]);
    if (layer == impl_->balance_of_layer.size()) impl_->balance_of_layer.push_back(&gauge);
  }
  Impl::raise_to(impl_->steps, static_cast<double>(stats.steps));
  Impl::raise_to(impl_->prefix_asked, static_cast<double>(stats.prefix_asked_tokens));
  Impl::raise_to(impl_->prefix_reused, static_cast<double>(stats.prefix_reused_tokens));
  Impl::raise_to(impl_->drafted, static_cast<double>(stats.drafted_tokens));
  Impl::raise_to(impl_->accepted, static_cast<double>(stats.accepted_tokens));
  Impl::raise_to(impl_->evictions, static_cast<double>(stats.evictions));
  Impl::raise_to(impl_->exchange_bytes, static_cast<double>(stats.exchange_bytes));
  Impl::raise_to(impl_->exchange_network_bytes, static_cast<double>(stats.exchange_network_bytes));
  Impl::raise_to(impl_->exchange_seconds,
                 std::chrono::duration<double>(stats.exchange_time).count());
  Impl::raise_to(impl_->ranks_lost, static_cast<double>(stats.ranks_lost));
  Impl::raise_to(impl_->restarts, static_cast<double>(stats.restarts));
  impl_->set_sources(stats.sources, stats.epoch);
  impl_->straggler.Set(stats.straggler);
  std::ostringstream out;
  prom::TextSerializer().Serialize(out, impl_->registry.Collect());
  return out.str();
}

}  // namespace ferry
