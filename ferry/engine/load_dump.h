// The recorded load of experts as JSON with SGLang's keys, which `ferry eplb` reads.
#pragma once

#include <string_view>

#include "ferry/engine/balancer.h"
#include "ferry/function_ref.h"
#include "ferry/model/config.h"

namespace ferry {

/// {"logical_count": [step][layer][expert], "physical_to_logical_map": [layer][slot]}, handed to
/// `write` in pieces: a window can have millions of numbers. All layers of the model stand in it; a
/// dense one has no load. On rank 0, between two steps.
void write_load_dump(const Balancer& balancer,
                     const ModelConfig& config,
                     FunctionRef<void(std::string_view)> write);

}  // namespace ferry
