// GPTQ as AutoGPTQ and GPTQModel write it: words along k, zero points one too small but in version
// 2, and with desc_act a group for each of k. Rows are not rounded, as the form promises. Source:
// the quantised linear layer of GPTQModel, whose package is on PyPI.
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/formats/column_words.h"

namespace ferry {

namespace {

std::unique_ptr<StoredFormat> make(const ConfigReader& quantization) {
  const int bits = quantization.size("bits", 32);
  if (bits != 4 && bits != 8) quantization.refuse("bits", "4 or 8");
  const std::string version = quantization.text_or("checkpoint_format", "gptq");
  if (version != "gptq" && version != "gptq_v2")
    quantization.refuse("checkpoint_format", "\"gptq\" or \"gptq_v2\"");
  if (quantization.has("dynamic") && !quantization.value("dynamic").empty())
    quantization.refuse("dynamic", "none (widths that differ between modules are not supported)");
  const std::vector<std::int32_t> group = quantization.integers("group_size", -1, kMaxWidth);
  if (group.size() != 1 || group.front() == 0)
    quantization.refuse("group_size", "a number above 0, or -1");
  return std::make_unique<ColumnWords>(
      ColumnWords::Options{.name = "gptq",
                           .bits = bits,
                           .group = group.front() < 0 ? 0 : group.front(),
                           .words_along_k = true,
                           .order = quantization.flag_or("desc_act", false),
                           .zero_offset = version == "gptq" ? 1 : 0});
}

}  // namespace

FormatEntry gptq_format() { return {.method = "gptq", .make = make}; }

}  // namespace ferry
