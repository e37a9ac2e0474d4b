// A forecast: layers of made-up tokens go through routing, placement and the plans of an exchange
// on every rank, and the cluster's time is charged to what they move and compute.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/backend.h"
#include "ferry/balance/trace.h"
#include "ferry/planner.h"
#include "ferry/sim/cluster.h"
#include "ferry/sim/exchange_time.h"
#include "ferry/sim/step_balance.h"
#include "ferry/wire.h"

namespace ferry {

enum class ForecastRouting { uniform, zipf, one_hot, recorded };

/// How tokens choose their experts.
struct ForecastTokens {
  ForecastRouting routing = ForecastRouting::uniform;
  double exponent = 1;  ///< of zipf
  Trace recorded = {};  ///< steps of a dump: layers of their sum, one after the other
  int window =
      0;  ///< of them that tokens are drawn from, policies see the others; 0: the sum of all
  std::uint64_t seed = 1;
};

struct ForecastShape {
  int hidden = 0;
  int inter = 0;  ///< 0: experts that cost nothing, for an exchange alone
  int experts = 0;
  int topk = 0;
  int layers = 1;               ///< sparse ones of a step
  double bytes_per_weight = 2;  ///< of the experts
};

struct ForecastOptions {
  int ranks = 1;
  int tokens = 1;  ///< of each rank; of each group of tp
  int tp = 1;      ///< ranks of a group
  int slices = 1;  ///< of which so many share out each expert's columns; divides tp
  ForecastShape shape;
  ForecastTokens routing;
  ExchangeOptions exchange;
  WireType dispatch_wire = WireType::bf16;
  WireType combine_wire = WireType::bf16;
  Policy policy = Policy::identity;
  int redundant = 0;
  ReplicaRule replicas = ReplicaRule::hash;
  StepBalance step_balance = StepBalance::none;
  int draws = 3;  ///< layers that are made up; the others of a step are like them
  /// Of a group in a step, beside its sparse layers' exchanges and experts; its ranks share it out.
  double other_bytes = 0;
  double other_operations = 0;
  GatherLoad other_gathers = {};
};

/// What per-step balance would do, mean over the layers drawn.
struct StepBalanceForecast {
  double layers = 0;            ///< part of them that it makes shorter; the others stay as they are
  double fetches = 0;           ///< experts that ranks fetch in a layer
  double bytes = 0;             ///< of weights, between hosts
  double rows = 0;              ///< that move
  double layer_us_without = 0;  ///< what the layer takes as it is
};

/// Over all ranks and draws.
struct Percentiles {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};

/// Of a level of links: what a rank sends in an exchange.
struct LevelForecast {
  std::string name;
  double puts = 0, bytes = 0;            ///< of the mean rank
  double most_puts = 0, most_bytes = 0;  ///< of the busiest
};

struct Sensitivity {
  std::string parameter;
  double value = 0;
  Origin origin = Origin::described;
  double percent = 0;  ///< by which a step grows when it gets a tenth worse
};

struct Forecast {
  int ranks = 1;
  int hosts = 1;
  Percentiles dispatch_us, experts_us, combine_us;
  double layer_us = 0;  ///< mean over draws of the slowest rank's
  double other_us = 0;
  double step_us = 0;
  Shares shares = {};       ///< of a layer, adding up to 1
  double balancedness = 1;  ///< mean over draws of mean over max of the ranks' rows
  int slots_per_rank = 0;
  std::vector<LevelForecast> dispatch, combine;
  std::optional<StepBalanceForecast> step_balance;  ///< where it was asked for
  std::vector<Sensitivity> sensitivities;
  double tokens_per_s = 0;
  double tokens_per_s_per_host = 0;

  Bound bound() const;
};

/// Throws ConfigError for what cannot be: ranks that the cluster has not, more experts of a token
/// than there are, policies that refuse.
Forecast make_forecast(const ForecastOptions& options, const Cluster& cluster);

}  // namespace ferry
