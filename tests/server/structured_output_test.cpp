// Texts that keep to a form, over the demo model: it has never seen JSON, so that nothing but the
// mask makes it.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "ferry/text/grammars.h"
#include "server/routes_fixture.h"
#include "support/json_validator.h"
#include "support/random_schema.h"

namespace ferry {
namespace {

using test::kPrompt;
using test::post_to;
using test::Served;
using Json = nlohmann::ordered_json;

class StructuredOutput : public test::Routes {
 protected:
  void SetUp() override {
    if (!Grammars::built_in()) GTEST_SKIP() << "this build has no grammars";
  }

  static Json generated(const Served& server, Json body) {
    body["prompt"] = kPrompt;
    if (!body.contains("temperature")) body["temperature"] = 0.8;
    body["seed"] = 5;
    if (!body.contains("max_tokens")) body["max_tokens"] = 300;
    const auto reply = post_to(server, "/v1/completions", body.dump());
    EXPECT_EQ(reply->status, 200) << reply->body;
    return Json::parse(reply->body)["choices"][0];
  }

  static std::string refusal(const std::string& path, const Json& body) {
    const auto reply = post_to(*served, path, body.dump());
    EXPECT_EQ(reply->status, 400) << reply->body;
    const std::string message = Json::parse(reply->body)["error"]["message"];
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message;
  }
};

TEST_F(StructuredOutput, KeepsToRandomSchemas) {
  std::mt19937 random(21);
  int ended = 0;
  for (int i = 0; i < 12; ++i) {
    const Json schema = test::random_schema(random);
    const Json choice = generated(
        *served,
        {{"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", schema}}}}}});
    if (choice["finish_reason"] == "length") continue;
    ++ended;
    const std::string text = choice["text"];
    const Json value = Json::parse(text, nullptr, false);
    EXPECT_FALSE(value.is_discarded()) << text;
    EXPECT_TRUE(test::keeps_to(value, schema)) << schema << "\n" << text;
  }
  EXPECT_GT(ended, 6);
}

TEST_F(StructuredOutput, IsTheSameOnAnyNumberOfRanks) {
  const Served alone({.max_waiting = 8}, {.port = 0, .access_log = false}, 1);
  const Served four({.max_waiting = 8}, {.port = 0, .access_log = false}, 4);
  for (const Json& form : {Json{{"regex", "[A-Z][a-z]{2,9} (is|was) \\d{1,3}\\."}},
                           Json{{"guided_json",
                                 {{"type", "object"},
                                  {"properties", {{"a", {{"type", "string"}, {"maxLength", 9}}}}},
                                  {"required", {"a"}}}}},
                           Json{{"grammar", "root ::= (\"ab\" | \"ba\"){3,9}"}}}) {
    const Json expected = generated(*served, form);
    EXPECT_EQ(generated(alone, form), expected) << form;
    EXPECT_EQ(generated(four, form), expected) << form;
  }
}

TEST_F(StructuredOutput, IsSaidInTheWordsOfEveryApi) {
  const Json schema{{"enum", {"yes", "no"}}};
  const std::set<std::string> quoted = {"\"yes\"", "\"no\""};
  const std::set<std::string> bare = {"yes", "no"};
  const auto text_of = [&](const Json& form) {
    return generated(*served, form)["text"].get<std::string>();
  };
  for (const Json& form :
       {Json{{"guided_json", schema.dump()}},
        Json{{"json_schema", schema.dump()}},
        Json{{"json_schema", schema}},
        Json{{"structured_outputs", {{"json", schema}}}},
        Json{{"response_format", {{"type", "json_object"}, {"schema", schema}}}}})
    EXPECT_EQ(quoted.count(text_of(form)), 1U) << form;
  for (const Json& form :
       {Json{{"guided_choice", {"yes", "no"}}},
        Json{{"guided_regex", "yes|no"}},
        Json{{"ebnf", "root ::= \"yes\" | \"no\""}},
        Json{{"guided_grammar", "root ::= \"yes\" | \"no\""}},
        Json{{"structured_outputs", {{"choice", {"yes", "no"}}, {"regex", nullptr}}}},
        Json{{"structural_tag",
              {{"type", "structural_tag"},
               {"format",
                {{"type", "or"},
                 {"elements",
                  {{{"type", "const_string"}, {"value", "yes"}},
                   {{"type", "const_string"}, {"value", "no"}}}}}}}}}})
    EXPECT_EQ(bare.count(text_of(form)), 1U) << form;
  const test::Json flat =
      ok("/generate", {{"text", kPrompt}, {"sampling_params", {{"regex", "ye{2}s"}}}});
  EXPECT_EQ(flat["text"], "yees");
  EXPECT_EQ(flat["meta_info"]["finish_reason"]["type"], "stop");
}

TEST_F(StructuredOutput, ThatPermitsEverythingChangesNothing) {
  for (const double temperature : {0.0, 1.0}) {
    const Json plain = generated(*served, {{"temperature", temperature}, {"max_tokens", 40}});
    const Json free = generated(
        *served, {{"temperature", temperature}, {"max_tokens", 40}, {"ebnf", "root ::= [^]*"}});
    EXPECT_EQ(free, plain);
  }
}

TEST_F(StructuredOutput, EndsWhereItMayAndGoesOnWithoutAnEnd) {
  const Json once = generated(*served, {{"regex", "abc"}, {"min_tokens", 20}});
  EXPECT_EQ(once["text"], "abc") << "the grammar binds";
  EXPECT_EQ(once["finish_reason"], "stop");
  const Json on = generated(*served, {{"regex", "abc"}, {"ignore_eos", true}, {"max_tokens", 12}});
  EXPECT_TRUE(on["text"].get<std::string>().starts_with("abc"));
  EXPECT_EQ(on["finish_reason"], "length");
  const Json cut = generated(*served, {{"regex", "a{50}"}, {"max_tokens", 5}});
  EXPECT_EQ(cut["finish_reason"], "length");
}

TEST_F(StructuredOutput, ThatCannotBeGets400WithOneLine) {
  const auto with = [&](const char* name, const Json& value) {
    return refusal("/v1/completions", {{"prompt", kPrompt}, {name, value}});
  };
  EXPECT_NE(with("regex", "(a").find("grammar"), std::string::npos);
  EXPECT_NE(with("ebnf", "root ::= x").find("x"), std::string::npos);
  EXPECT_NE(with("guided_json", {{"not", Json::object()}}).find("\"not\""), std::string::npos);
  EXPECT_NE(with("response_format", {{"type", "xml"}}).find("xml"), std::string::npos);
  EXPECT_NE(with("structured_outputs", {{"xml", "a"}}).find("structured_outputs"),
            std::string::npos);
  EXPECT_NE(
      refusal("/v1/completions", {{"prompt", "a"}, {"regex", "a"}, {"ebnf", "root ::= \"a\""}})
          .find("exclude"),
      std::string::npos);
  EXPECT_NE(with("regex", std::string(70000, 'a')).find("65536"), std::string::npos);
}

}  // namespace
}  // namespace ferry
