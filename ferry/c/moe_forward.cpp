// A MoE layer around the caller's experts.
#include "ferry/c/moe_forward.h"

#include <cstring>
#include <memory>
#include <string>

#include "ferry/c/comm_state.h"
#include "ferry/c/exchange_arguments.h"
#include "ferry/c/status.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/moe_forward.h"

namespace ferry::c {

FERRY_C_STRUCT(ferry_moe_options, FERRY_MOE_OPTIONS);
FERRY_C_STRUCT(ferry_moe_tokens, FERRY_MOE_TOKENS);
FERRY_C_STRUCT(ferry_router_logits, FERRY_ROUTER_LOGITS);
FERRY_C_STRUCT(ferry_topk, FERRY_TOPK);
FERRY_C_STRUCT(ferry_exchange_stats, FERRY_EXCHANGE_STATS);

namespace {

RouterOptions router_options(const ferry_moe_options& o) {
  if (o.experts < 1 || o.topk < 1 || o.topk > o.experts || o.redundant < 0) {
    fail<ConfigError>(
        "top-{} of {} experts with {} redundant ones", o.topk, o.experts, o.redundant);
  }
  if (o.groups < 1 || o.groups > kMaxExpertGroups || o.experts % o.groups != 0 ||
      o.topk_groups < 1 || o.topk_groups > o.groups ||
      std::int64_t{o.experts} / o.groups * o.topk_groups < o.topk) {
    fail<ConfigError>("top-{} of {} experts in the best {} of {} groups cannot be",
                      o.topk,
                      o.experts,
                      o.topk_groups,
                      o.groups);
  }
  return {.score = enumerator(o.score, RouterOptions::Score::sigmoid, "score"),
          .experts = o.experts,
          .topk = o.topk,
          .renormalize = o.renormalize != 0,
          .choose_first = o.choose_first != 0,
          .groups = o.groups,
          .topk_groups = o.topk_groups,
          .group_score =
              enumerator(o.group_score, RouterOptions::GroupScore::sum_of_two, "group_score"),
          .scaling = o.scaling};
}

MoeAllToAll::Options moe_options(const ferry_moe_options* options,
                                 const ferry_all_to_all_options* exchange,
                                 const Transport& transport) {
  const ferry_moe_options o = read_struct(options);
  const RouterOptions router = router_options(o);
  ferry_all_to_all_options with_topk = *need(exchange, "exchange");
  if (with_topk.topk != 0 && with_topk.topk != o.topk)
    fail<ConfigError>("topk is {} of the exchange and {} of the router", with_topk.topk, o.topk);
  with_topk.topk = o.topk;
  place(with_topk.place, "ferry_all_to_all_options");
  const DispatcherOptions d =
      exchange_options(with_topk, transport.size(), transport.capabilities());
  const Placement placement = Placement::identity(o.experts, transport.size(), o.redundant);
  if (d.slots_per_rank != 0 && d.slots_per_rank != placement.slots_per_rank()) {
    fail<ConfigError>("slots_per_rank is {}; these experts take {}, or 0",
                      d.slots_per_rank,
                      placement.slots_per_rank());
  }
  return {.router = router,
          .redundant = o.redundant,
          .exchange = d.exchange,
          .experts = {.name = "the caller's experts",
                      .padded = o.takes_padded != 0,
                      .ragged = o.takes_ragged != 0,
                      .row_pointers = o.takes_row_pointers != 0,
                      .in_tiles = o.takes_tiles != 0},
          .hidden = d.hidden,
          .max_tokens = d.max_tokens,
          .tp = d.tp,
          .dispatch_wire = d.dispatch_wire,
          .expert_type = d.expert_type,
          .combine_wire = d.combine_wire,
          .row_weights = d.row_weights,
          .row_alignment = d.row_alignment,
          .timeout = d.timeout};
}

class Moe : public OnComm {
 public:
  Moe(Comm& comm, const MoeAllToAll::Options& options)
      : OnComm(comm), options_(options), a2a_(options, comm.transport(), comm.pool()) {}

  MoeAllToAll& a2a() { return a2a_; }

  const MoeAllToAll::Options& options() const { return options_; }

  void mask(Rank rank) override {
    if (options_.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask) a2a_.mask(rank);
  }

  bool is_masked(Rank rank) const override { return a2a_.dispatcher().is_masked(rank); }

  /// One exchange, whose routing `read(tokens)` reads before others wait for this rank.
  template <class Read, class Run>
  void forward(
      const ferry_moe_tokens* tokens, ferry_experts_fn experts, void* context, Read read, Run run) {
    need(experts, "experts");
    MoeTokens in;
    comm().exchange(
        [&] {
          in = tokens_of(read_struct(tokens));
          read(in.tokens);
        },
        [&] { run(in, [&](const ExpertRows& rows) { call_experts(experts, context, rows); }); });
  }

  MoeTokens tokens_of(const ferry_moe_tokens& t) const;
  RouterLogits logits_of(const ferry_router_logits& l, int tokens) const;
  TopK topk_of(const ferry_topk& t, int tokens) const;

 private:
  void check_ids(const TopK& topk, int tokens) const;

  const MoeAllToAll::Options options_;
  MoeAllToAll a2a_;
};

Moe& of(ferry_moe* handle) { return *reinterpret_cast<Moe*>(need(handle, "the moe")); }

MoeTokens Moe::tokens_of(const ferry_moe_tokens& t) const {
  const DispatcherOptions& o = a2a_.dispatcher().options();
  if (t.tokens < 0) fail<ConfigError>("{} tokens", t.tokens);
  const int ranks = comm().transport().size();
  const DType out_type = dtype(t.out_type, "out_type");
  MoeTokens tokens{.place = place(t.place, "ferry_moe_tokens"),
                   .hidden = rows(t.hidden, t.stride, t.tokens, "hidden"),
                   .type = dtype(t.type, "type"),
                   .encoded = t.encoded != 0,
                   .tokens = t.tokens,
                   .out = rows(t.out, t.out_stride, t.tokens, row_bytes(o, ranks, out_type), "out"),
                   .out_type = out_type,
                   .accumulate = t.accumulate != 0,
                   .layer = t.layer,
                   .timeout = timeout_of_call(t.timeout_s)};
  check_row_type(o, tokens.type, tokens.encoded);
  if (t.placement == nullptr) return tokens;
  const Placement& p = t.placement->placement;
  if (p.experts() != options_.router.experts || p.ranks() != ranks ||
      p.slots_per_rank() != a2a_.slots_per_rank()) {
    fail<ConfigError>("a placement of {} experts in {} slots, room for {} in {}",
                      p.experts(),
                      p.slots(),
                      options_.router.experts,
                      ranks * a2a_.slots_per_rank());
  }
  check_placement(o, p);
  tokens.placement = &p;
  return tokens;
}

RouterLogits Moe::logits_of(const ferry_router_logits& l, int tokens) const {
  place(l.place, "ferry_router_logits");
  const auto experts = static_cast<std::size_t>(options_.router.experts);
  return {.rows = rows(l.rows, l.stride, tokens, "logits"),
          .type = dtype(l.type, "type of the logits"),
          .selection_bias = {l.selection_bias, l.selection_bias != nullptr ? experts : 0}};
}

TopK Moe::topk_of(const ferry_topk& t, int tokens) const {
  place(t.place, "ferry_topk");
  if (t.ids == nullptr && tokens > 0) fail<ConfigError>("ids is NULL, {} rows expected", tokens);
  const TopK topk{.ids = {.base = t.ids,
                          .type = enumerator(t.id_type, IndexView::Type::i64, "id_type"),
                          .stride = static_cast<std::ptrdiff_t>(t.ids_stride)},
                  .weights = rows(t.weights, t.weights_stride, tokens, "weights"),
                  .kind = t.physical != 0 ? TopK::Ids::physical : TopK::Ids::logical};
  check_ids(topk, tokens);
  return topk;
}

/// Before the others wait for this rank. (Row weights ask for different slots, which the exchange
/// checks.)
void Moe::check_ids(const TopK& topk, int tokens) const {
  const bool physical = topk.kind == TopK::Ids::physical;
  const int end =
      physical ? comm().transport().size() * a2a_.slots_per_rank() : options_.router.experts;
  for (int t = 0; t < tokens; ++t)
    for (int k = 0; k < options_.router.topk; ++k)
      if (const std::int64_t id = topk.ids.at(t, k); id >= end) {
        fail<ConfigError>("token {}: choice {} is {} {}, outside 0..{}; use -1 for none",
                          t,
                          k,
                          physical ? "slot" : "expert",
                          id,
                          end - 1);
      }
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_moe_mem_size(ferry_comm* comm,
                                const ferry_moe_options* options,
                                const ferry_all_to_all_options* exchange,
                                uint64_t* bytes) {
  return guarded([&] {
    const ferry::Transport& t = comm_of(comm).transport();
    need(bytes, "bytes");
    const auto o = moe_options(options, exchange, t);
    *bytes = ferry::MoeAllToAll::mem_size(o, t.size(), t.capabilities());
  });
}

ferry_status ferry_moe_create(ferry_comm* comm,
                              const ferry_moe_options* options,
                              const ferry_all_to_all_options* exchange,
                              ferry_moe** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    Comm& c = comm_of(comm);
    const auto o = moe_options(options, exchange, c.transport());
    c.call([&] { *out = reinterpret_cast<ferry_moe*>(std::make_unique<Moe>(c, o).release()); });
  });
}

ferry_status ferry_moe_destroy(ferry_moe* moe) {
  return guarded([&] {
    if (moe == nullptr) return;
    Moe& leaving = of(moe);
    leaving.comm().call_anyway([&] { delete &leaving; });
  });
}

ferry_status ferry_moe_slots_per_rank(ferry_moe* moe, int32_t* slots_per_rank) {
  return guarded([&] { *need(slots_per_rank, "slots_per_rank") = of(moe).a2a().slots_per_rank(); });
}

ferry_status ferry_moe_forward(ferry_moe* moe,
                               const ferry_moe_tokens* tokens,
                               const ferry_router_logits* logits,
                               ferry_experts_fn experts,
                               void* context) {
  return guarded([&] {
    Moe& m = of(moe);
    ferry::RouterLogits from;
    m.forward(
        tokens,
        experts,
        context,
        [&](int rows) { from = m.logits_of(read_struct(logits), rows); },
        [&](const ferry::MoeTokens& in, ferry::ExpertFn run) {
          moe_forward(m.a2a(), in, from, run);
        });
  });
}

ferry_status ferry_moe_forward_from_topk(ferry_moe* moe,
                                         const ferry_moe_tokens* tokens,
                                         const ferry_topk* topk,
                                         ferry_experts_fn experts,
                                         void* context) {
  return guarded([&] {
    Moe& m = of(moe);
    ferry::TopK from;
    m.forward(
        tokens,
        experts,
        context,
        [&](int rows) { from = m.topk_of(read_struct(topk), rows); },
        [&](const ferry::MoeTokens& in, ferry::ExpertFn run) {
          moe_forward_from_topk(m.a2a(), in, from, run);
        });
  });
}

ferry_status ferry_moe_lost_tokens(ferry_moe* moe, const int32_t** tokens, int32_t* count) {
  return guarded([&] {
    Moe& m = of(moe);
    m.comm().call([&] {
      const auto lost = m.a2a().lost_tokens();
      *need(tokens, "tokens") = lost.data();
      *need(count, "count") = static_cast<int32_t>(lost.size());
    });
  });
}

ferry_status ferry_moe_stats(ferry_moe* moe, ferry_exchange_stats* stats) {
  return guarded([&] {
    Moe& m = of(moe);
    check_head(stats);
    m.comm().call([&] { fill_struct(stats, exchange_stats(m.a2a().dispatcher().stats())); });
  });
}
