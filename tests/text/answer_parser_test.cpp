#include "ferry/text/answer/answer_parser.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

struct Call {
  std::string id;
  std::string name;
  std::string arguments;

  bool operator==(const Call&) const = default;
};

struct Answer {
  std::string thinking;
  std::string content;
  std::vector<Call> calls;

  bool operator==(const Answer&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Answer& answer) {
  out << "thinking <" << answer.thinking << "> content <" << answer.content << ">";
  for (const Call& call : answer.calls)
    out << " call " << call.name << " (" << call.id << ") " << call.arguments;
  return out;
}

void add(const AnswerPiece& piece, Answer& answer) {
  answer.thinking += piece.thinking;
  answer.content += piece.content;
  for (const CallPiece& call : piece.calls) {
    EXPECT_EQ(call.begins, call.index == answer.calls.size()) << "a name begins a call";
    ASSERT_LE(call.index, answer.calls.size());
    if (call.index == answer.calls.size())
      answer.calls.push_back({.id = call.id, .name = call.name, .arguments = ""});
    answer.calls[call.index].arguments += call.arguments;
  }
}

Answer parsed(AnswerParser& parser, const std::vector<std::string>& pieces) {
  Answer answer;
  for (const std::string& text : pieces) {
    AnswerPiece piece;
    parser.put(text, piece);
    add(piece, answer);
  }
  AnswerPiece last;
  parser.finish(last);
  add(last, answer);
  return answer;
}

struct Case {
  std::string name;
  std::string style;
  std::string thinking;  // its style; empty: none
  std::string text;
  Answer expected;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

const Json& tools() {
  static const Json all = Json::parse(R"([{"type": "function", "function": {"name": "weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"},
      "days": {"type": "integer"}, "places": {"type": "array"}, "code": {"type": "string"}}}}}])");
  return all;
}

std::vector<Case> cases() {
  const std::string bern = R"({"place": "Bern }</tool_call>\"", "days": 2})";
  return {
      {.name = "Hermes",
       .style = "hermes",
       .text = "I look.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": " + bern +
               "}\n</tool_call>\n<tool_call>\n{\"arguments\": {}, \"name\": \"now\"}\n</tool_call>",
       .expected = {"", "I look.", {{"", "weather", bern}, {"", "now", "{}"}}}},
      {.name = "HermesThinksFirst",
       .style = "hermes",
       .thinking = "qwen3",
       .text = "<think>\nHm, <tool_call>?\n</think>\n\n<tool_call>{\"name\": \"f\", \"arguments\": "
               "\"{\\\"a\\\": 1}\"}</tool_call> done",
       .expected = {"Hm, <tool_call>?", "done", {{"", "f", "{\"a\": 1}"}}}},
      {.name = "HermesNoCall",
       .style = "hermes",
       .text = " a <tool_call> {\"name\": 7} b \n",
       .expected = {"", " a <tool_call> {\"name\": 7} b \n", {}}},
      {.name = "NoTools",
       .style = "",
       .thinking = "deepseek_r1",
       .text = "one\n two\n</think>\n\nthree \n",
       .expected = {"one\n two", "three \n", {}}},
      {.name = "NoThought",
       .style = "",
       .thinking = "qwen3",
       .text = " <thin>k",
       .expected = {"", " <thin>k", {}}},
      {.name = "DeepseekV3",
       .style = "deepseek_v3",
       .text =
           "Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```"
           "json\n" +
           bern +
           "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n"
           "```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
       .expected = {"", "Look:", {{"", "weather", bern}, {"", "now", "{}"}}}},
      {.name = "DeepseekV31",
       .style = "deepseek_v31",
       .text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + bern +
               "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜><"
               "｜tool▁calls▁end｜>",
       .expected = {"", "", {{"", "weather", bern}, {"", "now", "{}"}}}},
      {.name = "Kimi",
       .style = "kimi_k2",
       .text = "Well <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
               "<|tool_call_argument_begin|>" +
               bern +
               "<|tool_call_end|><|tool_call_begin|>functions.a.b:1<|tool_call_argument_begin|>{}"
               "<|tool_call_end|><|tool_calls_section_end|>",
       .expected = {"",
                    "Well",
                    {{"functions.weather:0", "weather", bern}, {"functions.a.b:1", "a.b", "{}"}}}},
      {.name = "Glm",
       .style = "glm45",
       .text =
           "<think></think>Ja.<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>7"
           "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>7</arg_value>\n<arg_key>x</arg_key>"
           "<arg_value>[1, {\"a\": null}]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
       .expected = {"",
                    "<think></think>Ja.",
                    {{"", "weather", R"({"place": "7", "days": 7, "x": [1,{"a":null}]})"},
                     {"", "now", "{}"}}}},
      {.name = "QwenCoder",
       .style = "qwen3_coder",
       .text =
           "<tool_call>\n<function=weather>\n<parameter=code>\nif a < b:\n  \"x\"\n\n</parameter>\n"
           "<parameter=days>\n3\n</parameter>\n<parameter=places>\n[\"A\"]\n</parameter>\n"
           "</function>\n</tool_call>\n<function=now>\n</function> Bye",
       .expected =
           {"",
            "Bye",
            {{"", "weather", R"({"code": "if a < b:\n  \"x\"\n", "days": 3, "places": ["A"]})"},
             {"", "now", "{}"}}}},
      {.name = "Pythonic",
       .style = "llama4_pythonic",
       .text = "<|python_start|>[weather(place='B\\'e\"rn', days=-2.5), now(), "
               "f(x=[True, {'k': None}], y=(1, 2))]<|python_end|>",
       .expected = {"",
                    "",
                    {{"", "weather", R"({"place":"B'e\"rn","days":-2.5})"},
                     {"", "now", "{}"},
                     {"", "f", R"({"x":[true,{"k":null}],"y":[1,2]})"}}}},
      {.name = "PythonicText",
       .style = "llama4_pythonic",
       .text = "[weather] is nice",
       .expected = {"", "[weather] is nice", {}}},
      {.name = "Mistral",
       .style = "mistral",
       .text = "Ok[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": " + bern +
               "}, {\"name\": \"now\", \"arguments\": {}}]",
       .expected = {"", "Ok", {{"", "weather", bern}, {"", "now", "{}"}}}},
      {.name = "MistralNew",
       .style = "mistral",
       .text = "[TOOL_CALLS]weather[ARGS]" + bern + "[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}",
       .expected = {"", "", {{"", "weather", bern}, {"", "now", "{}"}}}},
      {.name = "Harmony",
       .style = "openai",
       .text =
           "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary"
           "<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
           "<|constrain|>json<|message|>" +
           bern + "<|call|>",
       .expected = {"Need it.", "I look.", {{"", "weather", bern}}}},
      {.name = "HarmonyFinal",
       .style = "gpt-oss",
       .text = "<|channel|>analysis<|message|>1 "
               "<|end|><|start|>assistant<|channel|>final<|message|>Two.",
       .expected = {"1 ", "Two.", {}}},
      {.name = "HarmonyPlain",
       .style = "openai",
       .text = "<| no head",
       .expected = {"", "<| no head", {}}},
  };
}

std::unique_ptr<AnswerParser> make(const Case& c) {
  std::unique_ptr<AnswerParser> parser;
  if (!c.style.empty()) parser = find_call_style(c.style, "")->make(argument_types(tools()));
  if (!c.thinking.empty())
    parser =
        split_thinking(*find_thinking_style(c.thinking, ""), Thought::unknown, std::move(parser));
  return parser;
}

/// At up to `most` places by chance, also within characters.
std::vector<std::string> cut(const std::string& text, std::mt19937& random, std::size_t most) {
  std::vector<std::string> pieces;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = 1 + random() % most;
    pieces.push_back(text.substr(at, n));
    at += n;
  }
  return pieces;
}

class EveryFamily : public testing::TestWithParam<Case> {};

TEST_P(EveryFamily, GivesItsCallsHoweverTheTextIsCut) {
  const Case& c = GetParam();
  EXPECT_EQ(parsed(*make(c), {c.text}), c.expected);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const auto pieces = cut(c.text, random, 1 + static_cast<std::size_t>(i) % 20);
    ASSERT_EQ(parsed(*make(c), pieces), c.expected) << i;
  }
}

/// Whatever a model makes of it: texts that end early, lack pieces or have them twice.
TEST_P(EveryFamily, GivesTheSameForDamagedTextHoweverItIsCut) {
  const Case& c = GetParam();
  std::mt19937 random(2);
  for (int i = 0; i < 400; ++i) {
    std::string text = c.text;
    for (unsigned n = random() % 4; n > 0; --n) {
      const std::size_t at = random() % (text.size() + 1);
      const std::size_t length = random() % 24;
      const std::size_t to = random() % (text.size() + 1);
      const std::string piece = text.substr(at, length);
      if (random() % 2 == 0) text.erase(at, length);
      if (random() % 2 == 0) text.insert(std::min(to, text.size()), piece);
    }
    if (random() % 2 == 0) text.resize(random() % (text.size() + 1));
    const Answer whole = parsed(*make(c), {text});
    for (const std::size_t most : {std::size_t{1}, std::size_t{4}, std::size_t{30}})
      ASSERT_EQ(parsed(*make(c), cut(text, random, most)), whole) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, EveryFamily, testing::ValuesIn(cases()), [](const auto& test) {
  return test.param.name;
});

TEST(CallStyles, AreFoundByNameAndByTheirMarksInTemplates) {
  for (const CallStyle& style : call_styles()) {
    EXPECT_EQ(find_call_style(style.name, ""), &style);
    for (const char* other : style.others) EXPECT_EQ(find_call_style(other, ""), &style);
    std::string chat_template = "{{ messages }}";
    for (const char* mark : style.marks) chat_template += mark;
    EXPECT_EQ(find_call_style("auto", chat_template), &style) << style.name;
    // Several families have these tags around calls of their own.
    if (style.name == std::string("glm45") || style.name == std::string("qwen3_coder")) {
      EXPECT_EQ(find_call_style("auto", chat_template + "<tool_call>"), &style);
    }
  }
  EXPECT_EQ(find_call_style("auto", "{{ messages }}"), nullptr);
  EXPECT_EQ(find_call_style("none", "<tool_call>"), nullptr);
  EXPECT_THROW(find_call_style("hermit", ""), ConfigError);
}

TEST(ThinkingStyles, AreFoundByNameAndByTheirMarksInTemplates) {
  for (const ThinkingStyle& style : thinking_styles()) {
    EXPECT_EQ(find_thinking_style(style.name, ""), &style);
    for (const char* other : style.others) EXPECT_EQ(find_thinking_style(other, ""), &style);
  }
  EXPECT_EQ(find_thinking_style("auto", "x </think>")->name, std::string("qwen3"));
  EXPECT_EQ(find_thinking_style("auto", "x"), nullptr);
  EXPECT_EQ(find_thinking_style("none", "x </think>"), nullptr);
  EXPECT_THROW(find_thinking_style("qwen", ""), ConfigError);
}

TEST(ThinkingStyles, ThePromptSaysWhetherAThoughtHasBegun) {
  const ThinkingStyle& style = *find_thinking_style("qwen3", "");
  EXPECT_EQ(thought_at_end(style, "<|assistant|><think>\n"), Thought::open);
  EXPECT_EQ(thought_at_end(style, "<think>\n\n</think>\n\n"), Thought::closed);
  EXPECT_EQ(thought_at_end(style, "user <think> said"), Thought::unknown);
  const auto with = [&](Thought thought, const std::string& text) {
    return parsed(*split_thinking(style, thought, nullptr), {text});
  };
  EXPECT_EQ(with(Thought::open, "a</think>b"), (Answer{"a", "b", {}}));
  EXPECT_EQ(with(Thought::closed, "\n\na</think>b"), (Answer{"", "a</think>b", {}}));
  EXPECT_EQ(with(Thought::open, "cut off"), (Answer{"cut off", "", {}}));
}

TEST(GrammarCalls, AreReadAsTheyCome) {
  const std::string text =
      R"( [{"name": "f", "parameters": {"a": [1]}}, {"name": "g", "parameters": {}}] )";
  const Answer listed{"", "", {{"", "f", "{\"a\": [1]}"}, {"", "g", "{}"}}};
  const Answer named{"", "", {{"", "f", "{\"a\": \"x\"}"}}};
  std::mt19937 random(3);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(parsed(*listed_calls(), cut(text, random, 9)), listed);
    EXPECT_EQ(parsed(*named_call("f"), cut("\n{\"a\": \"x\"}", random, 3)), named);
  }
}

}  // namespace
}  // namespace ferry
