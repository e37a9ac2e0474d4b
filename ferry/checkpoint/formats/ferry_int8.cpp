// int8 of ours: a signed byte for each value, a scale for each row.
#include "ferry/checkpoint/formats/row_format.h"

namespace ferry {

namespace {

std::unique_ptr<StoredFormat> make(const ConfigReader& /*quantization*/) {
  return std::make_unique<RowFormat>(RowFormat::Options{
      .name = "int8",
      .code_type = "I8",
      .scale_suffix = "_scale",
      .spec = quant_spec(WeightType::int8),
  });
}

}  // namespace

FormatEntry ferry_int8_format() {
  return {.method = "ferry_int8",
          .make = make,
          .written_for = WeightType::int8,
          .written_config = R"({"quant_method": "ferry_int8"})"};
}

}  // namespace ferry
