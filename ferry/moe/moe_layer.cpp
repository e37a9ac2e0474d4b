#include "ferry/moe/moe_layer.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/timed.h"
#include "ferry/exchange/chunks.h"
#include "ferry/exchange/compatibility.h"

namespace ferry {

/// The path of a token through one MoE layer. (With two lanes, half of the tokens are on their way
/// while the experts compute the other half.)
void MoeLayer::forward_exchange(const RowsView& hidden, int tokens, int chunks, float* out) {
  MoeContext& c = context_;
  const auto lanes = c.split(tokens);
  for (const auto& lane : lanes) {
    route(hidden.from(lane->first), *lane);
    placement_.place(lane->experts, c.options_.router.topk, lane->slots, turn_++);
    const Timed timed(c.exchange_time_);
    lane->dispatcher.dispatch_send({.rows = hidden.from(lane->first),
                                    .type = c.options_.dtype,
                                    .tokens = lane->tokens,
                                    .slots = lane->slots,
                                    .weights = lane->result_weights,
                                    .row_weights = lane->weights,
                                    .chunks = chunks,
                                    .layer = index_});
  }
  const bool has_shared = run_shared_expert(hidden, tokens, out);  // hides the wire
  for (const auto& lane : lanes) {
    c.share_masks();
    const Timed timed(c.exchange_time_);
    std::chrono::nanoseconds experts{};
    lane->dispatcher.dispatch_recv([&](const ExpertRows& rows) {
      const Timed timed_experts(experts);
      for (std::size_t slot = 0; slot < slot_rows_.size(); ++slot)
        slot_rows_[slot] += rows.counts[slot];
      c.experts_.run(rows, weights_.local);
    });
    lane->dispatcher.combine_send();
    c.exchange_time_ -= experts;
  }
  for (const auto& lane : lanes) {
    c.share_masks();
    const Timed timed(c.exchange_time_);
    lane->dispatcher.combine_recv({.weights = lane->result_weights,
                                   .rows = c.f32_rows(out).from(lane->first),
                                   .accumulate = has_shared});
    c.note_losses(lane->dispatcher, index_);
  }
}

void MoeLayer::forward(const RowsView& hidden, int tokens, float* out) {
  const FlushDenormals flush;
  const DispatcherOptions& options = context_.options_.dispatcher;
  for_each_chunk(context_.lanes_.front()->dispatcher,
                 options.max_tokens,
                 tokens,
                 [&](int first, int count, int chunks) {
                   forward_exchange(hidden.from(first),
                                    count,
                                    chunks,
                                    out + static_cast<std::ptrdiff_t>(first) * options.hidden);
                 });
}

/// Router logits in f32, then the top-k of each token.
void MoeLayer::route(const RowsView& hidden, MoeContext::Lane& lane) {
  MoeContext& c = context_;
  const RouterOptions& router = c.options_.router;
  const RowsView rows = c.rows_as_f32(hidden, lane.tokens);
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * router.experts;
  parallel_gemm(c.pool_,
                c.gemm_scratch_,
                {.in = rows,
                 .rows = lane.tokens,
                 .weights = &weights_.router,
                 .bias = weights_.router_bias.empty() ? nullptr : weights_.router_bias.data(),
                 .out = {reinterpret_cast<std::byte*>(c.logits_.data()), stride}});
  const std::size_t scores =
      static_cast<std::size_t>(lane.tokens) * static_cast<std::size_t>(router.experts);
  ferry::route(
      router, {c.logits_.data(), scores}, lane.experts, lane.weights, weights_.selection_bias);
}

/// out = shared expert's FFN, times the sigmoid of its gate where there is one. False: no such
/// expert.
bool MoeLayer::run_shared_expert(const RowsView& hidden, int tokens, float* out) {
  MoeContext& c = context_;
  if (!weights_.shared) return false;
  if (tokens == 0) return true;
  const int hidden_size = c.options_.dispatcher.hidden;
  const GatherPhase phase{.name = "shared expert", .layer = index_};
  c.shared_expert_->run(hidden, tokens, *weights_.shared, c.f32_rows(out), phase);
  c.group_.gather_columns(c.f32_rows(out), tokens, hidden_size, DType::f32, phase);
  if (!weights_.shared_gate.data) return true;

  parallel_gemm(c.pool_,
                c.gemm_scratch_,
                {.in = c.rows_as_f32(hidden, tokens),
                 .rows = tokens,
                 .weights = &weights_.shared_gate,
                 .out = {reinterpret_cast<std::byte*>(c.shared_gate_.data()), sizeof(float)}});
  kernels().sigmoid(c.shared_gate_.data(), c.shared_gate_.data(), tokens);
  for (int t = 0; t < tokens; ++t) {
    float* row = out + static_cast<std::ptrdiff_t>(t) * hidden_size;
    kernels().scale(row, c.shared_gate_[static_cast<std::size_t>(t)], row, hidden_size);
  }
  return true;
}

MoeLayer::MoeLayer(MoeContext& context, const Placement& placement, MoeWeights weights, int index)
    : context_(context), placement_(placement), weights_(std::move(weights)), index_(index) {
  const MoeContext::Options& o = context.options_;
  FERRY_CHECK(placement.experts() == o.router.experts,
              "placement of {} experts, router of {}",
              placement.experts(),
              o.router.experts);
  FERRY_CHECK(placement.slots_per_rank() == o.dispatcher.slots_per_rank &&
                  static_cast<int>(weights_.local.size()) == o.dispatcher.slots_per_rank,
              "{} slots a rank in the placement, {} weights, {} in the dispatcher",
              placement.slots_per_rank(),
              weights_.local.size(),
              o.dispatcher.slots_per_rank);
  check_placement(o.dispatcher, placement);
  FERRY_CHECK(weights_.shared.has_value() == context.shared_expert_.has_value(),
              "layer {}: shared expert in the weights but not in the options, or the reverse",
              index);
}

void MoeLayer::count_rows(std::span<std::int32_t> slot_rows) {
  FERRY_CHECK(slot_rows.empty() || slot_rows.size() == weights_.local.size(),
              "{} counters for {} slots",
              slot_rows.size(),
              weights_.local.size());
  slot_rows_ = slot_rows;
}

MoeContext::MoeContext(const Options& options, Transport& transport, ThreadPool& pool)
    : options_(options),
      pool_(pool),
      experts_({.hidden = options.dispatcher.hidden,
                .inter = options.inter,
                .gating = options.gating,
                .dtype = options.dtype,
                .max_rows = kExpertRowsPerTurn,
                .row_weights = options.dispatcher.row_weights},
               pool),
      alone_(pool),
      group_(options.group != nullptr ? *options.group : alone_),
      gemm_scratch_(pool.size(), DType::f32, options.dispatcher.hidden) {
  const auto tokens = static_cast<std::size_t>(options.dispatcher.max_tokens);
  DispatcherOptions of_lane = options.dispatcher;
  const int num_lanes = options.two_batch_overlap ? 2 : 1;
  of_lane.max_tokens = static_cast<int>(ceil_div(of_lane.max_tokens, num_lanes));
  for (int i = 0; i < num_lanes; ++i)
    lanes_.push_back(std::make_unique<Lane>(of_lane, transport, pool));
  FERRY_CHECK(options.dispatcher.expert_type == wire_type(options.dtype),
              "experts of {} handed {} rows",
              dtype_name(options.dtype),
              wire_type_name(options.dispatcher.expert_type));
  FERRY_CHECK(group_.members() == options.dispatcher.dp_size,
              "a group of {}, dispatcher for {}",
              group_.members(),
              options.dispatcher.dp_size);
  if (options.shared_inter > 0) {
    shared_expert_.emplace(GatedFfn::Options{.hidden = options.dispatcher.hidden,
                                             .inter = options.shared_inter,
                                             .dtype = options.dtype,
                                             .max_rows = options.dispatcher.max_tokens},
                           group_,
                           pool);
  }
  if (options.dtype != DType::f32)
    hidden_f32_ =
        Buffer(tokens * static_cast<std::size_t>(options.dispatcher.hidden) * sizeof(float));
  shared_gate_.resize(tokens);
  logits_.resize(tokens * static_cast<std::size_t>(options.router.experts));
}

MoeContext::Lane::Lane(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
    : dispatcher(options, transport, pool) {
  const std::size_t entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.topk);
  all_experts.resize(entries);
  all_slots.resize(entries);
  all_weights.resize(entries);
  if (options.row_weights) ones.assign(entries, 1.0F);
}

std::span<const std::unique_ptr<MoeContext::Lane>> MoeContext::split(int tokens) {
  const auto num_lanes = static_cast<int>(lanes_.size());
  for (int i = 0; i < num_lanes; ++i) {
    Lane& lane = *lanes_[static_cast<std::size_t>(i)];
    lane.first = tokens * i / num_lanes;
    lane.tokens = tokens * (i + 1) / num_lanes - lane.first;
    const std::size_t entries =
        static_cast<std::size_t>(lane.tokens) * static_cast<std::size_t>(options_.router.topk);
    lane.experts = {lane.all_experts.data(), entries};
    lane.slots = {lane.all_slots.data(), entries};
    lane.weights = {lane.all_weights.data(), entries};
    lane.result_weights = lane.weights;
    if (!lane.ones.empty()) lane.result_weights = std::span(lane.ones).first(entries);
  }
  return lanes_;
}

ExchangeStats MoeContext::exchange_stats() const {
  ExchangeStats all;
  for (const auto& lane : lanes_) {
    const ExchangeStats& one = lane->dispatcher.stats();
    all.exchanges += one.exchanges;
    all.bytes_logical += one.bytes_logical;
    all.bytes_wire += one.bytes_wire;
  }
  return all;
}

// --- Ranks that are gone ------------------------------------------------------------------------

bool MoeContext::masks() const {
  return options_.dispatcher.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask;
}

void MoeContext::mask(Rank rank) {
  for (const auto& lane : lanes_) lane->dispatcher.mask(rank);
}

bool MoeContext::is_masked(Rank rank) const {
  return std::ranges::any_of(lanes_,
                             [&](const auto& lane) { return lane->dispatcher.is_masked(rank); });
}

void MoeContext::share_masks() {
  if (lanes_.size() == 1 || !masks()) return;
  for (Rank r = 0; r < lanes_.front()->dispatcher.ranks(); ++r)
    if (is_masked(r)) mask(r);
}

void MoeContext::note_losses(const Dispatcher& dispatcher, int layer) {
  if (loss_ || dispatcher.lost_tokens().empty()) return;
  Rank gone = 0;
  while (!dispatcher.is_masked(gone)) ++gone;
  loss_ = {.layer = layer, .tokens = dispatcher.lost_tokens().size(), .rank = gone};
}

void MoeContext::check_nothing_lost() {
  if (!loss_) return;
  const Loss loss = *std::exchange(loss_, std::nullopt);
  throw LostTokens(TransportError::Kind::peer_died,
                   loss.rank,
                   fmt::format("layer {}: {} tokens need experts of rank {}, which is gone",
                               loss.layer,
                               loss.tokens,
                               loss.rank));
}

MutableRowsView MoeContext::f32_rows(float* rows) const {
  return {reinterpret_cast<std::byte*>(rows),
          static_cast<std::ptrdiff_t>(sizeof(float)) * options_.dispatcher.hidden};
}

RowsView MoeContext::rows_as_f32(const RowsView& rows, int tokens) {
  if (options_.dtype == DType::f32) return rows;
  const MutableRowsView out = f32_rows(hidden_f32_.as<float>());
  for (int t = 0; t < tokens; ++t) {
    kernels().convert(
        rows.row(t), options_.dtype, out.row(t), DType::f32, options_.dispatcher.hidden);
  }
  return {out.base, out.stride};
}

}  // namespace ferry
