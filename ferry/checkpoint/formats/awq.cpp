// AWQ as AutoAWQ writes it ("gemm"): words along n, the eight codes of a word in an order of their
// own. Rows are not rounded, as the form promises.
// Source: AutoAWQ's packing for its gemm kernel; the package is on PyPI.
#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/formats/column_words.h"

namespace ferry {

namespace {

std::unique_ptr<StoredFormat> make(const ConfigReader& quantization) {
  if (quantization.size_or("bits", 32, 4) != 4) quantization.refuse("bits", "4");
  if (quantization.text_or("version", "gemm") != "gemm") quantization.refuse("version", "\"gemm\"");
  if (!quantization.flag_or("zero_point", true)) quantization.refuse("zero_point", "true");
  const int group = quantization.size("group_size", kMaxWidth);
  return std::make_unique<ColumnWords>(
      ColumnWords::Options{.name = "awq", .group = group, .place = {0, 4, 1, 5, 2, 6, 3, 7}});
}

}  // namespace

FormatEntry awq_format() { return {.method = "awq", .make = make}; }

}  // namespace ferry
