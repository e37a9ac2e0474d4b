// What keys and values are kept in: as activations are, or narrower, for more positions in the same
// memory.
#pragma once

#include <optional>
#include <string_view>

#include "ferry/model/config.h"
#include "ferry/wire.h"

namespace ferry {

/// auto (none: as activations), f32, bf16, int8, fp8_e4m3, and what vLLM and SGLang call these.
/// Throws ConfigError that begins with `option`.
std::optional<WireType> parse_kv_type(std::string_view name, std::string_view option);

/// As it is told and compared.
std::string_view kv_type_name(WireType type);

/// Throws ConfigError where no layer of the model keeps any keys or values.
void check_kv_type(std::optional<WireType> type, const ModelConfig& config);

}  // namespace ferry
