// Families that put marks around a call's name and arguments: DeepSeek V3, R1 and V3.1, Kimi-K2.
#include <string>
#include <utility>

#include "ferry/text/answer/call_parsers.h"
#include "ferry/text/answer/text_cutter.h"

namespace ferry {

namespace {

struct Marks {
  std::string_view begin;      ///< of all calls
  std::string_view call;       ///< of one
  std::string_view arguments;  ///< between its name and them
  std::string_view call_end;
  std::string_view end;
};

constexpr Marks kDeepseek{.begin = "<｜tool▁calls▁begin｜>",
                          .call = "<｜tool▁call▁begin｜>",
                          .arguments = "<｜tool▁sep｜>",
                          .call_end = "<｜tool▁call▁end｜>",
                          .end = "<｜tool▁calls▁end｜>"};

constexpr Marks kKimi{.begin = "<|tool_calls_section_begin|>",
                      .call = "<|tool_call_begin|>",
                      .arguments = "<|tool_call_argument_begin|>",
                      .call_end = "<|tool_call_end|>",
                      .end = "<|tool_calls_section_end|>"};

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \n\r\t");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \n\r\t") - begin + 1);
}

class SectionParser : public SteppingParser {
 public:
  explicit SectionParser(const Marks& marks) : marks_(marks) {}

 protected:
  /// The head of a call has come: begins it, or says by false that the name stands behind the mark.
  virtual bool head(const std::string& text) = 0;

 private:
  bool step() override {
    switch (place_) {
      case Place::text: {
        std::string before;
        const int mark = take_until({marks_.begin, marks_.call}, before);
        show(before);
        if (mark != kNone) place_ = mark == 0 ? Place::section : Place::head;
        return mark != kNone;
      }
      case Place::section: {
        std::string dropped;
        const int mark = take_until({marks_.call, marks_.end}, dropped);
        if (mark != kNone) place_ = mark == 0 ? Place::head : Place::text;
        return mark != kNone;
      }
      case Place::head: {
        if (take_until({marks_.arguments}, head_) == kNone) return false;
        head_ = trimmed(head_);
        place_ = head(head_) ? Place::value : Place::name;
        if (place_ == Place::value) head_.clear();
        value_ = JsonValue();
        return true;
      }
      case Place::name: {
        // "function", and behind the mark the name in a line of its own; in the newer way that is
        // a tool's name, and arguments follow at once.
        const auto brace = buffer().find('{');
        const auto line = buffer().find('\n');
        if (brace == std::string::npos && line == std::string::npos) return false;
        if (brace < line) {
          begin_call(std::exchange(head_, {}));
        } else {
          begin_call(trimmed(buffer().substr(0, line)));
          head_.clear();
        }
        place_ = Place::value;
        return true;
      }
      case Place::value: {
        if (!begun_) {
          const auto brace = buffer().find('{');
          const auto end = buffer().find(marks_.call_end);
          if (end < brace) {
            add_arguments("{}");
            place_ = Place::behind;
            return true;
          }
          if (brace == std::string::npos) return false;
          buffer().erase(0, brace);
          begun_ = true;
        }
        std::size_t used = 0;
        bool ended = false;
        while (used < buffer().size() && !ended) ended = value_.put(buffer()[used++]);
        add_arguments(std::string_view(buffer()).substr(0, used));
        buffer().erase(0, used);
        if (ended) place_ = Place::behind;
        return ended;
      }
      case Place::behind: {
        begun_ = false;
        std::string dropped;
        const int mark = take_until({marks_.call_end}, dropped);
        if (mark != kNone) place_ = Place::section;
        return mark != kNone;
      }
    }
    return false;
  }

  const Marks& marks_;

  enum class Place : std::uint8_t { text, section, head, name, value, behind };
  Place place_ = Place::text;
  std::string head_;
  JsonValue value_;
  bool begun_ = false;  // the value
};

class DeepseekParser final : public SectionParser {
 public:
  DeepseekParser() : SectionParser(kDeepseek) {}

 private:
  bool head(const std::string& text) override {
    if (text == "function") return false;
    begin_call(text);
    return true;
  }
};

/// The head is functions.name:0, which templates want back as the call's id.
class KimiParser final : public SectionParser {
 public:
  KimiParser() : SectionParser(kKimi) {}

 private:
  bool head(const std::string& text) override {
    std::string name = text.substr(0, text.rfind(':'));
    constexpr std::string_view kPrefix = "functions.";
    if (name.starts_with(kPrefix)) name.erase(0, kPrefix.size());
    begin_call(std::move(name), text);
    return true;
  }
};

}  // namespace

std::unique_ptr<AnswerParser> deepseek_calls(const ArgumentTypes& /*types*/) {
  return std::make_unique<DeepseekParser>();
}

std::unique_ptr<AnswerParser> kimi_calls(const ArgumentTypes& /*types*/) {
  return std::make_unique<KimiParser>();
}

}  // namespace ferry
