// What published checkpoints have as `quantization_config`.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace ferry::test {

using nlohmann::json;

inline json compressed(const char* form, json weights) {
  const json group = {{"weights", std::move(weights)}, {"targets", {"Linear"}}};
  return {{"quant_method", "compressed-tensors"},
          {"format", form},
          {"config_groups", {{"group_0", group}}}};
}

inline json packed(int bits, const char* strategy, bool symmetric) {
  return compressed("pack-quantized",
                    {{"num_bits", bits},
                     {"type", "int"},
                     {"strategy", strategy},
                     {"group_size", 32},
                     {"symmetric", symmetric}});
}

inline json bytes(const char* type, const char* strategy) {
  const bool floats = std::string_view(type) == "float";
  return compressed(
      floats ? "float-quantized" : "int-quantized",
      {{"num_bits", 8}, {"type", type}, {"strategy", strategy}, {"block_structure", {128, 128}}});
}

inline json mxfp4_rows() {
  return compressed(
      "mxfp4-pack-quantized",
      {{"num_bits", 4}, {"type", "float"}, {"strategy", "group"}, {"group_size", 32}});
}

inline json gptq(json more) {
  more["quant_method"] = "gptq";
  if (!more.contains("bits")) more["bits"] = 4;
  return more;
}

}  // namespace ferry::test
