// An answer of a model: the first line has the family's name, and what follows is taken apart whole
// and in pieces, which must come to the same.
#include "ferry/text/answer/answer_parser.h"
#include "fuzz/fuzz_entry.h"

namespace {

struct Whole {
  std::string thinking;
  std::string content;
  std::string calls;

  bool operator==(const Whole&) const = default;
};

Whole parsed(const ferry::CallStyle& style, std::string_view text, std::size_t piece) {
  const ferry::ThinkingStyle& thinking = *ferry::find_thinking_style("qwen3", "");
  const auto parser = ferry::split_thinking(
      thinking, ferry::Thought::unknown, style.make({{"f", {{"a", "string"}}}}));
  Whole whole;
  const auto add = [&](const ferry::AnswerPiece& out) {
    whole.thinking += out.thinking;
    whole.content += out.content;
    for (const ferry::CallPiece& call : out.calls) whole.calls += call.name + call.arguments;
  };
  for (std::size_t at = 0; at < text.size(); at += piece) {
    ferry::AnswerPiece out;
    parser->put(text.substr(at, piece), out);
    add(out);
  }
  ferry::AnswerPiece last;
  parser->finish(last);
  add(last);
  return whole;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = ferry::test::text_of(data, size);
  const std::size_t line = std::min(input.find('\n'), input.size());
  ferry::test::run_on_input([&] {
    const ferry::CallStyle* style = ferry::find_call_style(input.substr(0, line), "");
    if (style == nullptr) return;
    const std::string_view text = input.substr(std::min(line + 1, input.size()));
    if (parsed(*style, text, text.size() + 1) != parsed(*style, text, 1)) std::abort();
  });
  return 0;
}
