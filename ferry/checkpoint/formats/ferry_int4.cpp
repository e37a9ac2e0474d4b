// int4 of ours: two values in a byte, a scale for each 64 of a row.
#include "ferry/checkpoint/formats/row_format.h"

namespace ferry {

namespace {

std::unique_ptr<StoredFormat> make(const ConfigReader& /*quantization*/) {
  return std::make_unique<RowFormat>(RowFormat::Options{
      .name = "int4",
      .code_type = "U8",
      .scale_suffix = "_scale",
      .spec = quant_spec(WeightType::int4),
  });
}

}  // namespace

FormatEntry ferry_int4_format() {
  return {.method = "ferry_int4",
          .make = make,
          .written_for = WeightType::int4,
          .written_config = R"({"quant_method": "ferry_int4", "group_size": 64})"};
}

}  // namespace ferry
