// What ferry eplb prints: tables for people, JSON for machines.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "ferry/balance/load_stats.h"
#include "ferry/balance/simulate.h"

namespace ferry {

std::string gigabytes(double bytes);

void print_load_stats(const LoadStats& stats, std::size_t steps, const ExpertPlacement& placement);
nlohmann::ordered_json load_stats_json(const LoadStats& stats,
                                       std::size_t steps,
                                       const ExpertPlacement& placement);

void print_simulation_head();
void print_simulation(const std::string& policy, const Simulation& simulation);

}  // namespace ferry
