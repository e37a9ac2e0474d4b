#include "ferry/model/kv_type.h"

#include <algorithm>
#include <array>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

namespace {

struct Name {
  std::string_view name;
  WireType type;
};

/// Those of one type: ours first. The two quantised ones are as rows travel with a scale for every
/// 128 values, so that a head of up to 128, as most are, has one scale at each position.
constexpr std::array kNames = {
    Name{"f32", WireType::f32},
    Name{"float32", WireType::f32},
    Name{"bf16", WireType::bf16},
    Name{"bfloat16", WireType::bf16},
    Name{"int8", WireType::int8_block},
    Name{"fp8_e4m3", WireType::fp8},
    Name{"fp8", WireType::fp8},
};

}  // namespace

std::optional<WireType> parse_kv_type(std::string_view name, std::string_view option) {
  if (name == "auto") return std::nullopt;
  for (const Name& known : kNames)
    if (known.name == name) return known.type;
  fail<ConfigError>(
      "{} {}: keys and values cannot be kept so; known: auto, f32, bf16, int8, fp8_e4m3 (or fp8)",
      option,
      name);
}

std::string_view kv_type_name(WireType type) {
  const auto* known = std::ranges::find(kNames, type, &Name::type);
  return known == kNames.end() ? wire_type_name(type) : known->name;
}

void check_kv_type(std::optional<WireType> type, const ModelConfig& config) {
  if (!type) return;
  FERRY_CHECK(std::ranges::find(kKvTypes, *type) != kKvTypes.end(),
              "keys and values as {}",
              wire_type_name(*type));
  for (const StateSpec& spec : state_specs(config, *type))
    if (spec.streams > 0) return;
  fail<ConfigError>(
      "--kv-cache-dtype {}: no layer of this model keeps keys and values; leave it out",
      kv_type_name(*type));
}

}  // namespace ferry
