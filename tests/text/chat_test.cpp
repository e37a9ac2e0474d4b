#include "ferry/text/chat.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/text/chat_template.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

ChatRenderer model_with(const std::string& source) {
  const ChatTemplate chat = ChatTemplate::parse(source, "chat_template.jinja");
  return [chat](const Json& messages, const ChatRenderOptions& options) {
    return chat.render(messages, options);
  };
}

/// Prints all that it is given.
const ChatRenderer& printer() {
  static const ChatRenderer model = model_with(
      "{% for m in messages %}[{{ m.role }}|{{ m.content }}"
      "{% for key in m if key not in ['role', 'content'] %}|{{ key }}={{ m[key] }}{% endfor %}]"
      "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
      "{% if reasoning_effort is defined %}effort {{ reasoning_effort }}{% endif %}");
  return model;
}

std::string prompt_of(const ChatRenderer& model, const char* body) {
  const Json json = Json::parse(body);
  return chat_prompt(JsonFields(json), model);
}

std::string refusal_of(const ChatRenderer& model, const char* body) {
  try {
    return "no error: " + prompt_of(model, body);
  } catch (const ConfigError& e) {
    return e.what();
  }
}

TEST(Chat, NullMembersAreAbsentAndNullContentIsEmpty) {
  EXPECT_EQ(prompt_of(printer(),
                      R"({"messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Fine", "refusal": null, "tool_calls": null},
                {"role": "assistant", "content": null},
                {"role": "user", "content": [{"type": "text", "text": "A"},
                                             {"type": "text", "text": "gain"}]}]})"),
            "[user|Hi][assistant|Fine][assistant|][user|Again]>");
}

TEST(Chat, DocumentsAreWhatTheTemplateReads) {
  const ChatRenderer reader = model_with(
      "{% for d in documents or [] %}({{ d.title }}){% endfor %}"
      "{% for m in messages %}{{ m.content }}{% endfor %}");
  EXPECT_EQ(prompt_of(reader,
                      R"({"messages": [{"role": "user", "content": "Hi"}],
                          "documents": [{"title": "A", "text": "a"}, {"title": "B"}]})"),
            "(A)(B)Hi");
  EXPECT_EQ(
      prompt_of(reader, R"({"messages": [{"role": "user", "content": "Hi"}], "documents": []})"),
      "Hi");
  EXPECT_NE(refusal_of(printer(),
                       R"({"messages": [{"role": "user", "content": "Hi"}],
                           "documents": [{"title": "A"}]})")
                .find("passes over \"documents\""),
            std::string::npos);
  for (const char* body :
       {R"({"messages": [{"role": "user", "content": "Hi"}], "documents": "A"})",
        R"({"messages": [{"role": "user", "content": "Hi"}], "documents": ["A"]})"})
    EXPECT_EQ(refusal_of(reader, body).find("no error"), std::string::npos) << body;
}

TEST(Chat, ArgumentsOfCallsAreObjectsWhereTheTemplateTakesThem) {
  constexpr const char* kBody =
      R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type":
      "function", "function": {"name": "f", "arguments": "{\"a\": 2}"}}]},
      {"role": "tool", "tool_call_id": "1", "content": "21"}]})";
  const ChatRenderer as_object = model_with(
      "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a + 1 }}"
      "{% endfor %}{{ m.content }};{% endfor %}");
  EXPECT_EQ(prompt_of(as_object, kBody), "3;21;");
  const ChatRenderer as_text = model_with(
      "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ 'x' + c.function.arguments }}"
      "{% endfor %}{{ m.content }};{% endfor %}");
  EXPECT_EQ(prompt_of(as_text, kBody), R"(x{"a": 2};21;)");
}

TEST(Chat, MessagesThatTheTemplatePassesOverAreRefused) {
  const ChatRenderer two_roles = model_with(
      "{% for m in messages %}{% if m.role in ['system', 'user'] %}{{ m.role }}: {{ m.content }};"
      "{% endif %}{% endfor %}");
  EXPECT_NE(
      refusal_of(two_roles, R"({"messages": [{"role": "critic", "content": "x"}]})").find("critic"),
      std::string::npos);
  EXPECT_NE(refusal_of(two_roles, R"({"messages": [{"content": "x"}]})").find("role"),
            std::string::npos);
  EXPECT_NE(refusal_of(two_roles, R"({"messages": [{"role": null, "content": "x"}]})").find("role"),
            std::string::npos);
  EXPECT_EQ(prompt_of(two_roles, R"({"messages": [{"role": "developer", "content": "x"},
                                                  {"role": "user", "content": "y"}]})"),
            "system: x;user: y;");
  EXPECT_EQ(prompt_of(printer(), R"({"messages": [{"role": "developer", "content": "x"}]})"),
            "[developer|x]>");
}

TEST(Chat, TheLastMessageCanBeContinued) {
  EXPECT_EQ(prompt_of(printer(), R"({"messages": [{"role": "user", "content": "a"}],
                                     "add_generation_prompt": false})"),
            "[user|a]");
  EXPECT_EQ(prompt_of(printer(), R"({"messages": [{"role": "user", "content": "a"},
                {"role": "assistant", "content": "Sure, "}], "continue_final_message": true})"),
            "[user|a][assistant|Sure,");
  EXPECT_NE(refusal_of(printer(), R"({"messages": [{"role": "user", "content": "a"}],
                "continue_final_message": true, "add_generation_prompt": true})")
                .find("exclude"),
            std::string::npos);
}

TEST(Chat, EffortIsTheTemplatesAffair) {
  EXPECT_EQ(prompt_of(printer(), R"({"messages": [{"role": "user", "content": "a"}],
                                     "reasoning_effort": "high"})"),
            "[user|a]>effort high");
}

TEST(Chat, WhatIsNoConversationIsRefused) {
  for (const char* body :
       {R"({})",
        R"({"messages": []})",
        R"({"messages": "hi"})",
        R"({"messages": ["hi"]})",
        R"({"messages": [{"role": "user", "content": 5}]})",
        R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
        R"({"messages": [{"role": "user", "content": "a", "tool_calls": 5}]})",
        R"({"messages": [{"role": "user", "content": "a", "tool_calls": [5]}]})",
        R"({"messages": [{"role": "user", "content": "a"}],
                               "chat_template_kwargs": []})"})
    EXPECT_FALSE(refusal_of(printer(), body).starts_with("no error")) << body;
  EXPECT_NE(refusal_of({}, R"({"messages": [{"role": "user", "content": "a"}]})")
                .find("no chat template"),
            std::string::npos);
}

}  // namespace
}  // namespace ferry
