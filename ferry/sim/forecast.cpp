#include "ferry/sim/forecast.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/sim/popularity.h"

namespace ferry {

namespace {

/// Tokens that a policy has seen before it plans; others than those that are forecast.
constexpr std::int64_t kSeenTokens = 65536;
constexpr double kWorse = 1.1;

std::size_t index(int i) { return static_cast<std::size_t>(i); }

/// A seed for each draw, and for each rank of it.
std::uint64_t seed_of(std::uint64_t seed, int draw, Rank rank) {
  Popularity::Stream stream(seed ^ (static_cast<std::uint64_t>(draw + 1) << 40) ^
                            static_cast<std::uint64_t>(rank + 1));
  return stream.next();
}

/// The window of a recording that a draw is from, and the steps beside it, which are all where no
/// other is left.
Popularity recorded_popularity(const ForecastTokens& tokens, int draw, bool seen) {
  const auto steps = static_cast<int>(tokens.recorded.size());
  const int window = tokens.window == 0 ? steps : std::min(tokens.window, steps);
  Popularity::Stream stream(seed_of(tokens.seed, draw, -3));
  const int first =
      static_cast<int>(stream.next() % static_cast<std::uint64_t>(steps - window + 1));
  Trace chosen;
  for (int s = 0; s < steps; ++s) {
    const bool inside = s >= first && s < first + window;
    if (inside != seen || window == steps) chosen.push_back(tokens.recorded[index(s)]);
  }
  const ExpertLoad load = total_load(chosen);
  return Popularity(load.layer(draw % load.layers));
}

/// seen: of the tokens that a policy plans from.
Popularity popularity_of(const ForecastOptions& o, int draw, bool seen) {
  const int experts = o.shape.experts;
  switch (o.routing.routing) {
    case ForecastRouting::uniform:
      return Popularity::uniform(experts);
    case ForecastRouting::zipf:
      return Popularity::zipf(experts, o.routing.exponent, seed_of(o.routing.seed, draw, -1));
    case ForecastRouting::one_hot: {
      std::vector<double> weights(index(experts), 1.0);
      weights.front() = 1e12;
      return Popularity(weights);
    }
    case ForecastRouting::recorded:
      return recorded_popularity(o.routing, draw, seen);
  }
  return Popularity::uniform(experts);
}

/// A layer as the ranks run it: where experts lie and which replicas tokens of each rank choose.
class PlacedLayer {
 public:
  PlacedLayer(const ForecastOptions& o, const Cluster& cluster, int draw)
      : options_(o), nodes_(std::max(1, o.ranks / cluster.ranks_per_host)) {
    const int holders = o.ranks / o.slices;
    const ForecastShape& s = o.shape;
    const Popularity popularity = popularity_of(o, draw, /*seen=*/true);
    ExpertLoad seen(1, s.experts);
    Popularity::Stream stream(seed_of(o.routing.seed + 1, draw, -2));
    std::vector<ExpertId> chosen(index(s.topk));
    const std::int64_t all = std::int64_t{o.ranks / o.tp} * std::max(1, o.tokens);
    for (std::int64_t t = 0; t < std::min(all, kSeenTokens); ++t) {
      popularity.draw(stream, s.topk, chosen);
      for (const ExpertId e : chosen) seen.layer(0)[index(e)] += 1;
    }
    const Plan plan = plan_placement(seen,
                                     std::nullopt,
                                     {.ranks = holders, .nodes = nodes_},
                                     {.policy = o.policy,
                                      .redundant = o.redundant,
                                      .weighted = o.replicas == ReplicaRule::weighted});
    placement_ = plan.placement.layer(0);
    if (!plan.shares.empty()) shares_ = plan.shares.front();
  }

  const Placement& placement() const { return *placement_; }

  void place(Rank home, std::span<const ExpertId> ids, std::span<SlotId> slots) const {
    if (options_.redundant == 0) {
      placement_->place(ids, options_.shape.topk, slots);
      return;
    }
    const bool nearest = options_.replicas == ReplicaRule::nearest;
    placement_
        ->choosing({.shares = shares_,
                    .source = home,
                    .nearest = nearest,
                    .nodes = nodes_,
                    .tp = options_.tp / options_.slices})
        .place(ids, options_.shape.topk, slots);
  }

 private:
  const ForecastOptions& options_;
  int nodes_;
  std::optional<Placement> placement_;
  std::vector<float> shares_;
};

/// A layer's tokens, whom they choose and where that lies. The same however often it is asked.
class DrawnLayer {
 public:
  DrawnLayer(const ForecastOptions& o, const Cluster& cluster, int draw)
      : options_(o),
        cluster_(cluster),
        draw_(draw),
        popularity_(popularity_of(o, draw, /*seen=*/false)),
        layer_(o, cluster, draw) {}

  const Placement& placement() const { return layer_.placement(); }

  void route(Rank home, std::span<SlotId> slots) {
    Popularity::Stream stream(seed_of(options_.routing.seed, draw_, home));
    ids_.resize(slots.size());
    popularity_.draw(stream, options_.shape.topk, ids_);
    layer_.place(home, ids_, slots);
  }

  std::vector<RankTraffic> count(const LinkLevels& levels,
                                 int slots_per_rank,
                                 const RoutingOf& routing) const {
    const ForecastOptions& o = options_;
    TrafficOptions traffic;
    traffic.dispatcher = {.exchange = o.exchange,
                          .slots_per_rank = slots_per_rank,
                          .hidden = o.shape.hidden,
                          .topk = o.shape.topk,
                          .max_tokens = std::max(1, o.tokens),
                          .tp = o.tp / o.slices,
                          .dispatch_wire = o.dispatch_wire,
                          .expert_type = o.dispatch_wire,
                          .combine_wire = o.combine_wire};
    traffic.tokens.assign(index(o.ranks / o.slices), o.tokens);
    traffic.threads = cluster_.threads;
    return count_tracks(traffic, o.slices, levels, routing);
  }

 private:
  const ForecastOptions& options_;
  const Cluster& cluster_;
  int draw_;
  Popularity popularity_;
  PlacedLayer layer_;
  std::vector<ExpertId> ids_;
};

ExpertWork expert_work(const ForecastOptions& o) {
  const double weights = 3.0 * o.shape.hidden * o.shape.inter / o.slices;
  const double in = static_cast<double>(wire_row_bytes(o.dispatch_wire, o.shape.hidden));
  const double out = static_cast<double>(wire_row_bytes(o.combine_wire, o.shape.hidden));
  if (o.shape.inter == 0) return {};
  return {.bytes_per_slot = weights * o.shape.bytes_per_weight,
          .bytes_per_row = in + out / o.slices,
          .operations_per_row = 2 * weights};
}

/// Where layers are timed.
struct Place {
  const Cluster& cluster;
  const LinkLevels& levels;
  bool tiles;

  LayerTime time(std::span<const RankLoad> loads) const {
    return time_layer(loads, cluster, levels, tiles);
  }
};

struct Drawn {
  std::vector<RankTraffic> ranks;
  std::vector<RankLoad> loads;
  LayerTime time;
};

void add_loads(const ForecastOptions& o, Drawn& drawn) {
  for (const RankTraffic& rank : drawn.ranks) {
    RankLoad& load = drawn.loads.emplace_back(load_of(rank, expert_work(o)));
    if (o.slices == 1 || o.shape.inter == 0) continue;
    const auto gather = [&](double rows, int columns, DType type) {
      return GatherLoad{.members = o.slices,
                        .gathers = rows > 0 ? 1.0 : 0.0,
                        .bytes = rows * columns * static_cast<double>(dtype_bytes(type))};
    };
    load.between = gather(load.rows, o.shape.inter, DType::bf16);
    load.results = gather(rank.tokens, o.shape.hidden, DType::f32);
  }
}

/// The layer with what ranks would fetch, instead of `drawn` where it takes less time.
void balance_step(const ForecastOptions& o,
                  const Place& place,
                  DrawnLayer& layer,
                  Drawn& drawn,
                  StepBalanceForecast& sum) {
  const LinkLevels& levels = place.levels;
  sum.layer_us_without += drawn.time.layer_us / o.draws;
  const int per_rank = layer.placement().slots_per_rank();
  std::vector<std::int64_t> rows;
  double dispatch = 0;
  for (const RankTraffic& rank : drawn.ranks)
    rows.insert(rows.end(), rank.slot_rows.begin(), rank.slot_rows.end());
  for (const RankTime& rank : drawn.time.ranks) dispatch += rank.dispatch / o.ranks;
  const ExpertWork work = expert_work(o);
  const std::vector<Fetch> fetches = plan_fetches(rows,
                                                  layer.placement(),
                                                  levels,
                                                  step_costs(place.cluster, levels, work, dispatch),
                                                  o.step_balance);
  if (fetches.empty()) return;

  FetchedSlots slots_of(rows, fetches, o.ranks, per_rank);
  Drawn balanced;
  balanced.ranks =
      layer.count(levels, slots_of.slots_per_rank(), [&](Rank home, std::span<SlotId> slots) {
        layer.route(home, slots);
        for (SlotId& slot : slots) slot = slots_of.next(slot);
      });
  add_loads(o, balanced);
  add_fetches(fetches, work, levels, o.shape.experts, balanced.loads);
  balanced.time = place.time(balanced.loads);
  if (balanced.time.layer_us >= drawn.time.layer_us) return;
  drawn = std::move(balanced);
  const double part = 1.0 / o.draws;
  sum.layers += part;
  for (const Fetch& f : fetches) {
    sum.fetches += f.own() ? 0 : part;
    sum.rows += static_cast<double>(f.rows) * part;
    if (f.through == f.to && !levels.near(f.source, f.to)) sum.bytes += work.bytes_per_slot * part;
  }
}

Percentiles percentiles(std::vector<double> values) {
  std::ranges::sort(values);
  const auto at = [&](double part) {
    return values[static_cast<std::size_t>(std::ceil(part * static_cast<double>(values.size()))) -
                  1];
  };
  return {.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                  static_cast<double>(values.size()),
          .p50 = at(0.5),
          .p90 = at(0.9),
          .p99 = at(0.99),
          .max = values.back()};
}

using DrawnLoads = std::vector<std::vector<RankLoad>>;  // [draw][R]

double other_us(const ForecastOptions& o, const Cluster& c, const LinkLevels& levels) {
  return std::max(o.other_bytes / o.tp / (c.memory_gbytes_per_s * 1e3),
                  o.other_operations / o.tp / (c.tflops * 1e6)) +
         gather_us(o.other_gathers, c, levels);
}

double mean_layer_us(const DrawnLoads& drawn, const Place& place) {
  double sum = 0;
  for (const auto& loads : drawn) sum += place.time(loads).layer_us;
  return sum / static_cast<double>(drawn.size());
}

std::vector<Sensitivity> sensitivities_of(const ForecastOptions& o,
                                          const Place& place,
                                          const DrawnLoads& drawn) {
  const Cluster& cluster = place.cluster;
  const LinkLevels& levels = place.levels;
  const auto step = [&](const Cluster& c) {
    return o.shape.layers * mean_layer_us(drawn, {c, levels, place.tiles}) + other_us(o, c, levels);
  };
  const double now = step(cluster);
  Cluster worse = cluster;
  std::vector<Sensitivity> all;
  const auto add = [&](std::string name, double& value, Origin origin, bool time) {
    const double kept = value;
    value = time ? kept * kWorse : kept / kWorse;
    all.push_back({std::move(name), kept, origin, now > 0 ? (step(worse) / now - 1) * 100 : 0});
    value = kept;
  };
  for (std::size_t l = 0; l + 1 < levels.levels(); ++l) {
    ClusterLink& link = worse.links[l];
    add(link.name + " latency_us", link.latency_us, link.origin, true);
    add(link.name + " gbytes_per_s", link.gbytes_per_s, link.origin, false);
    add(link.name + " messages_per_s", link.messages_per_s, link.origin, false);
    if (link.peer_messages_per_s > 0)
      add(link.name + " peer_messages_per_s", link.peer_messages_per_s, link.origin, false);
  }
  add("memory gbytes_per_s", worse.memory_gbytes_per_s, worse.memory_origin, false);
  add("kernels tflops", worse.tflops, worse.kernel_origin, false);
  if (worse.sum_gbytes_per_s > 0)
    add("kernels sum_gbytes_per_s", worse.sum_gbytes_per_s, worse.kernel_origin, false);
  add("start_us", worse.start_us, worse.start_origin, true);
  return all;
}

void add_levels(const std::vector<RankTraffic>& ranks,
                PhaseTraffic RankTraffic::*phase,
                double weight,
                std::vector<LevelForecast>& levels) {
  for (std::size_t l = 0; l < levels.size(); ++l) {
    LevelForecast& level = levels[l];
    for (const RankTraffic& rank : ranks) {
      const auto& [puts, bytes] = (rank.*phase).out[l];
      level.puts += static_cast<double>(puts) * weight;
      level.bytes += static_cast<double>(bytes) * weight;
      level.most_puts = std::max(level.most_puts, static_cast<double>(puts));
      level.most_bytes = std::max(level.most_bytes, static_cast<double>(bytes));
    }
  }
}

void check_groups(const ForecastOptions& o, const Cluster& cluster) {
  if (o.tp < 1 || o.slices < 1 || o.ranks % o.tp != 0)
    fail<ConfigError>("{} ranks do not make groups of {} (--tp must divide --ep)", o.ranks, o.tp);
  if (o.slices == 1) return;
  const int slices = o.slices;
  if (o.tp % slices != 0) {
    fail<ConfigError>("--expert-slices {}: --tp {} does not divide by that", slices, o.tp);
  }
  if (cluster.ranks_per_host % slices != 0) {
    fail<ConfigError>("--expert-slices {}: hosts of {} ranks do not have whole holders of experts",
                      slices,
                      cluster.ranks_per_host);
  }
  if (o.exchange.reduce_at != ExchangeOptions::ReduceAt::home ||
      o.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask) {
    fail<ConfigError>(
        "--expert-slices {}: this backend sums on each rank first, or goes on without a rank that "
        "dies; choose pplx",
        slices);
  }
  if (is_quantized(o.combine_wire))
    fail<ConfigError>("--expert-slices {}: results travel as f32 or bf16", slices);
  if (o.step_balance != StepBalance::none)
    fail<ConfigError>("--expert-slices {}: --per-step-balance moves whole experts", slices);
}

void check(const ForecastOptions& o, const Cluster& cluster) {
  const ForecastShape& s = o.shape;
  if (o.ranks < 1 || o.tokens < 0 || o.draws < 1 || o.redundant < 0)
    fail<ConfigError>("{} ranks, {} tokens, {} draws, {} redundant experts",
                      o.ranks,
                      o.tokens,
                      o.draws,
                      o.redundant);
  if (s.hidden < 1 || s.inter < 0 || s.experts < 1 || s.topk < 1 || s.layers < 1)
    fail<ConfigError>("hidden {}, inter {}, {} experts, top-{}, {} layers: cannot be forecast",
                      s.hidden,
                      s.inter,
                      s.experts,
                      s.topk,
                      s.layers);
  if (o.routing.window < 0) fail<ConfigError>("windows of {} recorded steps", o.routing.window);
  if (s.topk > s.experts) fail<ConfigError>("top-{} of {} experts", s.topk, s.experts);
  if (o.routing.routing == ForecastRouting::recorded) {
    const int experts = total_load(o.routing.recorded).experts;
    if (experts != s.experts)
      fail<ConfigError>("the recorded load is of {} experts, not of {}", experts, s.experts);
  }
  cluster.check_ranks(o.ranks);
  check_groups(o, cluster);
}

}  // namespace

Bound Forecast::bound() const {
  return static_cast<Bound>(std::ranges::max_element(shares) - shares.begin());
}

Forecast make_forecast(const ForecastOptions& o, const Cluster& cluster) {
  check(o, cluster);
  const LinkLevels levels(o.ranks, cluster.spans());
  Forecast f{.ranks = o.ranks, .hosts = o.ranks / levels.ranks_per_host()};
  const bool tiles = o.exchange.pipeline == ExchangeOptions::Pipeline::tiles && f.hosts > 1;
  const Place place{cluster, levels, tiles};
  for (std::size_t l = 0; l < levels.levels(); ++l)
    f.dispatch.push_back({l == kOwnLevel ? "own" : cluster.links[l - 1].name});
  f.combine = f.dispatch;
  if (o.step_balance != StepBalance::none) f.step_balance.emplace();

  DrawnLoads drawn;
  std::vector<double> dispatch, experts, combine;
  f.balancedness = 0;
  for (int draw = 0; draw < o.draws; ++draw) {
    DrawnLayer layer(o, cluster, draw);
    f.slots_per_rank = layer.placement().slots_per_rank();
    Drawn now;
    now.ranks = layer.count(
        levels, f.slots_per_rank, [&](Rank home, std::span<SlotId> s) { layer.route(home, s); });
    add_loads(o, now);
    now.time = place.time(now.loads);
    if (f.step_balance) balance_step(o, place, layer, now, *f.step_balance);
    const double weight = 1.0 / (static_cast<double>(o.ranks) * o.draws);
    add_levels(now.ranks, &RankTraffic::dispatch, weight, f.dispatch);
    add_levels(now.ranks, &RankTraffic::combine, weight, f.combine);
    std::vector<double> rows;
    for (const RankTraffic& rank : now.ranks) rows.push_back(static_cast<double>(rank.rows));
    f.balancedness += balancedness(rows) / o.draws;
    f.layer_us += now.time.layer_us / o.draws;
    for (std::size_t b = 0; b < kBounds; ++b) f.shares[b] += now.time.bound_us[b];
    for (const RankTime& rank : now.time.ranks) {
      dispatch.push_back(rank.dispatch);
      experts.push_back(rank.experts);
      combine.push_back(rank.combine);
    }
    drawn.push_back(std::move(now.loads));
  }
  const double parts = std::accumulate(f.shares.begin(), f.shares.end(), 0.0);
  for (double& share : f.shares) share /= parts > 0 ? parts : 1;
  f.dispatch_us = percentiles(std::move(dispatch));
  f.experts_us = percentiles(std::move(experts));
  f.combine_us = percentiles(std::move(combine));
  f.other_us = other_us(o, cluster, levels);
  f.step_us = o.shape.layers * f.layer_us + f.other_us;
  if (f.step_us > 0) f.tokens_per_s = 1e6 * o.ranks / o.tp * o.tokens / f.step_us;
  f.tokens_per_s_per_host = f.tokens_per_s / f.hosts;
  f.sensitivities = sensitivities_of(o, place, drawn);
  return f;
}

}  // namespace ferry
