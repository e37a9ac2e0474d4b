// Load dumps: JSON with SGLang's keys, from its recorder or ours. Placements: the same, or the
// layout of vllm-ascend's expert_map_path.
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

/// Reads a placement [layer][P] from {"physical_to_logical_map": [layer][P]} or from {"layer_list":
/// [{"layer_id", "device_list": [{"device_id", "device_expert": [slots of that rank]}]}]}; layers
/// and devices may stand in any order. ModelError as above, also for a file that says another
/// number of ranks, layers or devices than there are. The shape [layer][slot] is regular, ids are
/// at least -1; whether every expert has a slot is for ExpertPlacement to say.
std::vector<std::vector<ExpertId>> read_placement(const std::string& file, int ranks);

/// Reads "shares" [layer][P], as a weighted plan writes them beside its map; none where the file
/// has none. ModelError for anything but rows of numbers that are finite and not negative.
std::optional<std::vector<std::vector<float>>> read_shares(const std::string& file);

}  // namespace ferry
