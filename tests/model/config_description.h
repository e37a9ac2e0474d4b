// config.json of a golden model with something changed, and what becomes of it.
#pragma once

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>

#include "ferry/core/error.h"
#include "ferry/model/config.h"
#include "support/files.h"

namespace ferry {

using nlohmann::json;

inline json golden(const char* name) {
  return json::parse(test::read_file(test::data_dir(name) / "config.json"));
}

/// The error of a good config with one field changed.
inline std::string error_with(const char* name, const char* field, const json& value) {
  json fields = golden(name);
  fields[field] = value;
  std::string message =
      test::message_of<ModelError>([&] { parse_config(fields.dump(), "config.json"); });
  EXPECT_THAT(message, testing::HasSubstr("config.json"));
  EXPECT_THAT(message, testing::HasSubstr(field));
  return message;
}

inline ModelConfig with(const char* name, const char* field, const json& value) {
  json fields = golden(name);
  fields[field] = value;
  return parse_config(fields.dump(), "config.json");
}

inline ModelConfig without(const char* name, const char* field) {
  json fields = golden(name);
  fields.erase(field);
  return parse_config(fields.dump(), "config.json");
}

}  // namespace ferry
