#include "ferry/text/grammars.h"

#include <gtest/gtest.h>

#include <cmath>
#include <future>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>

#include "ferry/core/error.h"
#include "ferry/text/ahead_worker.h"
#include "ferry/text/compile_thread.h"
#include "ferry/text/tokenizer.h"
#include "support/json_validator.h"
#include "support/paths.h"
#include "support/random_schema.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;
using Kind = GrammarText::Kind;

constexpr std::int32_t kEos = 640;
constexpr int kVocab = 656;  // more than the tokenizer has

class GrammarsTest : public testing::Test {
 protected:
  const Tokenizer tokenizer_ = Tokenizer::load(test::source_dir() / "assets" / "demo-moe");
  Grammars grammars_{tokenizer_, kVocab, std::vector<std::int32_t>{kEos}};

  static std::vector<std::int32_t> allowed(GrammarState& state) {
    std::vector<float> logits(kVocab, 1.5F);
    state.mask(logits);
    std::vector<std::int32_t> ids;
    for (std::int32_t id = 0; id < kVocab; ++id) {
      const float logit = logits[static_cast<std::size_t>(id)];
      EXPECT_TRUE(logit == 1.5F || logit == -INFINITY);
      if (std::isfinite(logit)) ids.push_back(id);
    }
    return ids;
  }

  /// A text by chance, to its end or cut at `most` tokens; `done` tells.
  std::string walk(const GrammarText& grammar, std::mt19937& random, int most, bool& done) {
    grammars_.check(grammar);
    const auto state = grammars_.begin(grammar);
    std::string text;
    done = false;
    for (int i = 0; i < most && !done; ++i) {
      const auto ids = allowed(*state);
      EXPECT_FALSE(ids.empty()) << text;
      if (ids.empty()) return text;
      // White space at length is allowed, and nothing to learn from.
      std::int32_t id = ids[random() % ids.size()];
      for (int again = 0; again < 20 && id != kEos; ++again) {
        const std::string_view bytes = tokenizer_.token_bytes(id);
        if (bytes.find_first_not_of(" \t\r\n") != std::string_view::npos) break;
        id = ids[random() % ids.size()];
      }
      state->advance(id);
      if (id == kEos) {
        done = true;
      } else {
        EXPECT_FALSE(tokenizer_.is_special(id));
        text += tokenizer_.token_bytes(id);
      }
    }
    return text;
  }

  std::string refusal(const GrammarText& grammar) {
    try {
      grammars_.check(grammar);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  }
};

TEST_F(GrammarsTest, WhatRandomSchemasLetThroughKeepsToThem) {
  std::mt19937 random(11);
  int ended = 0;
  for (int i = 0; i < 60; ++i) {
    const Json schema = test::random_schema(random);
    for (int j = 0; j < 3; ++j) {
      bool done = false;
      const std::string text = walk({Kind::json_schema, schema.dump()}, random, 300, done);
      if (!done) continue;
      ++ended;
      const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
      EXPECT_FALSE(value.is_discarded()) << schema << "\n" << text;
      EXPECT_TRUE(test::keeps_to(value, schema)) << schema << "\n" << text;
    }
  }
  EXPECT_GT(ended, 100);
}

TEST_F(GrammarsTest, AnyObjectIsOneAndNestsAnything) {
  std::mt19937 random(3);
  int ended = 0;
  for (int i = 0; i < 40; ++i) {
    bool done = false;
    const std::string text = walk({Kind::json, ""}, random, 400, done);
    if (!done) continue;
    ++ended;
    // What no double holds is JSON all the same.
    const std::string small = std::regex_replace(text, std::regex("[eE][-+]?[0-9]{3,}"), "e9");
    EXPECT_TRUE(Json::parse(small, nullptr, false).is_object()) << text;
  }
  EXPECT_GT(ended, 10);
  const auto state = grammars_.begin({Kind::json_schema, R"({"type": "object"})"});
  for (const std::int32_t id : tokenizer_.encode(R"({"a": [1, {"b": null}]})")) state->advance(id);
  EXPECT_EQ(allowed(*state), std::vector<std::int32_t>{kEos});
}

TEST_F(GrammarsTest, RegularExpressionsEndWhereTheyMatch) {
  std::mt19937 random(5);
  for (const std::string& pattern : {std::string("(ab|a)*c{2,3}"),
                                     std::string("[A-Z][a-z]+( [A-Z][a-z]+)?"),
                                     std::string("\\d{3}-\\d{4}"),
                                     std::string("\"quoted\\\\\"?")}) {
    const std::regex regex(pattern);
    const GrammarText grammar{Kind::regex, pattern};
    grammars_.check(grammar);
    for (int i = 0; i < 10; ++i) {
      const auto state = grammars_.begin(grammar);
      std::string text;
      for (int n = 0; n < 30; ++n) {
        const auto ids = allowed(*state);
        ASSERT_FALSE(ids.empty()) << pattern << ": " << text;
        EXPECT_EQ(std::regex_match(text, regex), ids.back() == kEos) << pattern << ": " << text;
        const std::int32_t id = ids[random() % ids.size()];
        if (id == kEos) break;
        state->advance(id);
        text += tokenizer_.token_bytes(id);
      }
    }
  }
}

TEST_F(GrammarsTest, OfAChoiceExactlyTheBeginningsAreAllowed) {
  const std::vector<std::string> choices = {"Once", "One", "On the hill", "ünder"};
  const auto state =
      grammars_.begin({Kind::ebnf, R"(root ::= "Once" | "One" | "On the hill" | "\u00fcnder")"});
  std::string text;
  for (const char* next : {"O", "n", " the"}) {
    std::vector<std::int32_t> expected;
    for (std::int32_t id = 0; id < kEos; ++id) {
      const std::string longer = text + std::string(tokenizer_.token_bytes(id));
      if (std::any_of(choices.begin(), choices.end(), [&](const auto& choice) {
            return choice.starts_with(longer);
          }))
        expected.push_back(id);
    }
    EXPECT_EQ(allowed(*state), expected) << text;
    for (const std::int32_t id : tokenizer_.encode(next)) state->advance(id);
    text += next;
  }
}

TEST_F(GrammarsTest, WhatPermitsEverythingLeavesAllButSpecialTokens) {
  const auto state = grammars_.begin({Kind::ebnf, "root ::= [^]*"});
  for (const std::int32_t id : tokenizer_.encode("Once upon a time")) state->advance(id);
  const auto ids = allowed(*state);
  for (std::int32_t id = 0; id < kEos; ++id) {
    const std::string bytes(tokenizer_.token_bytes(id));
    const bool begins = (static_cast<unsigned char>(bytes[0]) & 0xC0) != 0x80 &&
                        static_cast<unsigned char>(bytes[0]) < 0xF5 && bytes[0] != '\xC0' &&
                        bytes[0] != '\xC1';
    EXPECT_EQ(std::count(ids.begin(), ids.end(), id), begins ? 1 : 0) << id;
  }
  EXPECT_EQ(ids.back(), kEos);
}

TEST_F(GrammarsTest, TokensBehindTheEndOrAMistakeAreFreeUntilTakenBack) {
  const auto state = grammars_.begin({Kind::regex, "ab"});
  const std::int32_t a = tokenizer_.encode("a").front();
  const std::int32_t b = tokenizer_.encode("b").front();
  state->advance(b);
  EXPECT_EQ(allowed(*state).size(), static_cast<std::size_t>(kVocab));
  state->advance(a);
  state->roll_back(2);
  EXPECT_EQ(allowed(*state), std::vector<std::int32_t>{a});
  state->advance(a);
  state->advance(b);
  const auto fork = state->fork();
  state->advance(kEos);
  EXPECT_EQ(allowed(*state).size(), static_cast<std::size_t>(kVocab));
  state->advance(b);
  state->roll_back(3);
  EXPECT_EQ(allowed(*state), std::vector<std::int32_t>{b});
  EXPECT_EQ(allowed(*fork), std::vector<std::int32_t>{kEos});
}

TEST_F(GrammarsTest, WhatCannotBeIsRefusedInOneLineThatNamesIt) {
  const std::vector<std::pair<GrammarText, std::string>> bad = {
      {{Kind::json_schema, "{"}, "no JSON"},
      {{Kind::json_schema, "7"}, "object"},
      {{Kind::json_schema, R"({"type": "strin"})"}, "strin"},
      {{Kind::json_schema, R"({"type": "object", "not": {}})"}, "\"not\""},
      {{Kind::json_schema, R"({"type": "array", "uniqueItems": true})"}, "uniqueItems"},
      {{Kind::json_schema, R"({"type": "array", "contains": {}})"}, "contains"},
      {{Kind::json_schema, R"({"properties": {"a": {"type": "number", "multipleOf": 0.1}}})"},
       "/properties/a"},
      {{Kind::json_schema, R"({"type": "integer", "multipleOf": 0.5})"}, "multipleOf"},
      {{Kind::json_schema, R"({"type": "string", "pattern": "a", "maxLength": 3})"}, "pattern"},
      {{Kind::json_schema, R"({"type": "string", "pattern": "(?=a)b"})"}, "ookahead"},
      {{Kind::json_schema, R"({"type": "string", "format": "regex"})"}, "regex"},
      {{Kind::json_schema, R"({"anyOf": [{"type": "null"}], "type": "object"})"}, "beside"},
      {{Kind::json_schema, R"({"allOf": [{"type": "null"}, {"type": "string"}]})"}, "allOf"},
      {{Kind::json_schema, R"({"enum": [1, "a"], "type": "string"})"}, "type"},
      {{Kind::json_schema, R"({"minimum": 3})"}, "minimum"},
      {{Kind::json_schema, R"({"$ref": "https://example.com/x"})"}, "$ref"},
      {{Kind::json_schema, R"({"$ref": "#/$defs/none"})"}, "none"},
      {{Kind::json_schema, R"({"type": "object", "required": ["a"]})"}, "required"},
      {{Kind::json_schema, R"({"type": "integer", "minimum": 3, "maximum": 2})"}, "minimum"},
      {{Kind::json_schema, "false"}, "false"},
      {{Kind::regex, "(a"}, ""},
      {{Kind::regex, "(a)\\1"}, "ackreference"},
      {{Kind::regex, "a\\bc"}, "oundary"},
      {{Kind::regex, "((a{100}){100}){10}"}, "too large"},
      {{Kind::ebnf, ""}, "root"},
      {{Kind::ebnf, "root ::= ("}, "line 1"},
      {{Kind::ebnf, "root ::= missing"}, "missing"},
      {{Kind::ebnf, "root[temperature=0] ::= \"a\""}, "temperature"},
      {{Kind::structural_tag, "{}"}, ""},
      {{Kind::structural_tag,
        R"({"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"not": {}}}})"},
       "\"not\""}};
  for (const auto& [grammar, part] : bad) {
    const std::string message = refusal(grammar);
    EXPECT_NE(message, "") << grammar.text.substr(0, 80);
    EXPECT_NE(message.find(part), std::string::npos) << part << " not in: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400U);
  }
}

TEST_F(GrammarsTest, DeepNestingOverrunsNoStack) {
  const std::string deep = std::string(20000, '(') + "a" + std::string(20000, ')');
  for (const GrammarText& grammar : {GrammarText{Kind::regex, deep},
                                     GrammarText{Kind::ebnf, "root ::= " + deep},
                                     GrammarText{Kind::json_schema, std::string(30000, '[')},
                                     GrammarText{Kind::structural_tag, std::string(30000, '[')}}) {
    try {
      grammars_.check(grammar);
    } catch (const ConfigError&) {
      SUCCEED() << "or is refused";
    }
  }
}

TEST_F(GrammarsTest, StringsOfAnyLengthAreOnesOfJson) {
  std::mt19937 random(4);
  grammars_.check(
      {Kind::json_schema, R"({"type": "string", "minLength": 3, "maxLength": 100000})"});
  for (const char* schema : {R"({"type": "string", "minLength": 2, "maxLength": 300})",
                             R"({"type": "string", "minLength": 2})",
                             R"({"type": "string", "pattern": "^[a-z]+.x\\S*$"})",
                             R"({"type": "string", "format": "date-time"})",
                             R"({"type": "string", "format": "email"})",
                             R"({"type": "string", "format": "uuid"})",
                             R"({"type": "string", "format": "ipv6"})"}) {
    int ended = 0;
    for (int i = 0; i < 20; ++i) {
      bool done = false;
      const std::string text = walk({Kind::json_schema, schema}, random, 400, done);
      if (!done) continue;
      ++ended;
      EXPECT_TRUE(Json::parse(text, nullptr, false).is_string()) << schema << text;
    }
    EXPECT_GT(ended, 0) << schema;
  }
}

/// Whether a JSON string of so many characters is one of the grammar.
bool takes_string_of(Grammars& grammars,
                     const Tokenizer& tokenizer,
                     const GrammarText& grammar,
                     int characters) {
  const std::string text = '"' + std::string(static_cast<std::size_t>(characters), 'a') + '"';
  const auto state = grammars.begin(grammar);
  std::vector<float> logits(static_cast<std::size_t>(kVocab));
  for (const std::int32_t id : tokenizer.encode(text, false)) {
    std::ranges::fill(logits, 1.0F);
    state->mask(logits);
    if (logits[static_cast<std::size_t>(id)] != 1.0F) return false;
    state->advance(id);
  }
  return true;
}

TEST_F(GrammarsTest, StringsHaveAsManyCharactersAsTheirSchemaSays) {
  const std::pair<int, int> bounds[] = {
      {0, 200}, {127, 129}, {128, 128}, {130, 140}, {5, 257}, {256, 300}, {200, -1}, {700, 1024}};
  for (const auto& [least, most] : bounds) {
    std::string schema = R"({"type": "string", "minLength": )" + std::to_string(least);
    if (most >= 0) schema += R"(, "maxLength": )" + std::to_string(most);
    const GrammarText grammar{Kind::json_schema, schema + "}"};
    grammars_.check(grammar);
    for (const int length : {1,   126, 127, 128, 129, 130, 131, 139, 140, 141,  199,  200, 201,
                             255, 256, 257, 258, 299, 300, 301, 699, 700, 1023, 1024, 1025}) {
      const bool within = length >= least && (most < 0 || length <= most);
      EXPECT_EQ(takes_string_of(grammars_, tokenizer_, grammar, length), within)
          << grammar.text << length;
    }
  }
}

TEST_F(GrammarsTest, FewAreKeptHoweverManyCome) {
  for (int i = 0; i < 300; ++i) grammars_.check({Kind::regex, "a{" + std::to_string(i + 1) + "}"});
  const std::size_t many = grammars_.kept_bytes();
  for (int i = 0; i < 300; ++i) grammars_.check({Kind::regex, "b{" + std::to_string(i + 1) + "}"});
  EXPECT_LT(grammars_.kept_bytes(), 2 * many);
}

TEST(CompileThread, ThatTakesTooLongIsLeftAloneAndIsTheOnlyOne) {
  const auto release = std::make_shared<std::promise<void>>();
  const auto released = release->get_future().share();
  EXPECT_FALSE(run_bounded([released] { released.wait(); }, std::chrono::milliseconds(5)));
  EXPECT_THROW(static_cast<void>(run_bounded([] {}, std::chrono::seconds(10))), ConfigError);
  release->set_value();
  for (;;) {
    try {
      EXPECT_TRUE(run_bounded([] {}, std::chrono::seconds(10)));
      break;
    } catch (const ConfigError&) {
      std::this_thread::yield();  // its thread has yet to end
    }
  }
  EXPECT_THROW(static_cast<void>(run_bounded([] { fail<ModelError>("x"); }, std::nullopt)),
               ModelError);
}

TEST(AheadWorker, EachWorkIsDoneOnceByWhoeverComesFirst) {
  AheadWorker worker;
  std::vector<std::shared_ptr<AheadWork>> posted;
  std::vector<int> done(500);
  for (std::size_t i = 0; i < done.size(); ++i)
    posted.push_back(worker.post([&done, i] { ++done[i]; }));
  int sum = 0;
  for (std::size_t i = 0; i < posted.size(); ++i) {
    if (i % 3 == 0) {
      posted[i]->drop();
      sum += done[i];
      EXPECT_LE(done[i], 1);
    } else {
      posted[i]->finish();
      EXPECT_EQ(done[i], 1);
    }
    posted[i]->finish();
  }
  EXPECT_LE(sum, 167);
}

}  // namespace
}  // namespace ferry
