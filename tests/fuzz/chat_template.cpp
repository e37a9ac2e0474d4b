// A chat template and, after a zero byte, the messages as JSON. Runs with little to spend, so that
// what would take long takes its limit instead.
#include <nlohmann/json.hpp>

#include "ferry/text/jinja/evaluator.h"
#include "ferry/text/jinja/parser.h"
#include "fuzz/fuzz_entry.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using nlohmann::ordered_json;
  const auto halves = ferry::test::halves_of(ferry::test::text_of(data, size));
  constexpr std::string_view kChat =
      R"([{"role": "user", "content": "Hi \u00e9 {{"}, {"role": "assistant", "content": null,
           "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": [1, 2.5]}}}]}])";
  ordered_json chat = ordered_json::parse(halves.second, nullptr, false);
  if (chat.is_discarded()) chat = ordered_json::parse(kChat);
  ferry::test::run_on_input([&] {
    const ferry::JinjaBody body = ferry::parse_jinja(halves.first, "template").body;
    std::vector<ferry::JinjaNamed> variables;
    try {
      variables.emplace_back("messages", ferry::to_jinja(chat));
    } catch (const ferry::JinjaFailure&) {
      return;  // not the template's fault
    }
    variables.emplace_back("tools", ferry::JinjaValue());
    variables.emplace_back("bos_token", ferry::JinjaValue::text("<s>"));
    variables.emplace_back("add_generation_prompt", ferry::JinjaValue(true));
    ferry::run_jinja(
        body, "template", std::move(variables), {.steps = 20000, .max_text = 1U << 16}, 1754000000);
  });
  return 0;
}
