// What goes with what: exchange options, wires and experts. Refusals say why.
#pragma once

#include <optional>
#include <string>

#include "ferry/backend.h"
#include "ferry/dispatcher.h"
#include "ferry/placement.h"

namespace ferry {

/// Why these experts cannot serve this exchange; none: they can.
std::optional<std::string> why_not(const ExchangeOptions& exchange, const ExpertsContract& experts);

/// Throws ConfigError with the reason of why_not.
void check_experts(const ExchangeOptions& exchange, const ExpertsContract& experts);

/// Throws ConfigError where options contradict each other or the number of ranks.
void check_options(const DispatcherOptions& options, int ranks);

/// Throws ConfigError where dead ranks are to be masked and the transport ends with the first one.
void check_survives_deaths(const DispatcherOptions& options, const Transport& transport);

/// Throws ConfigError where ranks that hold the same tokens would choose different replicas for
/// them: each would send what the others leave out, or nobody.
void check_placement(const DispatcherOptions& options, const Placement& placement);

}  // namespace ferry
