// How `ferry simulate` shows its forecasts: a table, JSON, and a picture over ranks.
#pragma once

#include <string>
#include <vector>

#include "ferry/sim/forecast.h"

namespace ferry {

/// One forecast and what it was asked for.
struct Forecasted {
  std::string backend;  ///< "pplx", "deepep/normal", "auto (pplx)"
  int tokens = 1;
  Forecast forecast;
};

/// A row for each forecast; behind it, for the last of them, bytes and puts by link, what a layer's
/// time is of, and how far the time hangs on which number of the description.
std::string forecast_table(const std::vector<Forecasted>& all, const Cluster& cluster);

/// {"cluster": .., "forecasts": [..]}
std::string forecast_json(const std::vector<Forecasted>& all, const Cluster& cluster);

/// Tokens per second over ranks, a line for each backend and number of tokens.
std::string forecast_plot(const std::vector<Forecasted>& all, const Cluster& cluster);

}  // namespace ferry
