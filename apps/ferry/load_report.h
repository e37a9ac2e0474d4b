// What was recorded about the experts' load: the dump, and the metrics for people and
// machines.
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>

#include "apps/ferry/session.h"

namespace ferry {

/// Writes the dump and logs the metrics where the options ask for them. On rank 0, behind the run.
/// Throws Error when the file cannot be written.
void report_load(const Session& session, const Engine& engine);
/// The same of a balancer in steps that together took `step_time`.
void report_load(const Session& session,
                 const Balancer& balancer,
                 std::chrono::nanoseconds step_time);

/// The metrics as "eplb" of a JSON report; null where nothing was recorded.
nlohmann::ordered_json load_json(const Engine& engine);
nlohmann::ordered_json load_json(const Balancer& balancer, std::chrono::nanoseconds step_time);

}  // namespace ferry
