#include "ferry/checkpoint/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

bool integer_within(const json& value, std::int64_t min, std::int64_t max) {
  if (value.is_number_unsigned()) {
    const auto v = value.get<std::uint64_t>();
    return v <= static_cast<std::uint64_t>(max) &&
           (min <= 0 || v >= static_cast<std::uint64_t>(min));
  }
  return value.is_number_integer() && value.get<std::int64_t>() >= min &&
         value.get<std::int64_t>() <= max;
}

bool finite(const json& value) { return value.is_number() && std::isfinite(value.get<double>()); }

}  // namespace

bool ConfigReader::has(const char* key) const {
  const auto it = fields_.find(key);
  return it != fields_.end() && !it->is_null();
}

void ConfigReader::refuse(const std::string& key, const std::string& expected) const {
  const auto it = fields_.find(key);
  fail<ModelError>("{}: field {}: expected {}, found {}",
                   file_,
                   key,
                   expected,
                   it == fields_.end() ? "nothing" : describe(*it));
}

int ConfigReader::size(const char* key, int max) const {
  if (!has(key) || !integer_within(fields_[key], 1, max)) {
    refuse(key, fmt::format("an integer from 1 to {}", max));
  }
  return fields_[key].get<int>();
}

int ConfigReader::size_or(const char* key, int max, int fallback) const {
  return has(key) ? size(key, max) : fallback;
}

bool ConfigReader::flag_or(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!fields_[key].is_boolean()) refuse(key, "true or false");
  return fields_[key].get<bool>();
}

double ConfigReader::positive(const char* key) const {
  if (!has(key) || !finite(fields_[key]) || fields_[key].get<double>() <= 0)
    refuse(key, "a number above 0");
  return fields_[key].get<double>();
}

double ConfigReader::positive_or(const char* key, double fallback) const {
  return has(key) ? positive(key) : fallback;
}

double ConfigReader::from_zero_or(const char* key, double fallback) const {
  if (!has(key)) return fallback;
  if (!finite(fields_[key]) || fields_[key].get<double>() < 0) refuse(key, "a number from 0 on");
  return fields_[key].get<double>();
}

std::string ConfigReader::text_or(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!fields_[key].is_string()) refuse(key, "a string");
  return fields_[key].get<std::string>();
}

std::vector<std::int32_t> ConfigReader::integers(const char* key,
                                                 std::int64_t min,
                                                 std::int64_t max) const {
  if (!has(key)) return {};
  const json& value = fields_[key];
  const json list = value.is_array() ? value : json::array({value});
  std::vector<std::int32_t> result;
  for (const json& item : list) {
    if (!integer_within(item, min, max)) {
      fail<ModelError>("{}: field {}: expected integers from {} to {}, found {}",
                       file_,
                       key,
                       min,
                       max,
                       describe(item));
    }
    result.push_back(item.get<std::int32_t>());
  }
  return result;
}

const json& ConfigReader::value(const char* key) const { return fields_[key]; }

ConfigReader ConfigReader::object(const char* key) const {
  if (!fields_[key].is_object()) refuse(key, "an object");
  return {fields_[key], file_ + ": " + key};
}

}  // namespace ferry
