#include "ferry/moe/moe_layer.h"

#include "ferry/core/error.h"
#include "ferry/moe/chunks.h"

namespace ferry {

/// The path of a token through one MoE layer.
void MoeLayer::forward_exchange(const RowsView& hidden, int tokens, int chunks, float* out) {
  const Routing to = route(hidden, tokens);
  placement_.place(to.experts, context_.options_.router.topk, to.slots);
  context_.dispatcher_.dispatch_send({.rows = hidden,
                                      .type = context_.options_.dtype,
                                      .tokens = tokens,
                                      .slots = to.slots,
                                      .weights = to.weights,
                                      .chunks = chunks,
                                      .layer = index_});
  const bool has_shared = run_shared_expert(hidden, tokens, out);  // hides the wire
  context_.experts_.run(context_.dispatcher_.dispatch_recv(), weights_.local);
  context_.dispatcher_.combine_send();
  context_.dispatcher_.combine_recv(
      {.weights = to.weights, .rows = context_.f32_rows(out), .accumulate = has_shared});
}

void MoeLayer::forward(const RowsView& hidden, int tokens, float* out) {
  const FlushDenormals flush;
  const DispatcherOptions& options = context_.options_.dispatcher;
  for_each_chunk(
      context_.dispatcher_, options.max_tokens, tokens, [&](int first, int count, int chunks) {
        forward_exchange(hidden.from(first),
                         count,
                         chunks,
                         out + static_cast<std::ptrdiff_t>(first) * options.hidden);
      });
}

/// Router logits in f32, then the top-k of each token.
MoeLayer::Routing MoeLayer::route(const RowsView& hidden, int tokens) {
  MoeContext& c = context_;
  const RouterOptions& router = c.options_.router;
  const std::size_t entries =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(router.topk);
  const Routing to{.experts = {c.topk_ids_.data(), entries},
                   .slots = {c.topk_slots_.data(), entries},
                   .weights = {c.topk_weights_.data(), entries}};
  const RowsView rows = c.rows_as_f32(hidden, tokens);
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * router.experts;
  parallel_gemm(c.pool_,
                c.gemm_scratch_,
                {.in = rows,
                 .rows = tokens,
                 .weights = &weights_.router,
                 .out = {reinterpret_cast<std::byte*>(c.logits_.data()), stride}});
  const std::size_t scores =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(router.experts);
  ferry::route(router, {c.logits_.data(), scores}, to.experts, to.weights);
  return to;
}

/// out = shared expert's FFN, times the sigmoid of its gate where there is one. False: no such
/// expert.
bool MoeLayer::run_shared_expert(const RowsView& hidden, int tokens, float* out) {
  MoeContext& c = context_;
  if (!weights_.shared) return false;
  if (tokens == 0) return true;
  const std::int32_t count = tokens;
  const std::int64_t offset = 0;
  const int hidden_size = c.options_.dispatcher.hidden;
  c.shared_experts_->run({.counts = {&count, 1},
                          .offsets = {&offset, 1},
                          .in = hidden,
                          .in_type = c.options_.dtype,
                          .out = c.f32_rows(out),
                          .hidden = hidden_size},
                         {&*weights_.shared, 1});
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
  FERRY_CHECK(weights_.shared.has_value() == context.shared_experts_.has_value(),
              "layer {}: shared expert in the weights but not in the options, or the reverse",
              index);
}

MoeContext::MoeContext(const Options& options, Transport& transport, ThreadPool& pool)
    : options_(options),
      pool_(pool),
      dispatcher_(options.dispatcher, transport, pool),
      experts_({.hidden = options.dispatcher.hidden,
                .inter = options.inter,
                .dtype = options.dtype,
                .max_rows = kExpertRowsPerTurn},
               pool),
      gemm_scratch_(pool.size(), DType::f32, options.dispatcher.hidden) {
  const auto tokens = static_cast<std::size_t>(options.dispatcher.max_tokens);
  FERRY_CHECK(options.dispatcher.expert_type == options.dtype,
              "experts of {} handed {} rows",
              dtype_name(options.dtype),
              dtype_name(options.dispatcher.expert_type));
  if (options.shared_inter > 0) {
    shared_experts_.emplace(Experts::Options{.hidden = options.dispatcher.hidden,
                                             .inter = options.shared_inter,
                                             .dtype = options.dtype,
                                             .max_rows = kExpertRowsPerTurn},
                            pool);
  }
  if (options.dtype != DType::f32)
    hidden_f32_ =
        Buffer(tokens * static_cast<std::size_t>(options.dispatcher.hidden) * sizeof(float));
  shared_gate_.resize(tokens);
  logits_.resize(tokens * static_cast<std::size_t>(options.router.experts));
  const std::size_t entries = tokens * static_cast<std::size_t>(options.router.topk);
  topk_ids_.resize(entries);
  topk_slots_.resize(entries);
  topk_weights_.resize(entries);
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
