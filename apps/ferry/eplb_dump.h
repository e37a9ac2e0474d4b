// Load dumps: JSON with SGLang's keys, from its recorder or ours.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ferry/balance/trace.h"

namespace ferry {

struct LoadDump {
  Trace steps;  // one where the file holds sums only
  std::optional<std::vector<std::vector<ExpertId>>> physical_to_logical_map;  // [layer][P]
};

/// Reads {"logical_count": [layer][expert] or [step][layer][expert], "physical_to_logical_map":
/// [layer][P], optional}. Throws ModelError, one line that names the file and the place, for
/// anything that is not that; counts must be finite and not negative, shapes regular.
LoadDump read_load_dump(const std::string& file);

/// All steps together.
ExpertLoad total_load(const Trace& steps);

}  // namespace ferry
