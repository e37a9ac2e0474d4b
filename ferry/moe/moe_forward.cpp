#include "ferry/moe_forward.h"

#include <algorithm>
#include <cstring>

#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/exchange_lanes.h"

namespace ferry {

namespace {

using Options = MoeAllToAll::Options;

/// The slots that every rank has room for.
Placement default_placement(const Options& o, int ranks) {
  return Placement::identity(o.router.experts, ranks, o.redundant);
}

/// In the format that the transport's memory asks for, if the experts can take it.
ExchangeOptions exchange_of(const Options& o, const Capabilities& transport) {
  ExchangeOptions exchange = o.exchange;
  exchange.fixed_format |= !o.experts.ragged;
  exchange.format = format_for(exchange, transport.pins_memory);
  check_experts(exchange, o.experts);
  return exchange;
}

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time for work along rows

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

/// The lane, and scratch of a call.
class MoeAllToAll::Impl {
 public:
  Impl(const Options& options, Transport& transport, ThreadPool& pool)
      : options_(options),
        identity_(default_placement(options, transport.size())),
        lanes_(dispatcher_options(options, transport.size(), transport.capabilities()),
               /*lanes=*/1,
               transport,
               pool),
        pool_(pool),
        scores_(score_bytes(options)) {}

  /// route(part, placement) fills in slots and weights of a part.
  template <class Route>
  void run(const MoeTokens& in, ExpertFn experts, Route route);
  void route_logits(const RouterLogits& logits, const ExchangeLanes::Part& part);
  void copy_topk(const TopK& topk,
                 const ExchangeLanes::Part& part,
                 std::span<std::int32_t> ids) const;

  int topk() const { return options_.router.topk; }

  const Placement& identity() const { return identity_; }

  ExchangeLanes& lanes() { return lanes_; }

 private:
  const Options options_;
  const Placement identity_;
  ExchangeLanes lanes_;
  ThreadPool& pool_;
  Buffer scores_;  // f32 [max_tokens, E]; touched only where logits come in
};

template <class Route>
void MoeAllToAll::Impl::run(const MoeTokens& in, ExpertFn experts, Route route) {
  const Placement& placement = in.placement ? *in.placement : identity_;
  FERRY_CHECK(placement.experts() == identity_.experts() &&
                  placement.ranks() == identity_.ranks() &&
                  placement.slots_per_rank() == identity_.slots_per_rank(),
              "placement of {} experts in {} slots, room for {} in {}",
              placement.experts(),
              placement.slots(),
              identity_.experts(),
              identity_.slots());
  check_placement(lanes_.first().options(), placement);
  const auto route_part = [&](const ExchangeLanes::Part& part) { route(part, placement); };
  const auto accumulate = [&](int, int) { return in.accumulate; };
  lanes_.run({.place = in.place,
              .rows = in.hidden,
              .type = in.type,
              .encoded = in.encoded,
              .tokens = in.tokens,
              .out = in.out,
              .out_type = in.out_type,
              .layer = in.layer,
              .timeout = in.timeout},
             {.route = route_part, .meanwhile = accumulate, .experts = experts});
}

void MoeAllToAll::Impl::route_logits(const RouterLogits& logits, const ExchangeLanes::Part& part) {
  const auto num_experts = static_cast<std::size_t>(options_.router.experts);
  auto* scores = scores_.as<float>();
  pool_.parallel_for(part.count, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* row = scores + static_cast<std::size_t>(t) * num_experts;
      kernels_of(pool_).convert(logits.rows.row(part.first + t),
                                logits.type,
                                reinterpret_cast<std::byte*>(row),
                                DType::f32,
                                options_.router.experts);
    }
  });
  route(pool_,
        options_.router,
        {scores, static_cast<std::size_t>(part.count) * num_experts},
        part.experts,
        part.weights,
        logits.selection_bias);
}

/// The caller's ids and weights, packed; ids checked.
void MoeAllToAll::Impl::copy_topk(const TopK& topk,
                                  const ExchangeLanes::Part& part,
                                  std::span<std::int32_t> ids) const {
  const bool physical = topk.kind == TopK::Ids::physical;
  const int end = physical ? identity_.slots() : identity_.experts();
  const int num_choices = options_.router.topk;
  std::size_t entry = 0;
  for (int t = part.first; t < part.first + part.count; ++t) {
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
      part.weights[entry] = id < 0 ? 0 : weights[k];
    }
  }
}

void moe_forward(MoeAllToAll& a2a,
                 const MoeTokens& tokens,
                 const RouterLogits& logits,
                 ExpertFn experts) {
  MoeAllToAll::Impl& impl = *a2a.impl_;
  impl.run(tokens, experts, [&](const ExchangeLanes::Part& part, const Placement& placement) {
    impl.route_logits(logits, part);
    placement.place(part.experts, impl.topk(), part.slots);
  });
}

void moe_forward_from_topk(MoeAllToAll& a2a,
                           const MoeTokens& tokens,
                           const TopK& topk,
                           ExpertFn experts) {
  MoeAllToAll::Impl& impl = *a2a.impl_;
  const bool physical = topk.kind == TopK::Ids::physical;
  impl.run(tokens, experts, [&](const ExchangeLanes::Part& part, const Placement& placement) {
    impl.copy_topk(topk, part, physical ? part.slots : part.experts);
    if (!physical) placement.place(part.experts, impl.topk(), part.slots);
  });
}

MoeAllToAll::MoeAllToAll(const Options& options, Transport& transport, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(options, transport, pool)) {}

MoeAllToAll::~MoeAllToAll() = default;

std::size_t MoeAllToAll::mem_size(const Options& options,
                                  int ranks,
                                  const Capabilities& transport) {
  const DispatcherOptions dispatcher = dispatcher_options(options, ranks, transport);
  return Dispatcher::mem_size(dispatcher, ranks, transport) + score_bytes(options) +
         ExchangeLanes::scratch_bytes(dispatcher);
}

DispatcherOptions MoeAllToAll::dispatcher_options(const Options& o,
                                                  int ranks,
                                                  const Capabilities& transport) {
  return {.exchange = exchange_of(o, transport),
          .slots_per_rank = default_placement(o, ranks).slots_per_rank(),
          .hidden = o.hidden,
          .topk = o.router.topk,
          .max_tokens = o.max_tokens,
          .tp = o.tp,
          .row_alignment = o.row_alignment,
          .dispatch_wire = o.dispatch_wire,
          .expert_type = o.expert_type,
          .combine_wire = o.combine_wire,
          .row_weights = o.row_weights,
          .timeout = o.timeout};
}

int MoeAllToAll::slots_per_rank() const { return impl_->identity().slots_per_rank(); }

std::span<const int> MoeAllToAll::lost_tokens() const { return impl_->lanes().lost_tokens(); }

void MoeAllToAll::mask(Rank rank) { impl_->lanes().mask(rank); }

const Dispatcher& MoeAllToAll::dispatcher() const { return impl_->lanes().first(); }

Dispatcher& MoeAllToAll::dispatcher() { return impl_->lanes().first(); }

}  // namespace ferry
