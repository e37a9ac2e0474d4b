#include "ferry/checkpoint/stored_format.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/checkpoint/config_reader.h"

namespace ferry {

// Each file exports one.
#define FERRY_STORED_FORMAT(name) FormatEntry name##_format();
#include "stored_formats.inc"
#undef FERRY_STORED_FORMAT

namespace {

/// `"fp8", "mxfp4" or "ferry_int8"`.
std::string listed_methods(std::span<const FormatEntry> table) {
  std::string list;
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (i > 0) list += i + 1 < table.size() ? ", " : " or ";
    list += fmt::format("\"{}\"", table[i].method);
  }
  return list;
}

}  // namespace

std::span<const FormatEntry> stored_formats() {
  static const std::array formats = {
#define FERRY_STORED_FORMAT(name) name##_format(),
#include "stored_formats.inc"
#undef FERRY_STORED_FORMAT
  };
  return formats;
}

std::unique_ptr<StoredFormat> read_stored_format(const ConfigReader& quantization,
                                                 std::span<const FormatEntry> table) {
  const std::string method = quantization.text_or("quant_method", "");
  for (const FormatEntry& entry : table)
    if (entry.method == method) return entry.make(quantization);
  quantization.refuse("quant_method",
                      listed_methods(table) + " (no other quantised checkpoints are supported)");
}

WrittenFormat written_format(WeightType type) {
  for (const FormatEntry& entry : stored_formats()) {
    if (entry.written_for != type) continue;
    const nlohmann::json config = nlohmann::json::parse(entry.written_config);
    return {entry.make(ConfigReader(config, "quantization_config")), entry.written_config};
  }
  return {};
}

StoredMatrix find_matrix(const TensorSource& source,
                         const StoredFormat* format,
                         const MatrixPlace& place) {
  if (format != nullptr && format->stores(source, place)) {
    std::vector<TensorView> views;
    for (const StoredPart& part : format->parts(source, place)) {
      views.push_back(part.type.empty() ? source.elements(part.name, part.shape)
                                        : source.coded(part.name, part.shape, part.type));
    }
    return format->assemble(place, views);
  }
  if (!place.stack)
    return plain_matrix(source.elements(place.name, std::array{place.rows, place.columns}));
  std::array shape{place.stack->experts, place.columns, place.stack->all_rows};
  if (place.stack->by_rows) std::swap(shape[1], shape[2]);
  return stacked_matrix(source.elements(place.name, shape), place.rows, *place.stack);
}

}  // namespace ferry
