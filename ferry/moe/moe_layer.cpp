#include "ferry/moe/moe_layer.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time for work along rows

}  // namespace

/// The path of a token through one MoE layer. Between these steps ExchangeLanes carries it: out
/// (dispatch) behind place, home (combine) behind the experts.
void MoeLayer::forward(const RowsView& hidden, int tokens, float* out) {
  MoeContext& c = context_;
  const StepClock::Scope exchange(c.options_.clock, StepClock::Phase::exchange);
  const auto route_and_place = [&](const ExchangeLanes::Part& part) {
    const StepClock::Scope router(c.options_.clock, StepClock::Phase::router);
    route(hidden.from(part.first), part);
    placement_.place(part.experts, c.options_.router.topk, part.slots, turn_++);
  };
  const auto shared_expert = [&](int first, int count) {  // hides the wire
    return run_shared_expert(hidden.from(first), count, c.f32_rows(out).from(first));
  };
  const auto experts = [&](const ExpertRows& rows) { run_experts(rows); };
  c.lanes_.run({.rows = hidden,
                .type = c.options_.dtype,
                .tokens = tokens,
                .out = c.own_columns(out),
                .layer = index_},
               {.route = route_and_place, .meanwhile = shared_expert, .experts = experts});
  c.slices_.gather_columns(c.f32_rows(out),
                           tokens,
                           c.options_.dispatcher.hidden,
                           DType::f32,
                           {.name = "expert results", .layer = index_});
  c.note_losses(index_);
}

/// Router logits in f32, then the top-k of each token.
void MoeLayer::route(const RowsView& hidden, const ExchangeLanes::Part& part) {
  MoeContext& c = context_;
  const RouterOptions& router = c.options_.router;
  const RowsView rows = c.convert_to_f32(hidden, part.in_chunk, part.count);
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * router.experts;
  parallel_gemm(c.pool_,
                c.gemm_scratch_,
                {.in = rows,
                 .rows = part.count,
                 .weights = &weights_.router,
                 .bias = weights_.router_bias.empty() ? nullptr : weights_.router_bias.data(),
                 .out = {reinterpret_cast<std::byte*>(c.logits_.data()), stride}});
  const std::size_t scores =
      static_cast<std::size_t>(part.count) * static_cast<std::size_t>(router.experts);
  ferry::route(c.pool_,
               router,
               {c.logits_.data(), scores},
               part.experts,
               part.weights,
               weights_.selection_bias);
}

void MoeLayer::run_experts(const ExpertRows& rows) {
  const StepClock::Scope experts(context_.options_.clock, StepClock::Phase::experts);
  for (std::size_t slot = 0; slot < slot_rows_.size(); ++slot)
    slot_rows_[slot] += rows.counts[slot];
  if (context_.device_experts_)
    context_.device_experts_->run(index_, rows);
  else
    context_.experts_.run(rows, weights_.local, {.name = "experts", .layer = index_});
}

/// out = shared expert's FFN, times the sigmoid of its gate where there is one. False: no such
/// expert.
bool MoeLayer::run_shared_expert(const RowsView& hidden, int tokens, const MutableRowsView& out) {
  MoeContext& c = context_;
  if (!weights_.shared) return false;
  if (tokens == 0) return true;
  const StepClock::Scope shared_expert(c.options_.clock, StepClock::Phase::shared_expert);
  const int hidden_size = c.options_.dispatcher.hidden;
  const GatherPhase phase{.name = "shared expert", .layer = index_};
  c.shared_expert_->run(hidden, tokens, *weights_.shared, out, phase);
  // Where the group's members are those of a slice, each adds to its own columns alone.
  if (c.group_.tp() != c.slices_.tp())
    c.group_.gather_columns(out, tokens, hidden_size, DType::f32, phase);
  if (!weights_.shared_gate.data) return true;

  parallel_gemm(c.pool_,
                c.gemm_scratch_,
                {.in = c.converted(hidden),
                 .rows = tokens,
                 .weights = &weights_.shared_gate,
                 .out = {reinterpret_cast<std::byte*>(c.shared_gate_.data()), sizeof(float)}});
  kernels_of(c.pool_).sigmoid(c.shared_gate_.data(), c.shared_gate_.data(), tokens);
  c.pool_.parallel_for(tokens, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      auto* row = reinterpret_cast<float*>(out.row(t));
      kernels_of(c.pool_).scale(row, c.shared_gate_[static_cast<std::size_t>(t)], row, hidden_size);
    }
  });
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
  if (context.device_experts_) context.device_experts_->load(index, weights_.local);
}

std::optional<MutableRowsView> MoeLayer::input(int tokens) const {
  return context_.lanes_.registered_input(context_.options_.dtype, tokens);
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
      lanes_(options.dispatcher, options.two_batch_overlap ? 2 : 1, transport, pool),
      alone_(pool),
      group_(options.group != nullptr ? *options.group : alone_),
      slices_(options.slices != nullptr ? *options.slices : alone_),
      experts_({.hidden = options.dispatcher.hidden,
                .inter = options.inter,
                .gating = options.gating,
                .dtype = options.dtype,
                .max_rows = kExpertRowsPerTurn,
                .row_weights = options.dispatcher.row_weights},
               slices_),
      gemm_scratch_(pool, DType::f32, options.dispatcher.hidden) {
  const auto tokens = static_cast<std::size_t>(options.dispatcher.max_tokens);
  FERRY_CHECK(options.dispatcher.expert_type == wire_type(options.dtype),
              "experts of {} handed {} rows",
              dtype_name(options.dtype),
              wire_type_name(options.dispatcher.expert_type));
  FERRY_CHECK(group_.tp() == options.dispatcher.tp * slices_.tp(),
              "a group of {}, dispatcher for {}, experts in {} slices",
              group_.tp(),
              options.dispatcher.tp,
              slices_.tp());
  FERRY_CHECK(slices_.own_columns(options.dispatcher.hidden).size() ==
                  options.dispatcher.columns_of_results(),
              "{} columns of results for slice {} of {}",
              options.dispatcher.columns_of_results(),
              slices_.member(),
              slices_.tp());
  if (options.experts_on != nullptr) {
    FERRY_CHECK(options.slices == nullptr || slices_.tp() == 1, "slices of experts on a device");
    device_experts_.emplace(GpuExpertsOptions{.slots = options.dispatcher.slots_per_rank,
                                              .hidden = options.dispatcher.hidden,
                                              .inter = options.inter,
                                              .gating = options.gating,
                                              .max_rows = kExpertRowsPerTurn},
                            *options.experts_on,
                            pool);
  }
  if (options.shared_inter > 0) {
    shared_expert_.emplace(GatedFfn::Options{.hidden = options.dispatcher.hidden,
                                             .inter = options.shared_inter,
                                             .gating = options.gating,
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

void MoeContext::note_losses(int layer) {
  if (loss_ || lanes_.lost_tokens().empty()) return;
  Rank gone = 0;
  while (!lanes_.is_masked(gone)) ++gone;
  loss_ = {.layer = layer, .tokens = lanes_.lost_tokens().size(), .rank = gone};
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

/// Those that this rank's experts have results for, of f32 rows.
MutableRowsView MoeContext::own_columns(float* rows) const {
  return f32_rows(rows + slices_.own_columns(options_.dispatcher.hidden).begin);
}

RowsView MoeContext::convert_to_f32(const RowsView& rows, int first, int count) {
  if (options_.dtype == DType::f32) return rows;
  const MutableRowsView out = f32_rows(hidden_f32_.as<float>()).from(first);
  pool_.parallel_for(count, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      kernels_of(pool_).convert(
          rows.row(t), options_.dtype, out.row(t), DType::f32, options_.dispatcher.hidden);
    }
  });
  return {out.base, out.stride};
}

RowsView MoeContext::converted(const RowsView& rows) const {
  if (options_.dtype == DType::f32) return rows;
  const MutableRowsView out = f32_rows(hidden_f32_.as<float>());
  return {out.base, out.stride};
}

}  // namespace ferry
