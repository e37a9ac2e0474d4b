#include "ferry/text/json_fields.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

[[noreturn]] void wrong(std::string_view name, const char* wanted, const Json& found) {
  fail<ConfigError>("\"{}\" must be {}, not {}", name, wanted, shown_value(found));
}

/// A parser that goes down by itself would overrun the stack on a body of brackets.
constexpr int kMostDepth = 100;

}  // namespace

std::string shown_value(const Json& value) {
  constexpr std::size_t kMost = 60;
  std::string text = to_text(value);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

Json parse_object(std::string_view body) {
  bool too_deep = false;
  const Json::parser_callback_t limit_depth =
      [&](int depth, Json::parse_event_t /*event*/, Json& /*parsed*/) {
        too_deep = too_deep || depth > kMostDepth;
        return !too_deep;
      };
  try {
    Json json = Json::parse(body, limit_depth);
    if (too_deep) fail<ConfigError>("the body is nested deeper than {} levels", kMostDepth);
    if (!json.is_object())
      fail<ConfigError>("the body must be a JSON object, not {}", shown_value(json));
    return json;
  } catch (const Json::exception& e) {
    fail<ConfigError>("the body is no JSON: {}", e.what());
  }
}

JsonFields::JsonFields(const Json& object) : object_(object) {
  if (!object.is_object())
    fail<ConfigError>("a JSON object is needed here, not {}", shown_value(object));
}

const Json* JsonFields::find(const char* name) const {
  asked_.emplace(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> JsonFields::boolean(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong(name, "true or false", *value);
  return value->get<bool>();
}

std::optional<std::int64_t> JsonFields::integer(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_float()) {
    const auto number = value->get<double>();
    // Beyond 2^53 a float does not say which integer is meant.
    if (number != std::trunc(number) || std::abs(number) > 0x1p53)
      wrong(name, "an integer", *value);
    return static_cast<std::int64_t>(number);
  }
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() ||
                     value->get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max());
  if (!fits) wrong(name, "an integer", *value);
  return value->get<std::int64_t>();
}

std::optional<int> JsonFields::integer(const char* name, int low, int high) const {
  const std::optional<std::int64_t> value = integer(name);
  if (!value) return std::nullopt;
  if (*value < low || *value > high)
    fail<ConfigError>("\"{}\" must be {} to {}, not {}", name, low, high, *value);
  return static_cast<int>(*value);
}

std::optional<double> JsonFields::number(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) wrong(name, "a number", *value);
  return value->get<double>();
}

std::optional<std::string> JsonFields::text(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong(name, "a string", *value);
  return value->get<std::string>();
}

std::vector<std::string> JsonFields::texts(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) wrong(name, "a string or a list of strings", *value);
  std::vector<std::string> all;
  for (const Json& item : *value) {
    if (!item.is_string()) wrong(name, "a string or a list of strings", *value);
    all.push_back(item.get<std::string>());
  }
  return all;
}

std::vector<std::int32_t> JsonFields::ids(const char* name) const {
  const Json* value = find(name);
  if (value == nullptr) return {};
  return to_ids(*value, name);
}

std::optional<std::vector<std::pair<std::int32_t, double>>> JsonFields::numbers_by_id(
    const char* name) const {
  constexpr const char* kWanted = "an object of numbers by token id";
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) wrong(name, kWanted, *value);
  std::vector<std::pair<std::int32_t, double>> all;
  for (const auto& [key, item] : value->items()) {
    std::int32_t id = 0;
    const char* const end = key.data() + key.size();
    const auto [stop, error] = std::from_chars(key.data(), end, id);
    if (error != std::errc() || stop != end || !item.is_number()) wrong(name, kWanted, *value);
    all.emplace_back(id, item.get<double>());
  }
  return all;
}

void JsonFields::refuse_unread(std::string_view of) const {
  for (const auto& [name, value] : object_.items())
    if (!value.is_null() && !asked_.contains(name))
      fail<ConfigError>("\"{}{}{}\" is not known here", of, of.empty() ? "" : ".", name);
}

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<std::int32_t> to_ids(const Json& list, std::string_view name) {
  if (!list.is_array()) wrong(name, "a list of token ids", list);
  std::vector<std::int32_t> ids;
  for (const Json& item : list) {
    if (!item.is_number_integer() || item.get<std::int64_t>() < 0 ||
        item.get<std::int64_t>() > std::numeric_limits<std::int32_t>::max())
      wrong(name, "a list of token ids", item);
    ids.push_back(item.get<std::int32_t>());
  }
  return ids;
}

}  // namespace ferry
