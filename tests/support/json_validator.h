// Whether a JSON value keeps to a schema: a second opinion on what grammars let through, for the
// keywords that tests use.
#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

namespace ferry::test {

inline bool keeps_to(const nlohmann::ordered_json& value, const nlohmann::ordered_json& schema);

inline bool is_of_type(const nlohmann::ordered_json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return value.is_number_integer() ||
         (value.is_number_float() && value.get<double>() == std::trunc(value.get<double>()));
}

inline std::size_t characters_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

inline bool members_keep_to(const nlohmann::ordered_json& value,
                            const nlohmann::ordered_json& schema) {
  for (const auto& name : schema.value("required", nlohmann::ordered_json::array()))
    if (!value.contains(name.get<std::string>())) return false;
  const auto known = schema.value("properties", nlohmann::ordered_json::object());
  for (const auto& [name, member] : value.items()) {
    if (known.contains(name)) {
      if (!keeps_to(member, known[name])) return false;
    } else if (schema.contains("additionalProperties")) {
      const auto& others = schema["additionalProperties"];
      if (others == false || (others.is_object() && !keeps_to(member, others))) return false;
    }
  }
  return true;
}

inline bool keeps_to(const nlohmann::ordered_json& value, const nlohmann::ordered_json& schema) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto least = [&](const char* name, double found) {
    return !schema.contains(name) || found >= schema[name].get<double>();
  };
  const auto most = [&](const char* name, double found) {
    return !schema.contains(name) || found <= schema[name].get<double>();
  };
  if (schema.contains("const") && value != schema["const"]) return false;
  if (schema.contains("enum") &&
      std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
    return false;
  if (schema.contains("anyOf") &&
      std::none_of(schema["anyOf"].begin(), schema["anyOf"].end(), [&](const auto& one) {
        return keeps_to(value, one);
      }))
    return false;
  if (schema.contains("type")) {
    const auto& type = schema["type"];
    const bool fits = type.is_string()
                          ? is_of_type(value, type)
                          : std::any_of(type.begin(), type.end(), [&](const auto& one) {
                              return is_of_type(value, one);
                            });
    if (!fits) return false;
  }
  if (value.is_number() &&
      (!least("minimum", value.get<double>()) || !most("maximum", value.get<double>())))
    return false;
  if (value.is_string()) {
    const auto n = static_cast<double>(characters_of(value.get<std::string>()));
    if (!least("minLength", n) || !most("maxLength", n)) return false;
  }
  if (value.is_array()) {
    const auto n = static_cast<double>(value.size());
    if (!least("minItems", n) || !most("maxItems", n)) return false;
    if (schema.contains("items"))
      for (const auto& item : value)
        if (!keeps_to(item, schema["items"])) return false;
  }
  return !value.is_object() || members_keep_to(value, schema);
}

}  // namespace ferry::test
