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
                              TypeRow{WeightType::mxfp4, "mxfp4"},
                              TypeRow{WeightType::q8_0, "q8_0"},
                              TypeRow{WeightType::q4_0, "q4_0"},
                              TypeRow{WeightType::iq4_nl, "iq4_nl"},
                              TypeRow{WeightType::q4_1, "q4_1"},
                              TypeRow{WeightType::q4_k, "q4_k"},
                              TypeRow{WeightType::q5_k, "q5_k"},
                              TypeRow{WeightType::q6_k, "q6_k"},
                              TypeRow{WeightType::q8_0_int8, "q8_0_int8"},
                              TypeRow{WeightType::q4_0_int8, "q4_0_int8"},
                              TypeRow{WeightType::iq4_nl_int8, "iq4_nl_int8"},
                              TypeRow{WeightType::q4_1_int8, "q4_1_int8"},
                              TypeRow{WeightType::q4_k_int8, "q4_k_int8"},
                              TypeRow{WeightType::q5_k_int8, "q5_k_int8"},
                              TypeRow{WeightType::q6_k_int8, "q6_k_int8"},
                              TypeRow{WeightType::mxfp4_int8, "mxfp4_int8"}};

constexpr std::size_t kMade = static_cast<std::size_t>(WeightType::q8_0);
constexpr std::size_t kStored = static_cast<std::size_t>(WeightType::q8_0_int8);

constexpr auto kAllTypes = [] {
  std::array<WeightType, kRows.size()> all{};
  for (std::size_t i = 0; i < all.size(); ++i) all.at(i) = kRows.at(i).type;
  return all;
}();

/// Of one column.
std::int64_t ggml_panel_bits(WeightType type, std::int64_t k) {
  switch (code_type(type)) {
    case WeightType::q8_0:
      return k * 8 + k / kGgmlGroup * 16;
    case WeightType::q4_1:
      return k * 4 + k / kGgmlGroup * 32;
    case WeightType::q4_k:
      return k * 4 + k / kGgmlSuper * (32 + 16 * 8);
    case WeightType::q5_k:
      return k * 5 + k / kGgmlSuper * (32 + 16 * 8);
    case WeightType::q6_k:
      return k * 6 + k / kGgmlSuper * (16 + 16 * 8);
    default:
      return k * 4 + k / kGgmlGroup * 16;
  }
}

}  // namespace

std::span<const WeightType> weight_types() { return std::span(kAllTypes).first(kMade); }

std::span<const WeightType> ggml_types() {
  return std::span(kAllTypes).subspan(kMade, kStored - kMade);
}

std::span<const WeightType> byte_block_types() { return std::span(kAllTypes).subspan(kStored); }

std::string_view weight_type_name(WeightType type) {
  return kRows.at(static_cast<std::size_t>(type)).name;
}

WeightType parse_weight_type(std::string_view name, std::string_view option) {
  std::string known;
  for (const TypeRow& row : kRows) {
    if (is_ggml(row.type) || is_byte_block(row.type)) {
      if (row.name != name) continue;
      fail<ConfigError>(
          "{} {}: weights are held so {}; known: {}",
          option,
          name,
          is_byte_block(row.type) ? "for --activations int8" : "where a GGUF file has them so",
          known);
    }
    if (row.name == name) return row.type;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  fail<ConfigError>("{} {}: no such weight type; known: {}", option, name, known);
}

std::size_t PackedMatrix::packed_panel_bytes(WeightType type, std::int64_t k) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t groups = weight_groups(type, k);
  if (code_type(type) == WeightType::mxfp4) {
    const std::int64_t group_bytes = (kMxfp4Group / 2 + 1) * kPanelColumns;
    return static_cast<std::size_t>(round_up(groups * group_bytes, kLine));
  }
  if (is_ggml(type))
    return static_cast<std::size_t>(round_up(ggml_panel_bits(type, k) * kPanelColumns / 8, kLine));
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
      default:
        break;
    }
    return std::int64_t{0};
  };
  return static_cast<std::size_t>(codes() + scales);
}

}  // namespace ferry
