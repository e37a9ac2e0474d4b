#include "ferry/text/json_fields.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ferry/core/error.h"

namespace ferry {
namespace {

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

TEST(JsonFields, GivesWhatIsThereAndNothingForNull) {
  const auto json =
      parse_object(R"({"a": 1, "b": null, "c": "x", "d": [1, 2], "e": 0.5, "f": true})");
  const JsonFields fields(json);
  EXPECT_EQ(fields.integer("a"), 1);
  EXPECT_EQ(fields.number("a"), 1.0);
  EXPECT_EQ(fields.integer("b"), std::nullopt);
  EXPECT_FALSE(fields.has("b"));
  EXPECT_EQ(fields.text("c"), "x");
  EXPECT_EQ(fields.texts("c"), std::vector<std::string>{"x"});
  EXPECT_EQ(fields.ids("d"), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(fields.number("e"), 0.5);
  EXPECT_EQ(fields.boolean("f"), true);
}

TEST(JsonFields, WrongTypesAreNamed) {
  const auto json =
      parse_object(R"({"a": "1", "d": [1, -2], "n": 1.5, "big": 18446744073709551615})");
  const JsonFields fields(json);
  EXPECT_EQ(message_of([&] { static_cast<void>(fields.integer("a")); }),
            "\"a\" must be an integer, not \"1\"");
  EXPECT_EQ(message_of([&] { static_cast<void>(fields.ids("d")); }),
            "\"d\" must be a list of token ids, not -2");
  EXPECT_NE(message_of([&] { static_cast<void>(fields.integer("n")); }), "no error");
  EXPECT_NE(message_of([&] { static_cast<void>(fields.integer("big")); }), "no error");
  EXPECT_NE(message_of([&] { static_cast<void>(fields.boolean("n")); }), "no error");
}

TEST(JsonFields, BodiesThatAreNoObjectAreRefused) {
  for (const std::string body : {"", "{", "[1]", "3", "{\"a\":}", "\"x\"", "{\"a\":\"\xff\"}"})
    EXPECT_NE(message_of([&] { static_cast<void>(parse_object(body)); }), "no error") << body;
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_NE(message_of([&] { static_cast<void>(parse_object(deep)); }).find("nested"),
            std::string::npos);
}

TEST(JsonFields, NumbersByTokenId) {
  const auto json = parse_object(R"({"bias": {"5": 1, "70": -2.5}, "none": null, "empty": {}})");
  const JsonFields fields(json);
  using Numbers = std::vector<std::pair<std::int32_t, double>>;
  EXPECT_EQ(fields.numbers_by_id("bias"), (Numbers{{5, 1}, {70, -2.5}}));
  EXPECT_EQ(fields.numbers_by_id("empty"), Numbers());
  EXPECT_EQ(fields.numbers_by_id("none"), std::nullopt);
  for (const char* wrong : {R"({"bias": [5, 1]})",
                            R"({"bias": {"a": 1}})",
                            R"({"bias": {"5 ": 1}})",
                            R"({"bias": {"": 1}})",
                            R"({"bias": {"99999999999": 1}})",
                            R"({"bias": {"5": "1"}})",
                            R"({"bias": {"5": null}})"}) {
    const auto bad = parse_object(wrong);
    const std::string message =
        message_of([&] { static_cast<void>(JsonFields(bad).numbers_by_id("bias")); });
    EXPECT_TRUE(message.starts_with("\"bias\" must be ")) << wrong << ": " << message;
  }
}

TEST(JsonFields, IntegersMayBeWrittenWithAPoint) {
  const auto json = parse_object(R"({"a": 6.0, "b": -2e3, "c": 1e17, "d": 6.5})");
  const JsonFields fields(json);
  EXPECT_EQ(fields.integer("a"), 6);
  EXPECT_EQ(fields.integer("b"), -2000);
  EXPECT_NE(message_of([&] { static_cast<void>(fields.integer("c")); }), "no error");
  EXPECT_NE(message_of([&] { static_cast<void>(fields.integer("d")); }), "no error");
}

}  // namespace
}  // namespace ferry
