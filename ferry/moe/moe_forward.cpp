#include "ferry/moe/moe_forward.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/exchange/chunks.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

using Options = MoeAllToAll::Options;

/// The slots that every rank has room for.
Placement default_placement(const Options& o, int ranks) {
  return Placement::identity(o.router.experts, ranks, o.redundant);
}

DispatcherOptions dispatcher_options(const Options& o, int slots_per_rank) {
  return {.exchange = o.exchange,
          .slots_per_rank = slots_per_rank,
          .hidden = o.hidden,
          .topk = o.router.topk,
          .max_tokens = o.max_tokens,
          .dp_size = o.dp_size,
          .dispatch_wire = o.dispatch_wire,
          .expert_type = o.expert_type,
          .combine_wire = o.combine_wire,
          .row_weights = o.row_weights,
          .timeout = o.timeout};
}

std::size_t score_bytes(const Options& o) {
  return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.router.experts) *
         sizeof(float);
}

template <class T>
std::int64_t id_at(const std::byte* row, int k) {
  T id;
  std::memcpy(&id, row + static_cast<std::size_t>(k) * sizeof id, sizeof id);
  return id;
}

}  // namespace

std::int64_t IndexView::at(std::int64_t row, int k) const {
  const std::byte* ids = static_cast<const std::byte*>(base) + row * stride;
  // A u32 is read as i32: -1 as other engines pad with it is -1 again.
  return type == Type::i64 ? id_at<std::int64_t>(ids, k) : id_at<std::int32_t>(ids, k);
}

MoeAllToAll::MoeAllToAll(const Options& options, Transport& transport, ThreadPool& pool)
    : options_((check_experts(options.exchange, options.experts), options)),
      identity_(default_placement(options, transport.size())),
      dispatcher_(dispatcher_options(options, identity_.slots_per_rank()), transport, pool),
      scores_(score_bytes(options)) {
  const auto entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.router.topk);
  topk_ids_.resize(entries);
  topk_slots_.resize(entries);
  topk_weights_.resize(entries);
  if (options.row_weights) ones_.assign(entries, 1.0F);
}

std::size_t MoeAllToAll::mem_size(const Options& options, int ranks, bool load_store) {
  const int slots_per_rank = default_placement(options, ranks).slots_per_rank();
  const auto entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.router.topk);
  return Dispatcher::mem_size(dispatcher_options(options, slots_per_rank), ranks, load_store) +
         score_bytes(options) +
         entries *
             (sizeof(ExpertId) + sizeof(SlotId) + (options.row_weights ? 2 : 1) * sizeof(float));
}

MoeAllToAll::Routing MoeAllToAll::routing_of(int tokens) {
  const std::size_t entries =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(options_.router.topk);
  return {.experts = {topk_ids_.data(), entries},
          .slots = {topk_slots_.data(), entries},
          .weights = {topk_weights_.data(), entries},
          .result_weights = {options_.row_weights ? ones_.data() : topk_weights_.data(), entries}};
}

/// Chunk by chunk: the routing that route(first, tokens, placement, routing) fills in, then the
/// exchange around the experts.
template <class Route>
void MoeAllToAll::run(const MoeTokens& in, ExpertFn experts, Route route) {
  const FlushDenormals flush;
  lost_tokens_.clear();
  const Placement& placement = in.placement ? *in.placement : identity_;
  FERRY_CHECK(placement.experts() == identity_.experts() &&
                  placement.ranks() == identity_.ranks() &&
                  placement.slots_per_rank() == identity_.slots_per_rank(),
              "placement of {} experts in {} slots, room for {} in {}",
              placement.experts(),
              placement.slots(),
              identity_.experts(),
              identity_.slots());
  check_placement(dispatcher_.options(), placement);
  for_each_chunk(
      dispatcher_, options_.max_tokens, in.tokens, [&](int first, int tokens, int chunks) {
        const Routing to = routing_of(tokens);
        route(first, tokens, placement, to);
        dispatcher_.dispatch_send({.rows = in.hidden.from(first),
                                   .type = in.type,
                                   .encoded = in.encoded,
                                   .tokens = tokens,
                                   .slots = to.slots,
                                   .weights = to.result_weights,
                                   .row_weights = to.weights,
                                   .chunks = chunks,
                                   .layer = in.layer,
                                   .timeout = in.timeout});
        dispatcher_.dispatch_recv(experts);
        dispatcher_.combine_send();
        dispatcher_.combine_recv({.weights = to.result_weights,
                                  .rows = in.out.from(first),
                                  .type = in.out_type,
                                  .accumulate = in.accumulate});
        for (const int token : dispatcher_.lost_tokens()) lost_tokens_.push_back(first + token);
      });
}

/// The top-k of the tokens from `first` on.
void MoeAllToAll::route_logits(const RouterLogits& logits,
                               int first,
                               int tokens,
                               const Routing& to) {
  const auto num_experts = static_cast<std::size_t>(options_.router.experts);
  auto* scores = scores_.as<float>();
  for (int t = 0; t < tokens; ++t) {
    float* row = scores + static_cast<std::size_t>(t) * num_experts;
    kernels().convert(logits.rows.row(first + t),
                      logits.type,
                      reinterpret_cast<std::byte*>(row),
                      DType::f32,
                      options_.router.experts);
  }
  route(options_.router,
        {scores, static_cast<std::size_t>(tokens) * num_experts},
        to.experts,
        to.weights,
        logits.selection_bias);
}

/// The caller's ids and weights of the tokens from `first` on, packed; ids checked.
void MoeAllToAll::copy_topk(const TopK& topk, int first, int tokens, std::span<std::int32_t> ids) {
  const bool physical = topk.kind == TopK::Ids::physical;
  const int end = physical ? identity_.slots() : identity_.experts();
  const int num_choices = options_.router.topk;
  std::size_t entry = 0;
  for (int t = first; t < first + tokens; ++t) {
    const auto* weights = reinterpret_cast<const float*>(topk.weights.row(t));
    for (int k = 0; k < num_choices; ++k, ++entry) {
      const std::int64_t id = topk.ids.at(t, k);
      if (id >= end) {
        fail<ConfigError>("token {}: choice {} is {} {}, outside 0..{}; use -1 for none",
                          t,
                          k,
                          physical ? "slot" : "expert",
                          id,
                          end - 1);
      }
      ids[entry] = id < 0 ? -1 : static_cast<std::int32_t>(id);
      topk_weights_[entry] = id < 0 ? 0 : weights[k];
    }
  }
}

void moe_forward(MoeAllToAll& a2a,
                 const MoeTokens& tokens,
                 const RouterLogits& logits,
                 ExpertFn experts) {
  a2a.run(tokens,
          experts,
          [&](int first, int count, const Placement& placement, const MoeAllToAll::Routing& to) {
            a2a.route_logits(logits, first, count, to);
            placement.place(to.experts, a2a.options_.router.topk, to.slots);
          });
}

void moe_forward_from_topk(MoeAllToAll& a2a,
                           const MoeTokens& tokens,
                           const TopK& topk,
                           ExpertFn experts) {
  const bool physical = topk.kind == TopK::Ids::physical;
  a2a.run(tokens,
          experts,
          [&](int first, int count, const Placement& placement, const MoeAllToAll::Routing& to) {
            a2a.copy_topk(topk, first, count, physical ? to.slots : to.experts);
            if (!physical) placement.place(to.experts, a2a.options_.router.topk, to.slots);
          });
}

}  // namespace ferry
