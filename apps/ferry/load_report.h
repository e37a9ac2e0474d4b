// What an engine recorded about its experts' load: the dump, and the metrics for people and
// machines.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "apps/ferry/session.h"

namespace ferry {

/// Writes the dump and logs the metrics where the options ask for them. On rank 0, behind the run.
/// Throws Error when the file cannot be written.
void report_load(const Session& session, const Engine& engine);

/// The metrics as "eplb" of a JSON report; null where nothing was recorded.
nlohmann::ordered_json load_json(const Engine& engine);

}  // namespace ferry
