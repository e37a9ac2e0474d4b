#include "ferry/text/chat_template.h"

#include <gmock/gmock.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>

#include "ferry/core/error.h"
#include "support/files.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

constexpr std::time_t kNow = 1754000000;  // of tools/make_chat_golden.py
const ChatTemplate::Tokens kTokens = {
    {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"pad_token", "<pad>"}};

ordered_json golden(const std::string& name) {
  return ordered_json::parse(test::read_file(test::data_dir("chat_templates") / (name + ".json")));
}

/// A moment has a date only in a time zone, which is that of the golden data here.
class Utc : public testing::Environment {
 public:
  void SetUp() override {
    ::setenv("TZ", "UTC", 1);
    ::tzset();
  }
};

const auto* const kUtc = testing::AddGlobalTestEnvironment(new Utc);

ChatTemplate make(std::string_view source) {
  return ChatTemplate::parse(source, "some.jinja", kTokens);
}

/// What an expression or template prints, over variables `v` or any messages.
std::string print(std::string_view source, const ordered_json& variables = ordered_json::object()) {
  return make(source).render(ordered_json::array(), {.extra = &variables, .now = kNow});
}

std::string error_of(std::string_view source) {
  return test::message_of<ModelError>([&] { make(source); });
}

/// What a template is said to ask for that is not there.
std::string warning_of(std::string_view source) {
  const std::vector<std::string> warnings = make(source).warnings();
  return warnings.size() == 1 ? warnings[0] : std::to_string(warnings.size()) + " warnings";
}

std::string failure_of(std::string_view source) {
  return test::message_of<ConfigError>([&] { print(source); });
}

class GoldenChat : public testing::TestWithParam<const char*> {};

TEST_P(GoldenChat, RendersWhatTransformersRenders) {
  const std::string name = GetParam();
  const ChatTemplate chat =
      make(test::read_file(test::data_dir("chat_templates") / (name + ".jinja")));
  const ordered_json cases = golden("cases");
  const ordered_json prompts = golden(name);
  ASSERT_EQ(cases.size(), prompts.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i].dump());
    const ordered_json& tools = cases[i]["tools"];
    const ChatRenderOptions options{
        .add_generation_prompt = cases[i]["add_generation_prompt"].get<bool>(),
        .tools = tools.is_null() ? nullptr : &tools,
        .extra = &cases[i]["extra"],
        .now = kNow};
    if (prompts[i].is_null()) {
      EXPECT_THROW(chat.render(cases[i]["messages"], options), ConfigError);
    } else {
      EXPECT_EQ(chat.render(cases[i]["messages"], options), prompts[i].get<std::string>());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         GoldenChat,
                         testing::Values("deepseek_r1",
                                         "deepseek_v2",
                                         "glm45",
                                         "gpt_oss",
                                         "kimi_k2",
                                         "llama4",
                                         "mechanics",
                                         "mixtral",
                                         "olmoe",
                                         "qwen2",
                                         "qwen3"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Jinja, ExpressionsPrintWhatJinjaPrints) {
  const ordered_json variables = {{"v", golden("values")}};
  for (const ordered_json& row : golden("expressions")) {
    const auto expression = row["expression"].get<std::string>();
    SCOPED_TRACE(expression);
    const std::string source = "{{ " + expression + " }}";
    if (row.contains("error")) {
      EXPECT_THROW(print(source, variables), Error);
    } else {
      try {
        EXPECT_EQ(print(source, variables), row["printed"].get<std::string>());
      } catch (const Error& e) {
        ADD_FAILURE() << e.what();
      }
    }
  }
}

TEST(Jinja, WhatIsNotSupportedIsToldByNameWithTheLine) {
  EXPECT_EQ(warning_of("\n\n{{ x | frobnicate }}"),
            "some.jinja: chat template, line 3: filter frobnicate is not supported");
  EXPECT_THAT(warning_of("{{ x is frobnicated }}"), HasSubstr("test frobnicated"));
  EXPECT_THAT(warning_of("{{ x.frobnicate() }}"), HasSubstr("method .frobnicate()"));
  EXPECT_THAT(warning_of("{{ frobnicate(1) }}"), HasSubstr("function frobnicate()"));
  EXPECT_THAT(warning_of("\n{% include 'x' %}"), HasSubstr("line 2: tag include"));
  EXPECT_THAT(warning_of("{% call(x) f %}{% if x %}{% endif %}{% endcall %}"),
              HasSubstr("tag call"));
  EXPECT_THAT(warning_of("{% for x in y recursive %}{% endfor %}"), HasSubstr("recursive loop"));
  EXPECT_THAT(warning_of("{{ x | map('nope') }}"), HasSubstr("filter nope"));
  EXPECT_THAT(warning_of("{{ x | selectattr('a', 'nope') }}"), HasSubstr("test nope"));
  EXPECT_THAT(warning_of("{{ range(*x) }}"), HasSubstr("behind *"));
  EXPECT_THAT(warning_of("{{ range(**x) }}"), HasSubstr("behind **"));
  EXPECT_THAT(warning_of("{{ (x)['f'](1) }}"), HasSubstr("a call of anything but"));
  EXPECT_THAT(warning_of("{% for a in b %}{% macro m() %}{% endmacro %}{% endfor %}"),
              HasSubstr("macro m inside of a loop"));
  EXPECT_EQ(warning_of("{{ x | nope }}{{ x | nope }}\n{{ x | nope }}"), "2 warnings");
  EXPECT_EQ(warning_of("{{ x | upper }}"), "0 warnings");
}

TEST(Jinja, WhatIsNotSupportedRefusesWhereItIsReached) {
  for (const char* source : {"{{ 'x' | frobnicate }}",
                             "{{ 'x' is frobnicated }}",
                             "{{ 'x'.frobnicate() }}",
                             "{{ frobnicate(1) }}",
                             "{% include 'x' %}",
                             "{% import 'x' as y %}",
                             "{% call frobnicate() %}a{% endcall %}",
                             "{% block x %}{% endblock x %}",
                             "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
                             "{{ ['x'] | map('nope') | list }}",
                             "{{ ['x'] | select('nope') | list }}",
                             "{{ range(*[1]) | list }}",
                             "{{ ['f'][0](1) }}",
                             "{% for a in [1] %}{% macro m() %}{% endmacro %}{% endfor %}",
                             "{% set x %}a{% endset %}{% set y | nope %}a{% endset %}",
                             "{% filter nope %}a{% endfilter %}"}) {
    SCOPED_TRACE(source);
    EXPECT_THAT(
        failure_of("{% if true %}\n" + std::string(source) + "{% endif %}"),
        testing::AllOf(HasSubstr("line 2: "),
                       testing::AnyOf(HasSubstr("not supported"), HasSubstr("cannot be called"))));
    EXPECT_EQ(print("{% if false %}\n" + std::string(source) + "{% endif %}a"), "a");
  }
}

TEST(Jinja, ListsAndMappingsOfVariablesCanBeChanged) {
  // Python's answers; the sandbox of transformers refuses these calls, other engines do not.
  const std::vector<std::pair<const char*, const char*>> rows = {
      {"{% set x = [1] %}{% set _ = x.append('a') %}{{ x }}{{ _ }}", "[1, 'a']None"},
      {"{% set x = [1] %}{% do x.append(2) %}{% do x.extend((3, 4)) %}{{ x }}", "[1, 2, 3, 4]"},
      {"{% set x = [1] %}{% do x.insert(0, 2) %}{% do x.insert(-1, 3) %}{{ x }}", "[2, 3, 1]"},
      {"{% set x = [1] %}{% do x.insert(9, 2) %}{% do x.insert(-9, 3) %}{{ x }}", "[3, 1, 2]"},
      {"{% set x = [1, 2, 3] %}{{ x.pop() }}{{ x.pop(0) }}{{ x }}", "31[2]"},
      {"{% set x = [1, 2] %}{{ x.pop(-2) }}{{ x }}", "1[2]"},
      {"{% set x = [] %}{% for i in [1, 2] %}{% do x.append(i) %}{% endfor %}{{ x }}", "[1, 2]"},
      {"{% set n = namespace(l=[]) %}{% do n.l.append(1) %}{{ n.l.pop(0) }}{{ n.l }}", "1[]"},
      {"{% set x = {'a': [1]} %}{% do x.a.append(2) %}{% do x['a'].append(3) %}{{ x }}",
       "{'a': [1, 2, 3]}"},
      {"{% set x = [[1], [2]] %}{% do x[-1].append(3) %}{% do x[0].append(4) %}{{ x }}",
       "[[1, 4], [2, 3]]"},
      {"{% set x = {'a': 1} %}{% do x.update({'b': 2, 'a': 3}, c=4) %}{{ x }}",
       "{'a': 3, 'b': 2, 'c': 4}"},
      {"{% set x = {'a': 1} %}{{ x.setdefault('a', 2) }}{{ x.setdefault('b') }}{{ x }}",
       "1None{'a': 1, 'b': None}"},
      {"{% set x = {'a': 1} %}{{ x.pop('a') }}{{ x.pop('a', 'no') }}{{ x }}", "1no{}"},
      {"{{ [1].append(2) }}{{ {'a': [1]}.a.append(2) }}", "NoneNone"},
  };
  for (const auto& [source, printed] : rows) EXPECT_EQ(print(source), printed) << source;
  for (const char* source :
       {"{% set x = [] %}{{ x.pop() }}",
        "{% set x = [1] %}{{ x.pop(1) }}",
        "{% set x = [1] %}{{ x.pop('a') }}",
        "{% set x = {} %}{{ x.pop('a') }}",
        "{% set x = {} %}{{ x.pop() }}",
        "{% set x = {} %}{{ x.update([1]) }}",
        "{% set x = [1] %}{{ x.append() }}",
        "{% set x = [1] %}{{ x.append(1, 2) }}",
        "{% set x = [1] %}{{ x.extend(1) }}",
        "{% set x = [[1]] %}{{ x[1 - 1].append(1) }}",
        "{% set x = (1,) %}{{ x.append(1) }}",
        "{% for i in range(9999) %}{% do messages.append(messages) %}{% endfor %}",
        "{{ missing.append(1) }}"}) {
    EXPECT_THAT(failure_of(source), HasSubstr("line 1")) << source;
  }
}

TEST(Jinja, FromJsonReadsText) {
  EXPECT_EQ(print(R"({{ '{"a": [1, 2.5, null]}' | from_json }})"), "{'a': [1, 2.5, None]}");
  for (const char* source :
       {"{{ '{' | from_json }}",
        "{{ '' | from_json }}",
        "{{ 1 | from_json }}",
        "{{ missing | from_json }}",
        "{{ '99999999999999999999' | from_json | int }}x{{ raise_exception('') }}",
        "{{ '[' * 100000 | from_json }}",
        "{{ ('[' * 100000 ~ ']' * 100000) | from_json }}"}) {
    EXPECT_THAT(failure_of(source), HasSubstr("line 1")) << source;
  }
}

TEST(Jinja, RefusesWhatIsNoTemplate) {
  for (const char* source : {"{{",
                             "{{ }}",
                             "{{ x",
                             "{% if %}",
                             "{% if x %}",
                             "{% endif %}",
                             "{% for x %}",
                             "{% for x in %}{% endfor %}",
                             "{{ 'x }}",
                             "{{ (x }}",
                             "{{ x) }}",
                             "{{ [1, 2 }}",
                             "{# x",
                             "{% raw %}",
                             "{{ x y }}",
                             "{% set %}",
                             "{% set 1=2 %}",
                             "{% set x %}",
                             "{{ x. }}",
                             "{{ x[ }}",
                             "{{ 1 + }}",
                             "{{ x | }}",
                             "{{ x is }}",
                             "{% break %}",
                             "{{ ! }}",
                             "{{ 99999999999999999999 }}",
                             "{{ '\\ud800' }}",
                             "{% macro %}",
                             "{% macro m( %}",
                             "{% set loop = 1 %}",
                             "{{ a if }}",
                             "{% if a %}{% else %}{% elif b %}{% endif %}",
                             "{{ x[1, 2] }}",
                             "{% nope %}",
                             "{% if false %}{% nope %}{% endif %}",
                             "{% with a %}{% endwith %}",
                             "{% call x %}",
                             "{% filter %}a{% endfilter %}",
                             "{{ '\\N{DASH}' }}",
                             "\xff"}) {
    SCOPED_TRACE(source);
    EXPECT_THAT(error_of(source), HasSubstr("some.jinja"));
  }
}

TEST(Jinja, NestingIsBounded) {
  const auto repeat = [](const std::string& text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  const std::vector<std::pair<const char*, const char*>> brackets = {{"(", ")"},
                                                                     {"[", "]"},
                                                                     {"-", ""},
                                                                     {"not ", ""},
                                                                     {"x[", "]"},
                                                                     {"f(", ")"},
                                                                     {"{'a':", "}"},
                                                                     {"1 if x else ", ""}};
  for (const auto& [open, close] : brackets) {
    const std::string source = "{{ " + repeat(open, 50000) + "x" + repeat(close, 50000) + " }}";
    EXPECT_THAT(error_of(source), HasSubstr("nests deeper")) << open;
  }
  EXPECT_THAT(error_of(repeat("{% if x %}", 10000)), HasSubstr("nests deeper"));
  for (const char* more : {"+ x ", ".x ", "[0] ", "| trim ", "and x ", "is string "}) {
    EXPECT_THAT(error_of("{{ x " + repeat(more, 100000) + "}}"), HasSubstr("in a row")) << more;
  }
  EXPECT_EQ(print("{{ 'a' " + repeat("~ 'a' ", 5000) + "| length }}").size(), 5001U);
}

TEST(Jinja, WorkIsBounded) {
  if (slow_run()) GTEST_SKIP() << "takes minutes of a sanitizer's time; the main run has it";
  // Time of the processor: the machine may be busy. Sanitizers have a time of their own.
  [[maybe_unused]] const std::clock_t start = std::clock();
  EXPECT_THAT(failure_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
              HasSubstr("too deeply"));
  const std::string loop = "{% for i in range(99999) %}{% for j in range(99999) %}";
  const std::string end = "{% endfor %}{% endfor %}";
  EXPECT_THAT(failure_of(loop + "{% set x = i %}" + end), HasSubstr("too long"));
  EXPECT_THAT(failure_of(loop + "{{ 'abcdefghijklmnop' }}" + end), HasSubstr("bytes"));
  const std::string ns = "{% set ns = namespace(x='ab', l=[1]) %}{% for i in range(9999) %}";
  for (const char* grow : {"{% set ns.x = ns.x ~ ns.x %}",
                           "{% set ns.x = ns.x + ns.x %}",
                           "{% set ns.x = ns.x * 3 %}",
                           "{% set ns.x = ns.x | replace('a', 'aaaa') %}",
                           "{% set ns.x = [ns.x, ns.x] | join %}",
                           "{% set ns.x = ns.x | tojson | tojson %}",
                           "{% set ns.l = ns.l + ns.l %}",
                           "{% set ns.l = [ns.l] %}",
                           "{% set ns.l = [ns.l, ns.l] %}{% if ns.l == [ns.l] %}{% endif %}",
                           "{% set ns.l = [ns.l, ns.l] %}{{ ns.l | string | length }}",
                           "{% set ns.x = ns.x | indent(99999999) | indent(9, true) %}"}) {
    SCOPED_TRACE(grow);
    failure_of(ns + grow + "{% endfor %}");
  }
#ifndef FERRY_SANITIZE
  EXPECT_LT(std::clock() - start, 120 * CLOCKS_PER_SEC);
#endif
}

TEST(ChatTemplate, TheClockIsReadWhenNoneIsGiven) {
  const std::string year = make("{{ strftime_now('%Y') }}").render(ordered_json::array());
  EXPECT_GE(std::stoi(year), 2025);
}

TEST(ChatTemplate, RefusalsNameTheLineOnOneLine) {
  EXPECT_EQ(failure_of("\n{{ raise_exception('no\nway') }}"),
            "some.jinja: chat template, line 2: the template refuses these messages: no way");
  EXPECT_THAT(failure_of("{{ missing.x }}"), HasSubstr("'missing' is undefined"));
}

TEST(ChatTemplate, MessagesAreAListOfObjects) {
  const ChatTemplate chat = make("{{ messages | length }}");
  for (const ordered_json& messages :
       {ordered_json(), ordered_json("x"), ordered_json::array({1}), ordered_json::object()}) {
    EXPECT_THAT(test::message_of<ConfigError>([&] { chat.render(messages); }),
                HasSubstr("messages: expected a list of objects"));
  }
  ordered_json deep = 1;
  for (int i = 0; i < 500; ++i) deep = ordered_json::array({deep});
  EXPECT_THROW(chat.render(ordered_json::array({{{"content", deep}}})), ConfigError);
  EXPECT_THROW(chat.render(ordered_json::array({{{"n", std::uint64_t{1} << 63}}})), ConfigError);
  EXPECT_EQ(chat.render(ordered_json::array({{{"content", "\xff"}}})), "1");
}

TEST(ChatTemplate, ExtraVariablesMayReplaceTokensButNotMessages) {
  const ordered_json extra = {{"bos_token", "B"}, {"x", 1}};
  EXPECT_EQ(make("{{ bos_token }}{{ eos_token }}{{ x }}")
                .render(ordered_json::array(), {.extra = &extra}),
            "B</s>1");
  const ordered_json own = {{"messages", 1}};
  EXPECT_THROW(make("").render(ordered_json::array(), {.extra = &own}), ConfigError);
}

TEST(ChatTemplate, SeveralThreadsMayShareOne) {
  const ChatTemplate chat =
      make("{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}");
  const ordered_json messages = {{{"role", "user"}, {"content", "hi"}}};
  const std::string expected = chat.render(messages);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) wrong += chat.render(messages) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

class ChatTemplateFiles : public testing::Test {
 protected:
  void config(const ordered_json& fields) {
    test::write_file(dir_.path() / "tokenizer_config.json", fields.dump());
  }

  std::string rendered(const ordered_json* tools = nullptr) const {
    return ChatTemplate::load(dir_.path()).value().render(ordered_json::array(), {.tools = tools});
  }

  test::TempDir dir_;
};

TEST(Jinja, AnArgumentThatTakesTheChangedElementAwayIsAFailure) {
  EXPECT_THAT(failure_of("{% set l = [[1], [2]] %}{{ l[1].append(l.pop()) }}"),
              HasSubstr("the changed element is no longer in its list"));
  EXPECT_EQ(print("{% set d = {'a': [1], 2: [3]} %}{% set x = d[2].append(d.pop(2)) %}{{ d }}"),
            "{'a': [1], 2: [3, [3]]}");
}

TEST_F(ChatTemplateFiles, NoneIsNoError) {
  EXPECT_FALSE(ChatTemplate::load(dir_.path()).has_value());
  config({{"chat_template", nullptr}, {"bos_token", "<s>"}});
  EXPECT_FALSE(ChatTemplate::load(dir_.path()).has_value());
}

TEST_F(ChatTemplateFiles, StringInTheConfigWithTokensOfBothForms) {
  config({{"chat_template", "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"},
          {"bos_token", "<s>"},
          {"eos_token", {{"content", "</s>"}, {"lstrip", false}}},
          {"pad_token", nullptr}});
  EXPECT_EQ(rendered(), "<s>|</s>|");
}

TEST_F(ChatTemplateFiles, ExtraSpecialTokensWithNamesAreVariables) {
  config({{"chat_template", "{{ image_token }}|{{ video_token }}|{{ bad }}|{{ bos_token }}"},
          {"bos_token", "<s>"},
          {"extra_special_tokens",
           {{"image_token", "<image>"}, {"video_token", {{"content", "<video>"}}}, {"bad", 3}}}});
  EXPECT_EQ(rendered(), "<image>|<video>||<s>");
  config({{"chat_template", "{{ image_token }}|"}, {"extra_special_tokens", {"<image>"}}});
  EXPECT_EQ(rendered(), "|");
}

TEST_F(ChatTemplateFiles, TheMapOfSpecialTokensCountsWhereTheConfigDescribesNoAddedTokens) {
  const auto map = dir_.path() / "special_tokens_map.json";
  test::write_file(map, R"({"bos_token": {"content": "<map>"}, "pad_token": "<pad>"})");
  const ordered_json text = "{{ bos_token }}|{{ pad_token }}|{{ eos_token }}";
  config({{"chat_template", text}, {"bos_token", "<s>"}, {"eos_token", "</s>"}});
  EXPECT_EQ(rendered(), "<map>|<pad>|</s>");
  config({{"chat_template", text}, {"bos_token", "<s>"}, {"added_tokens_decoder", {{"0", "x"}}}});
  EXPECT_EQ(rendered(), "<s>||");
  test::write_file(map, "[]");
  config({{"chat_template", text}});
  EXPECT_THAT(test::message_of<ModelError>([&] { ChatTemplate::load(dir_.path()); }),
              HasSubstr("special_tokens_map.json: expected a JSON object"));
}

TEST_F(ChatTemplateFiles, NamedTemplatesGoByTools) {
  const ordered_json tools = ordered_json::array();
  config({{"chat_template",
           {{{"name", "default"}, {"template", "plain"}},
            {{"name", "tool_use"}, {"template", "tools"}}}}});
  EXPECT_EQ(rendered(), "plain");
  EXPECT_EQ(rendered(&tools), "tools");
  config({{"chat_template", {{{"name", "rag"}, {"template", "x"}}}}});
  EXPECT_THROW(rendered(), ConfigError);
}

TEST_F(ChatTemplateFiles, JinjaFilesWin) {
  config({{"chat_template", "config"}, {"bos_token", "<s>"}});
  test::write_file(dir_.path() / "chat_template.jinja", "{{ bos_token }}file\n");
  EXPECT_EQ(rendered(), "<s>file");
  const ordered_json tools = ordered_json::array();
  EXPECT_EQ(rendered(&tools), "<s>file");
  std::filesystem::create_directory(dir_.path() / "chat_templates");
  test::write_file(dir_.path() / "chat_templates" / "tool_use.jinja", "with tools");
  EXPECT_EQ(rendered(&tools), "with tools");
}

TEST_F(ChatTemplateFiles, DamagedOnesAreNamed) {
  const auto error = [&] {
    return test::message_of<ModelError>([&] { ChatTemplate::load(dir_.path()); });
  };
  config({{"chat_template", 3}});
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: chat_template: expected a string"));
  config({{"chat_template", {{{"name", "default"}}}}});
  EXPECT_THAT(error(), HasSubstr("expected a string or a list"));
  test::write_file(dir_.path() / "tokenizer_config.json", "[]");
  EXPECT_THAT(error(), HasSubstr("expected a JSON object"));
}

TEST_F(ChatTemplateFiles, DamagedTemplatesLoadAndRefuseChats) {
  const ordered_json tools = ordered_json::array();
  const auto check = [&](const ordered_json* with, const std::string& why) {
    const ChatTemplate chat = ChatTemplate::load(dir_.path()).value();
    ASSERT_EQ(chat.warnings().size(), 1U);
    EXPECT_THAT(chat.warnings()[0], HasSubstr(why));
    EXPECT_THAT(
        test::message_of<ConfigError>([&] { chat.render(ordered_json::array(), {.tools = with}); }),
        HasSubstr(why));
  };
  config({{"chat_template", "{% nope %}"}});
  check(nullptr, "tokenizer_config.json: chat_template: chat template, line 1: tag nope");
  test::write_file(dir_.path() / "chat_template.jinja", "\n{{ x | }}");
  check(nullptr, "chat_template.jinja: chat template, line 2: expected the name of a filter");
  test::write_file(dir_.path() / "chat_template.jinja", "plain");
  std::filesystem::create_directory(dir_.path() / "chat_templates");
  test::write_file(dir_.path() / "chat_templates" / "tool_use.jinja", "{{");
  check(&tools, "tool_use.jinja: chat template, line 1");
  EXPECT_EQ(rendered(), "plain");
  config({{"chat_template", nullptr}});
  test::write_file(dir_.path() / "chat_template.jinja", "{{ x | nope }}");
  std::filesystem::remove_all(dir_.path() / "chat_templates");
  check(nullptr, "chat_template.jinja: chat template, line 1: filter nope");
}

}  // namespace
}  // namespace ferry
