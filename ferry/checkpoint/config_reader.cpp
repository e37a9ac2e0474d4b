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

const json* ConfigReader::find(const char* key) const {
  auto it = fields_.find(key);
  if (it == fields_.end()) {
    if (defaults_ == nullptr) return nullptr;
    it = defaults_->find(key);
    if (it == defaults_->end()) return nullptr;
  }
  return it->is_null() ? nullptr : &*it;
}

bool ConfigReader::states(const char* key) const {
  const auto it = fields_.find(key);
  return it != fields_.end() && !it->is_null();
}

void ConfigReader::refuse(const std::string& key, const std::string& expected) const {
  const auto it = fields_.find(key);
  const json* value = it == fields_.end() ? find(key.c_str()) : &*it;
  fail<ModelError>("{}: field {}: expected {}, found {}",
                   file_,
                   key,
                   expected,
                   value == nullptr ? "nothing" : describe(*value));
}

int ConfigReader::size(const char* key, int max) const {
  if (!has(key) || !integer_within(value(key), 1, max)) {
    refuse(key, fmt::format("an integer from 1 to {}", max));
  }
  return value(key).get<int>();
}

int ConfigReader::size_or(const char* key, int max, int fallback) const {
  return has(key) ? size(key, max) : fallback;
}

bool ConfigReader::flag_or(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_boolean()) refuse(key, "true or false");
  return value(key).get<bool>();
}

double ConfigReader::positive(const char* key) const {
  if (!has(key) || !finite(value(key)) || value(key).get<double>() <= 0)
    refuse(key, "a number above 0");
  return value(key).get<double>();
}

double ConfigReader::positive_or(const char* key, double fallback) const {
  return has(key) ? positive(key) : fallback;
}

double ConfigReader::from_zero_or(const char* key, double fallback) const {
  if (!has(key)) return fallback;
  if (!finite(value(key)) || value(key).get<double>() < 0) refuse(key, "a number from 0 on");
  return value(key).get<double>();
}

std::string ConfigReader::text_or(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_string()) refuse(key, "a string");
  return value(key).get<std::string>();
}

std::vector<std::int32_t> ConfigReader::integers(const char* key,
                                                 std::int64_t min,
                                                 std::int64_t max) const {
  if (!has(key)) return {};
  const json& value = *find(key);
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

const json& ConfigReader::value(const char* key) const { return *find(key); }

ConfigReader ConfigReader::object(const char* key) const {
  if (!value(key).is_object()) refuse(key, "an object");
  return {value(key), file_ + ": " + key};
}

std::optional<ConfigReader> ConfigReader::default_object(const char* key) const {
  if (defaults_ == nullptr) return std::nullopt;
  const auto it = defaults_->find(key);
  if (it == defaults_->end()) return std::nullopt;
  return ConfigReader(*it, file_ + ": " + key);
}

}  // namespace ferry
