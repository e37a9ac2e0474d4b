#include "ferry/kernels/packed_matrix.h"

#include <array>
#include <string>

#include "ferry/core/error.h"

namespace ferry {

namespace {

struct TypeRow {
  WeightType type;
  std::string_view name;
};

constexpr std::array kRows = {TypeRow{WeightType::f32, "f32"},
                              TypeRow{WeightType::bf16, "bf16"},
                              TypeRow{WeightType::int8, "int8"},
                              TypeRow{WeightType::fp8, "fp8"},
                              TypeRow{WeightType::int4, "int4"},
                              TypeRow{WeightType::mxfp4, "mxfp4"}};

}  // namespace

std::span<const WeightType> weight_types() {
  static constexpr auto kTypes = [] {
    std::array<WeightType, kRows.size()> all{};
    for (std::size_t i = 0; i < all.size(); ++i) all.at(i) = kRows.at(i).type;
    return all;
  }();
  return kTypes;
}

std::string_view weight_type_name(WeightType type) {
  return kRows.at(static_cast<std::size_t>(type)).name;
}

WeightType parse_weight_type(std::string_view name, std::string_view option) {
  std::string known;
  for (const TypeRow& row : kRows) {
    if (row.name == name) return row.type;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  fail<ConfigError>("{} {}: no such weight type; known: {}", option, name, known);
}

std::size_t PackedMatrix::packed_panel_bytes(WeightType type, std::int64_t k) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t groups = weight_groups(type, k);
  if (type == WeightType::mxfp4) {
    const std::int64_t group_bytes = (kMxfp4Group / 2 + 1) * kPanelColumns;
    return static_cast<std::size_t>(round_up(groups * group_bytes, kLine));
  }
  const std::int64_t scales = groups * (kPanelColumns * 4);
  const auto codes = [&] {
    switch (type) {
      case WeightType::f32:
        return k * kPanelColumns * 4;
      case WeightType::bf16:
        return round_up(k, kBf16KBlock) * kPanelColumns * 2;
      case WeightType::int8:
        return round_up(k, kIntKBlock) * kPanelColumns;
      case WeightType::fp8:
        return round_up(k, kBf16KBlock) * kPanelColumns;
      case WeightType::int4:
        return round_up(k, kIntKBlock) * kPanelColumns / 2;
      case WeightType::mxfp4:
        break;
    }
    return std::int64_t{0};
  };
  return static_cast<std::size_t>(codes() + scales);
}

}  // namespace ferry
