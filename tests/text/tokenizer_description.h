// tokenizer.json as tests write it, and what becomes of it.
#pragma once

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>

#include "ferry/core/error.h"
#include "ferry/text/tokenizer.h"
#include "support/files.h"

namespace ferry {

using nlohmann::json;

inline Tokenizer make(const json& description) {
  return Tokenizer::parse(description.dump(), "tokenizer.json");
}

inline std::string error_of(const json& description) {
  std::string message = test::message_of<ModelError>([&] { make(description); });
  EXPECT_THAT(message, testing::HasSubstr("tokenizer.json"));
  return message;
}

inline json added(int id, const char* content, const json& flags = json::object()) {
  json token = {{"id", id}, {"content", content}, {"special", true}, {"normalized", false}};
  token.update(flags);
  return token;
}

}  // namespace ferry
