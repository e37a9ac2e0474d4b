#include "ferry/text/answer/answer_parser.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/text/answer/call_parsers.h"

namespace ferry {

namespace {

using Marks = const char* const;

constexpr Marks kHarmonyNames[] = {"gpt-oss", "gpt_oss", "harmony"};
constexpr Marks kHarmonyMarks[] = {"<|channel|>", "<|message|>"};
constexpr Marks kKimiMarks[] = {"<|tool_call_argument_begin|>"};
constexpr Marks kDeepseekNames[] = {
    "deepseekv3", "deepseek_v31", "deepseekv31", "deepseek_r1", "deepseekr1"};
constexpr Marks kDeepseekMarks[] = {"<｜tool▁calls▁begin｜>"};
constexpr Marks kGlmNames[] = {"glm", "glm46", "glm47"};
constexpr Marks kGlmMarks[] = {"<arg_key>"};
constexpr Marks kCoderNames[] = {"qwen3_xml", "qwen3-coder"};
constexpr Marks kCoderMarks[] = {"<function="};
constexpr Marks kMistralMarks[] = {"[TOOL_CALLS]"};
constexpr Marks kPythonicNames[] = {"pythonic"};
constexpr Marks kPythonicMarks[] = {"<|python_start|>"};
constexpr Marks kHermesNames[] = {"qwen", "qwen25", "qwen3"};
constexpr Marks kHermesMarks[] = {"<tool_call>"};

constexpr auto kCallStyles = std::to_array<CallStyle>({
    {"openai", kHarmonyNames, kHarmonyMarks, harmony_answer},
    {"kimi_k2", {}, kKimiMarks, kimi_calls},
    {"deepseek_v3", kDeepseekNames, kDeepseekMarks, deepseek_calls},
    {"glm45", kGlmNames, kGlmMarks, glm_calls},
    {"qwen3_coder", kCoderNames, kCoderMarks, qwen_xml_calls},
    {"mistral", {}, kMistralMarks, mistral_calls},
    {"llama4_pythonic", kPythonicNames, kPythonicMarks, pythonic_calls},
    {"hermes", kHermesNames, kHermesMarks, hermes_calls},
});

constexpr Marks kOssNames[] = {"gpt-oss", "gpt_oss", "harmony"};
constexpr Marks kR1Names[] = {"deepseek-r1"};
constexpr Marks kThinkNames[] = {
    "qwen3-thinking", "deepseek_v3", "deepseek-v3", "glm45", "kimi_k2", "step3"};

constexpr auto kThinkingStyles = std::to_array<ThinkingStyle>({
    {"openai_gptoss", kOssNames, nullptr, "<|channel|>"},
    {"kimi", {}, "◁think▷", "◁/think▷"},
    {"mistral", {}, "[THINK]", "[/THINK]"},
    {"qwen3", kThinkNames, "<think>", "</think>"},
    {"deepseek_r1", kR1Names, "<think>", "</think>", /*always=*/true},
});

template <class Style>
const Style* by_name(std::span<const Style> styles, std::string_view name, const char* what) {
  std::string all;
  for (const Style& style : styles) {
    if (name == style.name || std::any_of(style.others.begin(),
                                          style.others.end(),
                                          [&](const char* other) { return name == other; }))
      return &style;
    all += fmt::format("{}, ", style.name);
  }
  fail<ConfigError>("there is no {} \"{}\"; give {}auto or none", what, name, all);
}

}  // namespace

std::span<const CallStyle> call_styles() { return kCallStyles; }

std::span<const ThinkingStyle> thinking_styles() { return kThinkingStyles; }

const CallStyle* find_call_style(std::string_view name, std::string_view chat_template) {
  if (name == "none") return nullptr;
  if (name != "auto") return by_name(call_styles(), name, "parser of tool calls");
  for (const CallStyle& style : kCallStyles) {
    if (std::all_of(style.marks.begin(), style.marks.end(), [&](const char* mark) {
          return chat_template.find(mark) != std::string_view::npos;
        }))
      return &style;
  }
  return nullptr;
}

const ThinkingStyle* find_thinking_style(std::string_view name, std::string_view chat_template) {
  if (name == "none") return nullptr;
  if (name != "auto") return by_name(thinking_styles(), name, "parser of reasoning");
  for (const ThinkingStyle& style : kThinkingStyles)
    if (chat_template.find(style.end) != std::string_view::npos) return &style;
  return nullptr;
}

ArgumentTypes argument_types(const nlohmann::ordered_json& tools) {
  ArgumentTypes types;
  for (const auto& tool : tools) {
    const auto function = tool.find("function");
    if (function == tool.end() || !function->is_object() || !function->contains("name")) continue;
    auto& arguments = types[(*function)["name"].get<std::string>()];
    const auto parameters = function->find("parameters");
    if (parameters == function->end() || !parameters->is_object()) continue;
    const auto properties = parameters->find("properties");
    if (properties == parameters->end() || !properties->is_object()) continue;
    for (const auto& [key, schema] : properties->items()) {
      const bool typed =
          schema.is_object() && schema.contains("type") && schema["type"].is_string();
      arguments[key] = typed ? schema["type"].get<std::string>() : "";
    }
  }
  return types;
}

}  // namespace ferry
