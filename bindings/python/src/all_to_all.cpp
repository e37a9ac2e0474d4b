#include "all_to_all.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <vector>

#include "ferry/core/error.h"
#include "lane.h"
#include "native_experts.h"

namespace ferry::python {

namespace {

/// What Python sees. Closed, it has no lane; arrays over its memory keep that.
class AllToAll {
 public:
  AllToAll(const Comm& comm, const nb::dict& options) {
    Settings settings("AllToAll", options);
    const auto& state = comm.state();
    const MoeAllToAll::Options parsed = lane_options(settings, state->transport());
    settings.finish();
    lane_ = std::make_shared<Lane>(state, parsed);
  }

  Lane& lane() const {
    if (!lane_) fail<BrokenContract>("this all-to-all is closed");
    return *lane_;
  }

  Dispatcher& dispatcher() const { return lane().a2a().dispatcher(); }

  void close() { lane_.reset(); }

 private:
  std::shared_ptr<Lane> lane_;
};

/// A routing that later exchanges use again, on all ranks.
struct Routing {
  std::shared_ptr<Lane> lane;
  std::unique_ptr<CachedRouting> kept;
  std::vector<float> weights;
};

/// Where experts are; moves between calls (EPLB).
using SharedPlacement = std::shared_ptr<const Placement>;

CallOptions call_options(Settings& settings) {
  CallOptions call{.physical = settings.get("physical", false),
                   .accumulate = settings.get("accumulate", false),
                   .layer = settings.get("layer", -1),
                   .timeout = settings.seconds("timeout")};
  const nb::object placement = settings.object("placement");
  if (!placement.is_none()) {
    call.placement = std::make_shared<Placement>(nb::cast<const Placement&>(placement));
  }
  return call;
}

TokenArrays token_arrays(nb::handle x, nb::handle ids, nb::handle weights, Settings& settings) {
  TokenArrays tokens{.x = Array(x, "x"), .framework = framework_of(x)};
  const nb::object scales = settings.object("scales");
  if (!scales.is_none()) tokens.scales = Array(scales, "scales");
  tokens.ids = Array(ids, "topk_ids");
  if (!weights.is_none()) tokens.weights = Array(weights, "topk_weights");
  return tokens;
}

/// `out`, or a new array for the results.
nb::object target_of(nb::handle out, const TokenArrays& tokens, const CallOptions& call) {
  if (!out.is_none()) return nb::borrow(out);
  if (call.accumulate) fail<ConfigError>("accumulate adds to what out holds, and there is no out");
  const Element type = tokens.scales ? Element::bf16 : tokens.x.type();
  return empty_array(
      {static_cast<std::size_t>(tokens.x.shape(0)), static_cast<std::size_t>(tokens.x.shape(1))},
      type,
      tokens.framework);
}

void dispatch_send(
    AllToAll& self, nb::handle x, nb::handle ids, nb::handle weights, const nb::kwargs& kwargs) {
  Settings settings("dispatch_send", kwargs);
  const TokenArrays tokens = token_arrays(x, ids, weights, settings);
  const CallOptions call = call_options(settings);
  const nb::object routing = settings.object("routing");
  settings.finish();
  Lane& lane = self.lane();
  lane.check(tokens);
  const Routing* kept = routing.is_none() ? nullptr : nb::cast<Routing*>(routing);
  lane.dispatch_send(tokens, call, kept == nullptr ? nullptr : kept->kept.get());
}

nb::object combine_recv(AllToAll& self, nb::handle out, bool accumulate) {
  Lane& lane = self.lane();
  if (out.is_none() && accumulate) {
    fail<ConfigError>("accumulate adds to what out holds, and there is no out");
  }
  const int columns = lane.options().exchange.hidden_partition
                          ? lane.options().hidden / lane.comm().transport().size()
                          : lane.options().hidden;
  nb::object made = out.is_none() ? empty_array({static_cast<std::size_t>(lane.tokens()),
                                                 static_cast<std::size_t>(columns)},
                                                lane.element(),
                                                lane.framework())
                                  : nb::borrow(out);
  const Array target(made, "out", true);
  lane.check_out(target, lane.tokens());
  lane.combine_recv(target, accumulate);
  return made;
}

nb::object forward(AllToAll& self, TokenArrays& tokens, nb::handle experts, Settings& settings) {
  CallOptions call = call_options(settings);
  const nb::object bias = settings.object("selection_bias");
  const nb::object out = settings.object("out");
  settings.finish();
  Lane& lane = self.lane();
  if (!bias.is_none()) {
    call.selection_bias = Array(bias, "selection_bias");
    call.selection_bias.check_packed({lane.options().router.experts});
    if (call.selection_bias.type() != Element::f32) fail<ConfigError>("selection_bias is float32");
  }
  lane.check(tokens);
  nb::object made = target_of(out, tokens, call);
  const Array target(made, "out", true);
  lane.check_out(target, tokens.x.shape(0));
  lane.forward(tokens, target, experts, call);
  return made;
}

nb::object moe_forward(
    AllToAll& self, nb::handle x, nb::handle logits, nb::handle experts, const nb::kwargs& kwargs) {
  Settings settings("moe_forward", kwargs);
  TokenArrays tokens{.x = Array(x, "x"), .framework = framework_of(x)};
  const nb::object scales = settings.object("scales");
  if (!scales.is_none()) tokens.scales = Array(scales, "scales");
  tokens.logits = Array(logits, "router_logits");
  return forward(self, tokens, experts, settings);
}

nb::object moe_forward_from_topk(AllToAll& self,
                                 nb::handle x,
                                 nb::handle ids,
                                 nb::handle weights,
                                 nb::handle experts,
                                 const nb::kwargs& kwargs) {
  Settings settings("moe_forward_from_topk", kwargs);
  TokenArrays tokens = token_arrays(x, ids, weights, settings);
  if (!tokens.weights) fail<ConfigError>("topk_weights must be given");
  return forward(self, tokens, experts, settings);
}

/// The four phases on arrays that are looked at once.
class BoundExchange {
 public:
  BoundExchange(std::shared_ptr<Lane> lane, TokenArrays tokens, Array out)
      : lane_(std::move(lane)), tokens_(std::move(tokens)), out_(std::move(out)) {}

  void dispatch_send() { lane_->dispatch_send(tokens_, {}, nullptr); }

  nb::object dispatch_recv() { return lane_->dispatch_recv(); }

  void combine_send() { lane_->combine_send(); }

  void combine_recv() { lane_->combine_recv(out_, false); }

  void forward(nb::handle experts) { lane_->forward(tokens_, out_, experts, {}); }

  std::vector<std::int64_t> time_without_python(int count) {
    return lane_->time_exchanges(tokens_, out_, count);
  }

 private:
  std::shared_ptr<Lane> lane_;
  TokenArrays tokens_;
  Array out_;
};

std::unique_ptr<BoundExchange> bind(
    AllToAll& self, nb::handle x, nb::handle ids, nb::handle weights, nb::handle out) {
  TokenArrays tokens{.x = Array(x, "x"),
                     .ids = Array(ids, "topk_ids"),
                     .weights = Array(weights, "topk_weights"),
                     .framework = framework_of(x)};
  Array target(out, "out", true);
  Lane& lane = self.lane();
  lane.check(tokens);
  lane.check_out(target, tokens.x.shape(0));
  if (tokens.x.shape(0) > lane.options().max_tokens) {
    fail<ConfigError>("{} tokens, max_tokens is {}", tokens.x.shape(0), lane.options().max_tokens);
  }
  return std::make_unique<BoundExchange>(
      lane.shared_from_this(), std::move(tokens), std::move(target));
}

std::unique_ptr<Routing> keep_routing(AllToAll& self) {
  Lane& lane = self.lane();
  auto routing = std::make_unique<Routing>();
  routing->lane = lane.shared_from_this();
  routing->kept = lane.comm().run(
      "keep_routing", false, [&] { return lane.a2a().dispatcher().keep_routing(); });
  return routing;
}

nb::object registered_input(AllToAll& self) {
  Lane& lane = self.lane();
  const std::optional<DType> type = element_type(lane.options().dispatch_wire);
  if (!type) fail<ConfigError>("rows of a quantised dispatch_dtype are no plain array");
  const MutableRowsView rows = self.dispatcher().registered_input();
  const auto columns = static_cast<std::size_t>(rows.stride) / dtype_bytes(*type);
  return make_array({.data = rows.base,
                     .shape = {static_cast<std::size_t>(lane.options().max_tokens), columns},
                     .strides = {},
                     .type = element_of(*type)},
                    lane.framework(),
                    keep(lane.shared_from_this()));
}

nb::dict stats(const AllToAll& self) {
  const ExchangeStats& s = self.dispatcher().stats();
  nb::dict out;
  out["exchanges"] = s.exchanges;
  out["bytes_logical"] = s.bytes_logical;
  out["bytes_wire"] = s.bytes_wire;
  out["bytes_network"] = s.bytes_network;
  return out;
}

nb::dict wait_stats(const AllToAll& self) {
  nb::list dispatch;
  nb::list combine;
  nb::list rows;
  for (const SourceStats& source : self.dispatcher().source_stats()) {
    dispatch.append(source.dispatch_wait_ns);
    combine.append(source.combine_wait_ns);
    rows.append(source.rows_received);
  }
  nb::dict out;
  out["dispatch_wait_ns"] = dispatch;
  out["combine_wait_ns"] = combine;
  out["rows_received"] = rows;
  return out;
}

void bind_phases(nb::class_<AllToAll>& c) {
  c.def("dispatch_send",
        &dispatch_send,
        nb::arg("x"),
        nb::arg("topk_ids"),
        nb::arg("topk_weights").none() = nb::none(),
        nb::arg("kwargs"),
        nb::sig("def dispatch_send(self, x, topk_ids, topk_weights=None, *, scales=None, "
                "physical: bool = False, placement: Placement | None = None, routing: Routing | "
                "None = None, "
                "layer: int = -1, timeout: float | None = None) -> None"),
        "Sends tokens: x [m, H] float32, bfloat16 or float16, or codes with `scales`; topk_ids [m, "
        "K] "
        "int32, uint32 or int64, negative means none; topk_weights [m, K] float32 (none: ones). m "
        "may be 0 "
        "and is at most max_tokens. Everything has been taken when it returns.")
      .def(
          "dispatch_recv",
          [](AllToAll& a) { return a.lane().dispatch_recv(); },
          nb::sig("def dispatch_recv(self) -> ExpertRows"),
          "Waits for all ranks' tokens and returns the rows of this rank's slots.")
      .def(
          "combine_send",
          [](AllToAll& a) { a.lane().combine_send(); },
          "Says that rows.out is written; the rows are no longer valid.")
      .def(
          "set_result_weights",
          [](AllToAll& a, nb::handle weights, nb::handle ids) {
            a.lane().set_result_weights(Array(weights, "topk_weights"), Array(ids, "topk_ids"));
          },
          nb::arg("topk_weights"),
          nb::arg("topk_ids"),
          "Before combine_recv, for who has the weights only now: [m, K] float32 instead of those "
          "of "
          "dispatch_send. Not for backends that add up before home, nor with row_weights.")
      .def("combine_recv",
           &combine_recv,
           nb::arg("out").none() = nb::none(),
           nb::arg("accumulate") = false,
           "Waits for all results and writes the weighted sums to out [m, H]; without `out` to a "
           "new "
           "array of x's type. Returns it.")
      .def(
          "poll",
          [](AllToAll& a) {
            return a.lane().comm().run("poll", false, [&] { return a.dispatcher().poll(); });
          },
          "Whether the next receive phase would find everything there; never blocks.")
      .def("keep_routing",
           &keep_routing,
           "Between dispatch_recv and combine_send: the exchange's routing, for "
           "dispatch_send(routing=) of "
           "later ones on all ranks.")
      .def("bind",
           &bind,
           nb::arg("x"),
           nb::arg("topk_ids"),
           nb::arg("topk_weights"),
           nb::arg("out"),
           nb::sig("def bind(self, x, topk_ids, topk_weights, out) -> BoundExchange"),
           "The four phases on these arrays, which are looked at once: their contents may change "
           "between exchanges.");
}

void bind_forward(nb::class_<AllToAll>& c) {
  c.def(
       "moe_forward",
       &moe_forward,
       nb::arg("x"),
       nb::arg("router_logits"),
       nb::arg("experts"),
       nb::arg("kwargs"),
       nb::sig("def moe_forward(self, x, router_logits, experts, *, out=None, scales=None, "
               "selection_bias=None, accumulate: bool = False, placement: Placement | None = None, "
               "layer: int = -1, timeout: float | None = None)"),
       "A MoE layer from router logits [m, E] (float32, bfloat16 or float16), by the formula of "
       "the "
       "constructor. Collective; m may be 0, and more than max_tokens. `experts` is an Experts, or "
       "a "
       "function that takes ExpertRows and is called once an exchange. Returns [m, H].")
      .def(
          "moe_forward_from_topk",
          &moe_forward_from_topk,
          nb::arg("x"),
          nb::arg("topk_ids"),
          nb::arg("topk_weights"),
          nb::arg("experts"),
          nb::arg("kwargs"),
          nb::sig(
              "def moe_forward_from_topk(self, x, topk_ids, topk_weights, experts, *, out=None, "
              "scales=None, accumulate: bool = False, physical: bool = False, "
              "placement: Placement | None = None, layer: int = -1, timeout: float | None = None)"),
          "The same with the routing done: topk_ids [m, K] int32, uint32 or int64, negative means "
          "none; "
          "topk_weights [m, K] float32.");
}

}  // namespace

void bind_all_to_all(nb::module_& module) {
  nb::class_<Placement>(
      module,
      "Placement",
      "Which expert lies in which slot of which rank; slot // slots_per_rank is the rank.")
      .def(nb::new_([](std::vector<ExpertId> slots, int experts, int ranks) {
             return std::make_unique<Placement>(std::move(slots), experts, ranks);
           }),
           nb::arg("expert_of_slot"),
           nb::arg("num_experts"),
           nb::arg("num_ranks"))
      .def_static("identity",
                  &Placement::identity,
                  nb::arg("num_experts"),
                  nb::arg("num_ranks"),
                  nb::arg("redundant") = 0,
                  "Experts in order, replicas of the first ones behind them.")
      .def_prop_ro("num_experts", &Placement::experts)
      .def_prop_ro("num_ranks", &Placement::ranks)
      .def_prop_ro("slots_per_rank", &Placement::slots_per_rank)
      .def_prop_ro(
          "expert_of_slot",
          [](const Placement& p) {
            const auto slots = p.expert_of_slots();
            return std::vector<ExpertId>(slots.begin(), slots.end());
          },
          "Expert of each slot, -1 where it is empty.");
  const nb::class_<Routing> routing(
      module, "Routing", "A routing that later exchanges use again (keep_routing).");
  nb::class_<BoundExchange>(
      module, "BoundExchange", "The four phases on bound arrays (AllToAll.bind).")
      .def("dispatch_send", &BoundExchange::dispatch_send)
      .def("dispatch_recv",
           &BoundExchange::dispatch_recv,
           nb::sig("def dispatch_recv(self) -> ExpertRows"))
      .def("combine_send", &BoundExchange::combine_send)
      .def("combine_recv", &BoundExchange::combine_recv)
      .def("moe_forward", &BoundExchange::forward, nb::arg("experts"))
      .def("time_without_python",
           &BoundExchange::time_without_python,
           nb::arg("count"),
           "Nanoseconds of each of `count` exchanges that run behind each other in C++, with "
           "experts that do "
           "nothing: what Python adds is measured against it. Collective.");
  nb::class_<AllToAll> c(module, "Lane", nb::is_weak_referenceable());
  c.def(nb::init<const Comm&, const nb::dict&>(), nb::arg("comm"), nb::arg("options"));
  bind_phases(c);
  bind_forward(c);
  c.def_prop_ro(
       "slots_per_rank",
       [](const AllToAll& a) { return a.lane().a2a().slots_per_rank(); },
       "L, slots of each rank: ceil((num_experts + redundant) / ranks).")
      .def_prop_ro("hidden", [](const AllToAll& a) { return a.lane().options().hidden; })
      .def_prop_ro("topk", [](const AllToAll& a) { return a.lane().options().router.topk; })
      .def_prop_ro("num_experts",
                   [](const AllToAll& a) { return a.lane().options().router.experts; })
      .def_prop_ro("max_tokens", [](const AllToAll& a) { return a.lane().options().max_tokens; })
      .def_prop_ro("layout",
                   [](const AllToAll& a) {
                     return std::string(format_name(a.dispatcher().options().exchange.format));
                   })
      .def_prop_ro(
          "lost_tokens",
          [](const AllToAll& a) {
            const auto lost = a.lane().lost_tokens();
            return std::vector<int>(lost.begin(), lost.end());
          },
          "Tokens of the last call whose sums lack a masked rank's part, rising.")
      .def_prop_ro(
          "masked",
          [](const AllToAll& a) {
            std::vector<bool> masked;
            for (Rank r = 0; r < a.dispatcher().ranks(); ++r) {
              masked.push_back(a.dispatcher().is_masked(r));
            }
            return masked;
          },
          "Whether this rank does without each rank.")
      .def(
          "mask",
          [](AllToAll& a, Rank rank) { a.lane().a2a().mask(rank); },
          nb::arg("rank"),
          "Goes on without a rank that is known to be gone. Needs on_dead_rank='mask'.")
      .def("registered_input",
           &registered_input,
           "[max_tokens, H] of dispatch_dtype where peers read this rank's tokens: rows written "
           "there "
           "between exchanges and passed as x are not copied again.")
      .def_prop_ro("stats", &stats, "Counters since the lane was made, as a dict.")
      .def("wait_stats",
           &wait_stats,
           "Since the lane was made, lists by source rank: dispatch_wait_ns and combine_wait_ns, "
           "in\n"
           "which this source was the one waited for, and rows_received, its (token, slot) pairs.")
      .def("close", &AllToAll::close, "Frees it, once no array over its memory is left.");
}

}  // namespace ferry::python
