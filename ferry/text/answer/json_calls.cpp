// Families that write a call as a JSON object: Hermes, Mistral, and what a grammar has made.
#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "ferry/text/answer/call_parsers.h"
#include "ferry/text/answer/text_cutter.h"

namespace ferry {

namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

/// Objects off the buffer's front, one call each.
class ObjectParser : public SteppingParser {
 protected:
  enum class Took : std::uint8_t { more, done, failed };

  /// Reads on in the object that begins or goes on at the front. `raw_` is all of it so far, until
  /// its name is known.
  Took take_object() {
    std::size_t used = 0;
    Took took = Took::more;
    while (used < buffer().size() && took == Took::more) {
      const char c = buffer()[used++];
      const bool named = object_.named();
      if (!named) raw_ += c;
      std::string arguments;
      const CallObject::State state = object_.put(c, name_, arguments);
      if (!named && object_.named()) begin_call(name_);
      add_arguments(arguments);
      if (state == CallObject::State::done) took = Took::done;
      if (state == CallObject::State::failed) took = Took::failed;
    }
    buffer().erase(0, used);
    return took;
  }

  void new_object(std::string raw) {
    object_ = CallObject();
    raw_ = std::move(raw);
  }

  /// Text that looked like a call is content where no call has come of it.
  void give_up() {
    if (!object_.named()) show(raw_);
    raw_.clear();
  }

  const CallObject& object() const { return object_; }

  const std::string& raw() const { return raw_; }

 private:
  CallObject object_;
  std::string name_;
  std::string raw_;
};

class HermesParser final : public ObjectParser {
 private:
  bool step() override {
    switch (place_) {
      case Place::text: {
        std::string before;
        const int mark = take_until({kBegin}, before);
        show(before);
        if (mark == kNone) return false;
        new_object(std::string(kBegin));
        place_ = Place::call;
        return true;
      }
      case Place::call: {
        const Took took = take_object();
        if (took == Took::more) return false;
        const bool shown = took == Took::failed && !object().named();
        if (shown) give_up();
        place_ = shown ? Place::text : Place::behind;
        return true;
      }
      case Place::behind: {
        std::string dropped;
        if (take_until({kEnd}, dropped) == kNone) return false;
        place_ = Place::text;
        return true;
      }
    }
    return false;
  }

  void end() override {
    if (place_ == Place::call) give_up();
  }

  static constexpr std::string_view kBegin = "<tool_call>";
  static constexpr std::string_view kEnd = "</tool_call>";

  enum class Place : std::uint8_t { text, call, behind };
  Place place_ = Place::text;
};

class MistralParser final : public ObjectParser {
 private:
  bool step() override {
    switch (place_) {
      case Place::text: {
        std::string before;
        const int mark = take_until({kBegin}, before);
        show(before);
        if (mark == kNone) return false;
        place_ = Place::which;
        return true;
      }
      case Place::which:
        while (!buffer().empty() && is_space(buffer().front())) buffer().erase(0, 1);
        if (buffer().empty()) return false;
        place_ = buffer().front() == '[' ? Place::list : Place::name;
        if (place_ == Place::list) buffer().erase(0, 1);
        new_object(fmt::format("{}[", kBegin));
        return true;
      case Place::list: {
        while (!buffer().empty() && object().empty() &&
               std::string_view(" \n\r\t,]").find(buffer().front()) != std::string_view::npos) {
          const bool end = buffer().front() == ']';
          buffer().erase(0, 1);
          if (!end) continue;
          place_ = Place::text;
          return true;
        }
        const Took took = take_object();
        if (took == Took::more) return false;
        if (took == Took::failed) {
          give_up();
          place_ = Place::text;
          return true;
        }
        new_object("");
        return true;
      }
      case Place::name: {
        // [CALL_ID] is an id of the model's own, which nobody has to know.
        const int mark = take_until({"[ARGS]", "[CALL_ID]", "{"}, name_);
        if (mark == kNone) return false;
        if (mark == 1) {
          place_ = Place::id;
          return true;
        }
        if (mark == 2) buffer().insert(buffer().begin(), '{');
        return arguments_begin();
      }
      case Place::id: {
        std::string id;
        if (take_until({"[ARGS]"}, id) == kNone) return false;
        return arguments_begin();
      }
      case Place::arguments: {
        std::size_t used = 0;
        bool ended = false;
        while (used < buffer().size() && !ended) ended = value_.put(buffer()[used++]);
        add_arguments(std::string_view(buffer()).substr(0, used));
        buffer().erase(0, used);
        if (ended) place_ = Place::text;
        return ended;
      }
    }
    return false;
  }

  bool arguments_begin() {
    while (!name_.empty() && is_space(name_.back())) name_.pop_back();
    if (name_.empty()) {
      show(kBegin);
      place_ = Place::text;
      return true;
    }
    begin_call(std::exchange(name_, {}));
    value_ = JsonValue();
    place_ = Place::arguments;
    return true;
  }

  void end() override {
    if (place_ == Place::list) give_up();
    if (place_ == Place::name) show(fmt::format("{}{}", kBegin, name_));
  }

  static constexpr std::string_view kBegin = "[TOOL_CALLS]";

  enum class Place : std::uint8_t { text, which, list, name, id, arguments };
  Place place_ = Place::text;
  std::string name_;
  JsonValue value_;
};

/// No content but the list.
class ListParser final : public ObjectParser {
 private:
  bool step() override {
    if (failed_) {
      show(std::exchange(buffer(), {}));
      return false;
    }
    while (!buffer().empty() && object().empty() &&
           std::string_view("[], \n\r\t").find(buffer().front()) != std::string_view::npos)
      buffer().erase(0, 1);
    const Took took = take_object();
    if (took == Took::failed) give_up();
    failed_ = took == Took::failed;
    if (took == Took::done) new_object("");
    return took != Took::more;
  }

  void end() override {
    if (!failed_) give_up();
  }

  bool failed_ = false;
};

class NamedParser final : public SteppingParser {
 public:
  explicit NamedParser(std::string name) : name_(std::move(name)) {}

 private:
  bool step() override {
    if (calls() == 0) {
      const auto begin = buffer().find_first_not_of(" \n\r\t");
      buffer().erase(0, std::min(begin, buffer().size()));
      if (buffer().empty()) return false;
      begin_call(name_);
    }
    add_arguments(std::exchange(buffer(), {}));
    return false;
  }

  std::string name_;
};

}  // namespace

std::unique_ptr<AnswerParser> hermes_calls(const ArgumentTypes& /*types*/) {
  return std::make_unique<HermesParser>();
}

std::unique_ptr<AnswerParser> mistral_calls(const ArgumentTypes& /*types*/) {
  return std::make_unique<MistralParser>();
}

std::unique_ptr<AnswerParser> listed_calls() { return std::make_unique<ListParser>(); }

std::unique_ptr<AnswerParser> named_call(std::string name) {
  return std::make_unique<NamedParser>(std::move(name));
}

}  // namespace ferry
