#include <algorithm>
#include <utility>

#include "ferry/text/answer/text_cutter.h"

namespace ferry {

namespace {

constexpr std::string_view kSpace = " \n\r\t";

/// White space around a thought is no part of it, nor of the answer behind it.
class ThinkingParser final : public SteppingParser {
 public:
  ThinkingParser(const ThinkingStyle& style, Thought at_end, std::unique_ptr<AnswerParser> rest)
      : begin_(style.begin), end_(style.end), rest_(std::move(rest)) {
    if (at_end == Thought::closed) place_ = Place::behind;
    inside_anyway_ = at_end == Thought::open || (at_end == Thought::unknown && style.always);
  }

 private:
  bool step() override {
    switch (place_) {
      case Place::start:
        return start();
      case Place::inside: {
        std::string text;
        const int mark = take_until({end_}, text);
        think(text);
        if (mark != kNone) place_ = Place::behind;
        return mark != kNone;
      }
      case Place::behind: {
        const auto begin = buffer().find_first_not_of(kSpace);
        buffer().erase(0, std::min(begin, buffer().size()));
        if (buffer().empty()) return false;
        place_ = Place::answer;
        return true;
      }
      case Place::answer: {
        const std::string text = std::exchange(buffer(), {});
        if (rest_)
          rest_->put(text, out());
        else
          out().content += text;
        return false;
      }
    }
    return false;
  }

  bool start() {
    const auto begin = std::min(buffer().find_first_not_of(kSpace), buffer().size());
    const std::string_view text = std::string_view(buffer()).substr(begin);
    const bool marked = text.starts_with(begin_);
    if (!marked && begin_.starts_with(text) && !over()) return false;
    if (!marked && !inside_anyway_) {
      place_ = Place::answer;
      return true;
    }
    if (marked) buffer().erase(0, begin + begin_.size());
    place_ = Place::inside;
    return true;
  }

  void think(std::string_view text) {
    if (!thinks_) text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (text.empty()) return;
    thinks_ = true;
    const auto last = text.find_last_not_of(kSpace);
    const std::size_t end = last == std::string_view::npos ? 0 : last + 1;
    if (end > 0) {
      out().thinking += std::exchange(held_, {});
      out().thinking += text.substr(0, end);
    }
    held_ += text.substr(end);
  }

  void end() override {
    if (rest_) rest_->finish(out());
  }

  std::string_view begin_;
  std::string_view end_;
  std::unique_ptr<AnswerParser> rest_;
  bool inside_anyway_ = false;

  enum class Place : std::uint8_t { start, inside, behind, answer };
  Place place_ = Place::start;
  bool thinks_ = false;
  std::string held_;  // white space behind the thought so far
};

}  // namespace

Thought thought_at_end(const ThinkingStyle& style, std::string_view prompt) {
  if (style.begin == nullptr) return Thought::unknown;
  const auto last = prompt.find_last_not_of(kSpace);
  const std::string_view text = prompt.substr(0, last == std::string_view::npos ? 0 : last + 1);
  if (text.ends_with(style.begin)) return Thought::open;
  return text.ends_with(style.end) ? Thought::closed : Thought::unknown;
}

std::unique_ptr<AnswerParser> split_thinking(const ThinkingStyle& style,
                                             Thought at_end,
                                             std::unique_ptr<AnswerParser> rest) {
  return std::make_unique<ThinkingParser>(style, at_end, std::move(rest));
}

}  // namespace ferry
