// DeepSeek-V3's fp8: e4m3 with a scale for each 128 x 128 values, a number or, in files like
// DeepSeek-V4's, a power of two (E8M0). Which matrices are so, and which scales, is what the files
// say, so its list of those that are not is of no use.
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/formats/row_format.h"

namespace ferry {

namespace {

std::unique_ptr<StoredFormat> make(const ConfigReader& quantization) {
  if (quantization.text_or("fmt", "e4m3") != "e4m3") quantization.refuse("fmt", "\"e4m3\"");
  const std::string scale = quantization.text_or("scale_fmt", "float");
  if (scale != "float" && scale != "ue8m0")
    quantization.refuse("scale_fmt", "\"float\" or \"ue8m0\"");
  const auto block = nlohmann::json::array({kFp8Block, kFp8Block});
  if (!quantization.has("weight_block_size") || quantization.value("weight_block_size") != block)
    quantization.refuse("weight_block_size", block.dump());
  return std::make_unique<RowFormat>(RowFormat::Options{
      .name = "fp8",
      .code_type = "F8_E4M3",
      .scale_suffix = "_scale_inv",
      .spec = quant_spec(WeightType::fp8),
      .powers = true,
  });
}

}  // namespace

FormatEntry fp8_format() {
  return {.method = "fp8",
          .make = make,
          .written_for = WeightType::fp8,
          .written_config = R"({"quant_method": "fp8", "fmt": "e4m3",
              "activation_scheme": "dynamic", "weight_block_size": [128, 128]})"};
}

}  // namespace ferry
