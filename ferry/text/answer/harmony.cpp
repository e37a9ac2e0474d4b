// gpt-oss: messages with a head (channel, and recipient of a call) and a body, between special
// tokens.
#include <utility>

#include "ferry/text/answer/call_parsers.h"
#include "ferry/text/answer/text_cutter.h"

namespace ferry {

namespace {

class HarmonyParser final : public SteppingParser {
 private:
  bool step() override {
    switch (place_) {
      case Place::between:
        return begin_message();
      case Place::head: {
        if (take_until({"<|message|>"}, head_) == kNone) return false;
        read_head(std::exchange(head_, {}));
        return true;
      }
      case Place::thinking:
      case Place::content:
      case Place::arguments: {
        std::string text;
        const int mark = take_until({"<|end|>", "<|call|>", "<|return|>", kStart, kChannel}, text);
        if (place_ == Place::thinking) out().thinking += text;
        if (place_ == Place::content) show(text);
        if (place_ == Place::arguments) add_arguments(text);
        if (mark == kNone) return false;
        if (mark == 4) buffer().insert(0, kChannel);
        place_ = mark < 3 ? Place::between : Place::head;
        return true;
      }
    }
    return false;
  }

  /// A text without any head is content.
  bool begin_message() {
    if (buffer().empty()) return false;
    for (const std::string_view mark : {kStart, kChannel}) {
      if (buffer().starts_with(mark)) {
        place_ = Place::head;
        return true;
      }
      if (mark.starts_with(buffer()) && !over()) return false;
    }
    place_ = Place::content;
    return true;
  }

  void read_head(const std::string& head) {
    constexpr std::string_view kTo = "to=";
    if (const auto to = head.find(kTo); to != std::string::npos) {
      const auto begin = to + kTo.size();
      std::string name = head.substr(begin, head.find_first_of(" <\n", begin) - begin);
      constexpr std::string_view kFunctions = "functions.";
      if (name.starts_with(kFunctions)) name.erase(0, kFunctions.size());
      begin_call(std::move(name));
      place_ = Place::arguments;
      return;
    }
    const auto channel = head.find(kChannel);
    const bool thinks =
        channel != std::string::npos && head.compare(channel + kChannel.size(), 8, "analysis") == 0;
    place_ = thinks ? Place::thinking : Place::content;
  }

  static constexpr std::string_view kStart = "<|start|>";
  static constexpr std::string_view kChannel = "<|channel|>";

  enum class Place : std::uint8_t { between, head, thinking, content, arguments };
  Place place_ = Place::between;
  std::string head_;
};

}  // namespace

std::unique_ptr<AnswerParser> harmony_answer(const ArgumentTypes& /*types*/) {
  return std::make_unique<HarmonyParser>();
}

}  // namespace ferry
