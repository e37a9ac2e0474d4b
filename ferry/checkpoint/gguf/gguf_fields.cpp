#include "ferry/checkpoint/gguf/gguf_fields.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::string_view kArchitecture = "general.architecture";

std::string described(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (requires { v.front().size(); }) {
          return fmt::format("a list of {} texts", v.size());
        } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>> ||
                             std::is_same_v<T, std::vector<double>>) {
          return fmt::format("a list of {} numbers", v.size());
        } else {
          return describe(nlohmann::json(v));
        }
      },
      value);
}

}  // namespace

GgufFields::GgufFields(const GgufFile& file) : file_(file), architecture_(text(kArchitecture)) {}

std::string GgufFields::full(std::string_view key) const {
  return key.starts_with('.') ? architecture_ + std::string(key) : std::string(key);
}

void GgufFields::refuse(std::string_view key, const std::string& expected) const {
  const std::string name = full(key);
  const GgufValue* found = file_.find(name);
  fail<ModelError>("{}: metadata {}: expected {}, found {}",
                   file(),
                   describe(nlohmann::json(name)),
                   expected,
                   found == nullptr ? "nothing" : described(*found));
}

const GgufValue& GgufFields::value(std::string_view key, std::string_view expected) const {
  const GgufValue* found = file_.find(full(key));
  if (found == nullptr) refuse(key, std::string(expected));
  return *found;
}

std::int64_t GgufFields::size(std::string_view key) const {
  constexpr std::string_view kExpected = "an integer from 0 to 2^31 - 1";
  const GgufValue& found = value(key, kExpected);
  const auto* number = std::get_if<std::int64_t>(&found);
  if (const auto* list = std::get_if<std::vector<std::int64_t>>(&found)) {
    const bool same =
        !list->empty() && std::ranges::adjacent_find(*list, std::not_equal_to{}) == list->end();
    if (!same) refuse(key, "the same number for every layer (others are not supported)");
    number = &list->front();
  }
  if (number == nullptr || *number < 0 || *number > std::numeric_limits<std::int32_t>::max())
    refuse(key, std::string(kExpected));
  return *number;
}

std::int64_t GgufFields::size_or(std::string_view key, std::int64_t fallback) const {
  return has(key) ? size(key) : fallback;
}

double GgufFields::number(std::string_view key) const {
  const GgufValue& found = value(key, "a number");
  if (const auto* number = std::get_if<double>(&found)) return *number;
  if (const auto* integer = std::get_if<std::int64_t>(&found)) return static_cast<double>(*integer);
  refuse(key, "a number");
}

double GgufFields::number_or(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool GgufFields::flag_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const auto* flag = std::get_if<bool>(file_.find(full(key)));
  if (flag == nullptr) refuse(key, "true or false");
  return *flag;
}

std::string_view GgufFields::text(std::string_view key) const {
  const auto* text = std::get_if<std::string_view>(&value(key, "a text"));
  if (text == nullptr) refuse(key, "a text");
  return *text;
}

std::optional<std::string_view> GgufFields::text_if(std::string_view key) const {
  return has(key) ? std::optional(text(key)) : std::nullopt;
}

std::span<const std::string_view> GgufFields::texts(std::string_view key) const {
  if (!has(key)) return {};
  const auto* list = std::get_if<std::vector<std::string_view>>(file_.find(full(key)));
  if (list == nullptr) refuse(key, "a list of texts");
  return *list;
}

std::span<const std::int64_t> GgufFields::integers(std::string_view key) const {
  if (!has(key)) return {};
  const auto* list = std::get_if<std::vector<std::int64_t>>(file_.find(full(key)));
  if (list == nullptr) refuse(key, "a list of integers");
  return *list;
}

std::span<const double> GgufFields::numbers(std::string_view key) const {
  if (!has(key)) return {};
  const auto* list = std::get_if<std::vector<double>>(file_.find(full(key)));
  if (list == nullptr) refuse(key, "a list of numbers");
  return *list;
}

bool GgufModel::has(std::int64_t layer, std::string_view rest) const {
  return tensors.contains(fmt::format("blk.{}.{}", layer, rest));
}

bool GgufModel::anywhere(std::string_view rest) const {
  for (std::int64_t layer = 0; layer < layers; ++layer)
    if (has(layer, rest)) return true;
  return false;
}

}  // namespace ferry
