#include "lane.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <cstring>

#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "native_experts.h"

namespace ferry::python {

namespace {

/// The lane computes with denormals flushed; callers' code between runs as it is used to.
class FloatingPoint {
 public:
  FloatingPoint() { std::fegetenv(&mode_); }

  const std::fenv_t* mode() const { return &mode_; }

 private:
  std::fenv_t mode_{};
};

class SetMode {
 public:
  explicit SetMode(const FloatingPoint& wanted) {
    std::fegetenv(&before_);
    std::fesetenv(wanted.mode());
  }

  ~SetMode() { std::fesetenv(&before_); }

  SetMode(const SetMode&) = delete;
  SetMode& operator=(const SetMode&) = delete;

 private:
  std::fenv_t before_{};
};

WireType wire_of(Settings& settings, const char* name, WireType otherwise) {
  const std::optional<std::string> given = settings.find<std::string>(name);
  return given ? parse_wire_type(*given, name) : otherwise;
}

RouterOptions router_of(Settings& settings) {
  RouterOptions router{.experts = settings.get("num_experts", 0), .topk = settings.get("topk", 0)};
  const auto scoring = settings.get<std::string>("scoring", "softmax");
  if (scoring != "softmax" && scoring != "sigmoid") {
    fail<ConfigError>("scoring is '{}'; known are softmax and sigmoid", scoring);
  }
  if (scoring == "sigmoid") router.score = RouterOptions::Score::sigmoid;
  router.renormalize = settings.get("renormalize", false);
  router.choose_first = settings.get("choose_first", false);
  router.groups = settings.get("num_groups", 1);
  router.topk_groups = settings.get("topk_groups", 1);
  const auto group_score = settings.get<std::string>("group_score", "max");
  if (group_score != "max" && group_score != "sum_of_two") {
    fail<ConfigError>("group_score is '{}'; known are max and sum_of_two", group_score);
  }
  if (group_score == "sum_of_two") router.group_score = RouterOptions::GroupScore::sum_of_two;
  router.scaling = static_cast<float>(settings.get("scaling", 1.0));
  return router;
}

}  // namespace

MoeAllToAll::Options lane_options(Settings& settings, Transport& transport) {
  MoeAllToAll::Options o;
  o.router = router_of(settings);
  o.redundant = settings.get("redundant", 0);
  o.hidden = settings.get("hidden", 0);
  o.max_tokens = settings.get("max_tokens", 0);
  o.tp = settings.get("tp", 1);
  o.row_weights = settings.get("row_weights", false);
  o.row_alignment = settings.get<std::int64_t>("row_alignment", 16);
  o.timeout = settings.seconds("timeout").value_or(o.timeout);
  o.dispatch_wire = wire_of(settings, "dispatch_dtype", WireType::bf16);
  o.expert_type = wire_of(settings, "expert_dtype", o.dispatch_wire);
  o.combine_wire = wire_of(settings, "combine_dtype", WireType::bf16);
  if (o.router.experts < 1 || o.router.topk < 1 || o.router.topk > o.router.experts ||
      o.hidden < 1 || o.max_tokens < 1 || o.redundant < 0) {
    fail<ConfigError>(
        "an all-to-all of {} experts ({} redundant), top-{}, hidden {}, max_tokens {}: "
        "all must be at least 1, topk at most the experts, redundant at least 0",
        o.router.experts,
        o.redundant,
        o.router.topk,
        o.hidden,
        o.max_tokens);
  }
  MoeA2ABackend backend = parse_backend(settings.get<std::string>("backend", "pplx"));
  DeepepMode mode = parse_deepep_mode(settings.get<std::string>("deepep_mode", "low_latency"));
  const BackendChoice chosen = choose_backend(backend,
                                              mode,
                                              {.ranks = transport.size(),
                                               .tokens = o.max_tokens,
                                               .hidden = o.hidden,
                                               .topk = o.router.topk,
                                               .dispatch_wire = o.dispatch_wire,
                                               .combine_wire = o.combine_wire,
                                               .load_store = transport.capabilities().load_store,
                                               .experts_take_pointers = false});
  o.exchange = exchange_options(chosen.backend, chosen.mode);
  if (const auto layout = settings.find<std::string>("layout")) {
    o.exchange.format = parse_format(*layout);
    o.exchange.fixed_format = true;
  } else if (o.exchange.format == DispatchFormat::row_pointers) {
    o.exchange.format = DispatchFormat::ragged;  // pointers are no array
  }
  if (const auto on_dead_rank = settings.find<std::string>("on_dead_rank")) {
    if (*on_dead_rank != "fail" && *on_dead_rank != "mask") {
      fail<ConfigError>("on_dead_rank is '{}'; known are fail and mask", *on_dead_rank);
    }
    o.exchange.on_dead_rank = *on_dead_rank == "mask" ? ExchangeOptions::OnDeadRank::mask
                                                      : ExchangeOptions::OnDeadRank::fail;
  }
  o.exchange.hidden_partition = settings.get("hidden_partition", o.exchange.hidden_partition);
  return o;
}

Lane::Lane(std::shared_ptr<CommState> comm, const MoeAllToAll::Options& options)
    : comm_(std::move(comm)),
      options_(options),
      identity_(Placement::identity(
          options.router.experts, comm_->transport().size(), options.redundant)) {
  const std::size_t entries =
      static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.router.topk);
  a2a_ = comm_->run("AllToAll", false, [&] {
    return std::make_unique<MoeAllToAll>(options_, comm_->transport(), comm_->pool());
  });
  experts_.resize(entries);
  slots_.resize(entries);
  weights_.resize(entries);
  if (options_.row_weights) home_weights_.assign(entries, 1.0F);
}

Lane::~Lane() {
  std::optional<nb::gil_scoped_release> released;
  if (PyGILState_Check() != 0) released.emplace();
  a2a_.reset();
}

void Lane::check(const TokenArrays& t) const {
  const int columns = options_.exchange.hidden_partition
                          ? options_.hidden / comm_->transport().size()
                          : options_.hidden;
  t.x.check_rows(-1, columns);
  const std::int64_t tokens = t.x.shape(0);
  const bool codes =
      t.x.type() == Element::fp8 || t.x.type() == Element::i8 || t.x.type() == Element::u8;
  if (codes != static_cast<bool>(t.scales) || (codes && !is_quantized(options_.dispatch_wire))) {
    fail<ConfigError>(
        "{} is {} {} scales, and dispatch_dtype is {}: codes come with their scales, to an "
        "all-to-all whose dispatch_dtype is quantised",
        t.x.name(),
        element_name(t.x.type()),
        t.scales ? "with" : "without",
        wire_type_name(options_.dispatch_wire));
  }
  if (codes) {
    const WireScales scales = wire_scales(options_.dispatch_wire, columns);
    const Element wanted = scales.bytes == 4 ? Element::f32 : Element::u8;
    if (t.scales.ndim() != 2 || t.scales.shape(0) != tokens || t.scales.shape(1) != scales.count ||
        t.scales.type() != wanted) {
      fail<ConfigError>("{} must be {} [{}, {}] for rows of {}",
                        t.scales.name(),
                        element_name(wanted),
                        tokens,
                        scales.count,
                        wire_type_name(options_.dispatch_wire));
    }
  } else {
    t.x.dtype();
  }
  if (t.logits) {
    t.logits.check_rows(tokens, options_.router.experts);
    t.logits.dtype();
    return;
  }
  t.ids.check_rows(tokens, options_.router.topk);
  t.ids.ids();
  if (t.weights) {
    t.weights.check_rows(tokens, options_.router.topk);
    if (t.weights.type() != Element::f32) {
      fail<ConfigError>(
          "{} is {}; weights are float32", t.weights.name(), element_name(t.weights.type()));
    }
  }
}

void Lane::check_out(const Array& out, std::int64_t tokens) const {
  const int columns = options_.exchange.hidden_partition
                          ? options_.hidden / comm_->transport().size()
                          : options_.hidden;
  out.check_rows(tokens, columns);
  out.dtype();
}

/// Codes are put together with their scales as they travel; everything else is taken as it is.
Lane::Rows Lane::rows_of(const TokenArrays& t) {
  if (!t.scales) return {.rows = t.x.rows(), .type = t.x.dtype()};
  const std::int64_t tokens = t.x.shape(0);
  const std::int64_t columns = t.x.shape(1);
  const WireScales scales = wire_scales(options_.dispatch_wire, columns);
  const std::size_t row_bytes = wire_row_bytes(options_.dispatch_wire, columns);
  const std::size_t bytes = row_bytes * static_cast<std::size_t>(tokens);
  if (encoded_.size() < bytes) encoded_ = Buffer(bytes);  // zeroed: the padding stays so
  for (std::int64_t row = 0; row < tokens; ++row) {
    std::byte* to = encoded_.data() + static_cast<std::size_t>(row) * row_bytes;
    std::memcpy(to, t.x.rows().row(row), static_cast<std::size_t>(columns));
    const std::byte* from = t.scales.data() + row * t.scales.stride(0);
    for (std::int64_t s = 0; s < scales.count; ++s) {
      std::memcpy(to + scales.offset + static_cast<std::size_t>(s) * scales.bytes,
                  from + s * t.scales.stride(1),
                  scales.bytes);
    }
  }
  return {.rows = {.base = encoded_.data(), .stride = static_cast<std::ptrdiff_t>(row_bytes)},
          .encoded = true};
}

/// Fills in slots and weights for the four phases.
void Lane::route(const TokenArrays& t, const CallOptions& call) {
  const int topk = options_.router.topk;
  const std::int64_t tokens = t.x.shape(0);
  const int end = call.physical ? identity_.slots() : identity_.experts();
  std::vector<std::int32_t>& ids = call.physical ? slots_ : experts_;
  const IndexView view = t.ids.ids();
  std::size_t entry = 0;
  for (std::int64_t row = 0; row < tokens; ++row) {
    const auto* weights =
        t.weights ? reinterpret_cast<const float*>(t.weights.rows().row(row)) : nullptr;
    for (int k = 0; k < topk; ++k, ++entry) {
      const std::int64_t id = view.at(row, k);
      if (id >= end) {
        fail<ConfigError>("token {}: choice {} is {} {}, outside 0..{}; use -1 for none",
                          row,
                          k,
                          call.physical ? "slot" : "expert",
                          id,
                          end - 1);
      }
      ids[entry] = id < 0 ? -1 : static_cast<std::int32_t>(id);
      weights_[entry] = id < 0 ? 0 : weights != nullptr ? weights[k] : 1;
    }
  }
  if (call.physical) return;
  const Placement& placement = call.placement ? *call.placement : identity_;
  placement.place({experts_.data(), entry}, topk, {slots_.data(), entry});
}

void Lane::dispatch_send(const TokenArrays& t,
                         const CallOptions& call,
                         const CachedRouting* routing) {
  const std::int64_t tokens = t.x.shape(0);
  if (tokens > options_.max_tokens) {
    fail<ConfigError>(
        "{} tokens, max_tokens is {}: send them in several exchanges, or use "
        "moe_forward, which does it",
        tokens,
        options_.max_tokens);
  }
  const std::size_t entries =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(options_.router.topk);
  comm_->run("dispatch_send", false, [&] {
    if (routing == nullptr) route(t, call);
    const Rows rows = rows_of(t);
    a2a_->dispatcher().dispatch_send(
        {.rows = rows.rows,
         .type = rows.type,
         .encoded = rows.encoded,
         .tokens = static_cast<int>(tokens),
         .slots = {slots_.data(), entries},
         .weights = {weights_.data(), entries},
         .row_weights = options_.row_weights ? std::span<const float>{weights_.data(), entries}
                                             : std::span<const float>{},
         .layer = call.layer,
         .cached = routing,
         .timeout = call.timeout});
  });
  in_phases_ = true;
  framework_ = t.framework;
  element_ = t.scales ? Element::bf16 : t.x.type();
  tokens_ = tokens;
}

std::unique_ptr<HeldRows> Lane::held(const ExpertRows& rows) {
  const int holders =
      options_.exchange.hidden_partition ? 1 : comm_->transport().size() / options_.tp;
  return std::make_unique<HeldRows>(
      shared_from_this(), rows, RowsRoom{.of_slot = std::int64_t{options_.max_tokens} * holders});
}

nb::object Lane::dispatch_recv() {
  const ExpertRows rows =
      comm_->run("dispatch_recv", false, [&] { return a2a_->dispatcher().dispatch_recv(); });
  return nb::cast(held(rows).release(), nb::rv_policy::take_ownership);
}

void Lane::combine_send() {
  comm_->run("combine_send", false, [&] { a2a_->dispatcher().combine_send(); });
  ++exchange_;
}

void Lane::set_result_weights(const Array& weights, const Array& ids) {
  if (options_.exchange.reduce_at != ExchangeOptions::ReduceAt::home || options_.row_weights) {
    fail<ConfigError>("weights must come with dispatch_send here: they are used before home");
  }
  ids.check_rows(tokens_, options_.router.topk);
  weights.check_rows(tokens_, options_.router.topk);
  if (weights.type() != Element::f32) {
    fail<ConfigError>(
        "{} is {}; weights are float32", weights.name(), element_name(weights.type()));
  }
  const IndexView view = ids.ids();
  std::size_t entry = 0;
  for (std::int64_t row = 0; row < tokens_; ++row) {
    const auto* of_token = reinterpret_cast<const float*>(weights.rows().row(row));
    for (int k = 0; k < options_.router.topk; ++k, ++entry) {
      weights_[entry] = view.at(row, k) < 0 ? 0 : of_token[k];
    }
  }
}

void Lane::combine_recv(const Array& out, bool accumulate) {
  const std::size_t entries =
      static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(options_.router.topk);
  const std::vector<float>& weights = options_.row_weights ? home_weights_ : weights_;
  comm_->run("combine_recv", false, [&] {
    a2a_->dispatcher().combine_recv({.weights = {weights.data(), entries},
                                     .rows = out.mutable_rows(),
                                     .type = out.dtype(),
                                     .accumulate = accumulate});
  });
}

std::span<const int> Lane::lost_tokens() const {
  return in_phases_ ? a2a_->dispatcher().lost_tokens() : a2a_->lost_tokens();
}

MoeTokens Lane::moe_tokens(const TokenArrays& t, const Array& out, const CallOptions& call) {
  const Rows rows = rows_of(t);
  return {.hidden = rows.rows,
          .type = rows.type,
          .encoded = rows.encoded,
          .tokens = static_cast<int>(t.x.shape(0)),
          .out = out.mutable_rows(),
          .out_type = out.dtype(),
          .accumulate = call.accumulate,
          .placement = call.placement.get(),
          .layer = call.layer,
          .timeout = call.timeout};
}

std::vector<std::int64_t> Lane::time_exchanges(const TokenArrays& t, const Array& out, int count) {
  if (count < 0) fail<ConfigError>("count is {}", count);
  std::vector<std::int64_t> times(static_cast<std::size_t>(count));
  comm_->run("time_without_python", count > 1, [&] {
    const MoeTokens tokens = moe_tokens(t, out, {});
    const TopK topk{.ids = t.ids.ids(), .weights = t.weights.rows()};
    for (std::int64_t& time : times) {
      const auto begin = std::chrono::steady_clock::now();
      moe_forward_from_topk(*a2a_, tokens, topk, [](const ExpertRows&) {});
      time = (std::chrono::steady_clock::now() - begin).count();
    }
  });
  return times;
}

void Lane::forward(const TokenArrays& t,
                   const Array& out,
                   nb::handle experts,
                   const CallOptions& call) {
  NativeExperts* native = nullptr;
  if (!nb::try_cast<NativeExperts*>(experts, native)) {
    PyErr_Clear();
    if (PyCallable_Check(experts.ptr()) == 0) {
      fail<ConfigError>("experts must be an Experts, or something to call with ExpertRows");
    }
  }
  in_phases_ = false;
  framework_ = t.framework;
  const FloatingPoint callers_mode;
  const auto callback = [&](const ExpertRows& rows) {
    if (native != nullptr) {
      native->run(rows);
      return;
    }
    const SetMode mode(callers_mode);
    const nb::gil_scoped_acquire gil;
    {
      const nb::object handed = nb::cast(held(rows).release(), nb::rv_policy::take_ownership);
      experts(handed);
    }
    ++exchange_;
  };
  const bool several = t.x.shape(0) > options_.max_tokens;
  comm_->run("moe_forward", several, [&] {
    const MoeTokens tokens = moe_tokens(t, out, call);
    if (t.logits) {
      const auto* bias = reinterpret_cast<const float*>(call.selection_bias.data());
      const std::size_t experts_count =
          call.selection_bias ? static_cast<std::size_t>(options_.router.experts) : 0;
      moe_forward(*a2a_,
                  tokens,
                  {.rows = t.logits.rows(),
                   .type = t.logits.dtype(),
                   .selection_bias = {bias, experts_count}},
                  callback);
      return;
    }
    moe_forward_from_topk(*a2a_,
                          tokens,
                          {.ids = t.ids.ids(),
                           .weights = t.weights.rows(),
                           .kind = call.physical ? TopK::Ids::physical : TopK::Ids::logical},
                          callback);
  });
}

}  // namespace ferry::python
