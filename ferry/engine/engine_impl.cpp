#include "ferry/engine/engine_impl.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

namespace {

int or_any(int limit) { return limit == 0 ? INT_MAX : limit; }

/// What a sequence keeps on all ranks of its group together, which is what is counted.
StateLayout layout_of_group(const Decoder& decoder) {
  return StateLayout(
      state_specs(decoder.config(), decoder.kv_type(), {}, decoder.activation_type()));
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
  return options.keep_prefixes && (layout.fixed_bytes() == 0 || layout.window_page_bytes() == 0) &&
         reuse_is_exact(options, decoder);
}

/// Where other bits were possible, a draft would show in what is chosen.
DraftOptions drafts_of(const EngineOptions& options, const Decoder& decoder) {
  check_drafts(options.drafts);
  FERRY_CHECK(!options.drafts.by_layer() || decoder.config().draft_layers > 0,
              "drafts by a layer that this decoder was made without");
  if (options.drafts.on() && !reuse_is_exact(options, decoder))
    fail<ConfigError>(
        "--speculate changes bits where ranks sum first and experts have replicas or move; take a "
        "backend that combines per expert (--moe-a2a-backend pplx), or leave one of them out");
  return options.drafts;
}

}  // namespace

Engine::Impl::Members::Members(const EngineOptions& options,
                               std::size_t record_bytes,
                               Decoder& own_decoder,
                               Transport& own_transport)
    : decoder(own_decoder),
      transport(own_transport),
      survivors(decoder,
                transport,
                decoder.sparse_layers().masks() && decoder.tp() == 1 && !options.hash_logits),
      link(transport,
           record_bytes,
           result_capacity(
               options.max_sequences_per_rank, options.max_tokens_per_step, transport.size())),
      waits(transport.size()) {
  if (options.balance.on() && decoder.config().sparse_layers() > 0)
    balancer.emplace(options.balance, decoder, transport, options.timeout);
}

Engine::Impl::Impl(const EngineOptions& options, Decoder& decoder, Transport& transport)
    : options_(options),
      max_context_(resolve_context(decoder.config(), options.max_context)),
      vocab_(decoder.config().vocab),
      tp_(decoder.tp()),
      rank_(transport.rank()),
      ranks_(transport.size()),
      layout_(layout_of_group(decoder)),
      sequences_(decoder, max_context_, options.hash_logits && speaks(rank_), options.grammars),
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
      inbox_(most_live()),
      pacer_(options.max_tokens_per_step),
      members_(std::in_place, options, record_bytes(), decoder, transport) {
  const bool both = layout_.fixed_bytes() > 0 && layout_.window_page_bytes() > 0;
  if (options.keep_prefixes && both && leads() && options_.warn)
    options_.warn("prefix cache: off, as the model has recurrent layers beside windows");
}

std::optional<std::uint64_t> Engine::Impl::submit(Request request) {
  check(request);
  return inbox().submit(std::move(request));
}

void Engine::Impl::check(const Request& request) const {
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
std::string Engine::Impl::beside_positions() const {
  const std::size_t beside = layout_.bytes_beside_pages();
  if (beside == 0) return "";
  const std::size_t each = layout_.bytes_per_position();
  return fmt::format(" and the memory of {} more (recurrent layers)", (beside + each - 1) / each);
}

Inbox& Engine::Impl::inbox() {
  FERRY_CHECK(leads(), "only rank 0 takes requests");
  return inbox_;
}

EngineStats Engine::Impl::stats() const {
  EngineStats stats = stats_;
  stats.requests_running = batcher_.running();
  stats.requests_waiting = batcher_.waiting();
  stats.kv_tokens = static_cast<std::int64_t>(batcher_.used_bytes() / layout_.bytes_per_position());
  stats.kv_idle_tokens =
      static_cast<std::int64_t>(batcher_.idle_bytes() / layout_.bytes_per_position());
  stats.prefix_asked_tokens = batcher_.prefix_stats().asked;
  stats.prefix_reused_tokens = batcher_.prefix_stats().reused;
  stats.drafted_tokens = batcher_.draft_stats().drafted;
  stats.evictions = batcher_.evictions();
  if (!members_) return stats;
  const SparseLayers& layers = members_->decoder.sparse_layers();
  const ExchangeStats exchanged = layers.exchange_stats();
  stats.exchange_bytes += exchanged.bytes_wire;
  stats.exchange_network_bytes += exchanged.bytes_network;
  stats.exchange_time += layers.exchange_time();
  stats.sources = members_->waits.counted();
  stats.straggler = members_->waits.straggler();
  stats.ranks = ranks_;
  return stats;
}

std::int64_t Engine::Impl::kv_capacity() const {
  const std::int64_t needed =
      static_cast<std::int64_t>(options_.max_sequences_per_rank) * max_context_;
  const std::int64_t of_group =
      options_.max_kv_tokens == 0 ? needed : std::min(needed, options_.max_kv_tokens);
  return of_group * (groups() - static_cast<int>(members_ ? members_->lost : 0));
}

bool Engine::Impl::forget_prefixes() {
  FERRY_CHECK(leads(), "only rank 0 knows what is kept");
  return batcher_.forget_prefixes();
}

/// Requests that run and wait at most; 0: any.
std::size_t Engine::Impl::most_live() const {
  if (options_.max_waiting == 0) return 0;
  const auto places = static_cast<std::size_t>(groups()) *
                      static_cast<std::size_t>(options_.max_sequences_per_rank);
  return std::min(places, static_cast<std::size_t>(or_any(options_.max_running))) +
         static_cast<std::size_t>(options_.max_waiting);
}

Balancer* Engine::Impl::balancer() {
  return members_ && members_->balancer ? &*members_->balancer : nullptr;
}

std::size_t Engine::Impl::record_bytes() const {
  return record_capacity(
      max_context_, options_.max_sequences_per_rank, options_.max_tokens_per_step);
}

}  // namespace ferry
