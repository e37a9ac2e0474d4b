// Families that write arguments one by one between tags, as plain text: Qwen3-Coder and GLM-4.5.
#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/text/answer/call_parsers.h"
#include "ferry/text/answer/text_cutter.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

std::string dumped(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(" \n\r\t");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \n\r\t") - begin + 1);
}

/// A value as JSON: text where the tool says so, else what it reads as, else text.
std::string value_as_json(const std::string& text, const std::string& type) {
  if (type != "string") {
    const std::string bare = trimmed(text);
    const Json json = Json::parse(bare, nullptr, /*allow_exceptions=*/false);
    if (!json.is_discarded()) return dumped(json);
    if (bare == "True" || bare == "False") return bare == "True" ? "true" : "false";
    if (bare == "None") return "null";
  }
  return dumped(Json(text));
}

class TaggedParser : public SteppingParser {
 protected:
  explicit TaggedParser(const ArgumentTypes& types) : types_(types) {}

  void begin(const std::string& name) {
    name_ = name;
    begin_call(name);
    add_arguments("{");
    first_ = true;
  }

  void argument(const std::string& key, const std::string& value) {
    std::string type;
    if (const auto tool = types_.find(name_); tool != types_.end())
      if (const auto known = tool->second.find(key); known != tool->second.end())
        type = known->second;
    add_arguments(fmt::format("{}{}: {}",
                              std::exchange(first_, false) ? "" : ", ",
                              dumped(Json(key)),
                              value_as_json(value, type)));
  }

  void close() { add_arguments("}"); }

 private:
  ArgumentTypes types_;
  std::string name_;
  bool first_ = true;
};

class QwenXmlParser final : public TaggedParser {
 public:
  explicit QwenXmlParser(const ArgumentTypes& types) : TaggedParser(types) {}

 private:
  bool step() override {
    switch (place_) {
      case Place::text: {
        std::string before;
        const int mark = take_until({kCall, kFunction}, before);
        show(before);
        if (mark != kNone) place_ = mark == 0 ? Place::call : Place::name;
        return mark != kNone;
      }
      case Place::call: {  // the tag around it
        const int mark = take_until({kFunction, kCallEnd}, passed_);
        if (mark == kNone) return false;
        place_ = mark == 0 ? Place::name : Place::text;
        if (mark == 1) show(fmt::format("{}{}{}", kCall, passed_, kCallEnd));
        passed_.clear();
        return true;
      }
      case Place::name: {
        if (take_until({">"}, text_) == kNone) return false;
        begin(trimmed(std::exchange(text_, {})));
        place_ = Place::function;
        return true;
      }
      case Place::function: {
        std::string dropped;
        const int mark = take_until({"<parameter=", "</function>", kCallEnd}, dropped);
        if (mark == kNone) return false;
        if (mark > 0) close();
        place_ = mark == 0 ? Place::key : mark == 1 ? Place::behind : Place::text;
        return true;
      }
      case Place::key: {
        if (take_until({">"}, key_) == kNone) return false;
        place_ = Place::value;
        return true;
      }
      case Place::value: {
        if (take_until({"</parameter>"}, text_) == kNone) return false;
        std::string value = std::exchange(text_, {});
        if (value.starts_with('\n')) value.erase(0, 1);
        if (value.ends_with('\n')) value.pop_back();
        argument(trimmed(std::exchange(key_, {})), value);
        place_ = Place::function;
        return true;
      }
      case Place::behind: {
        // Text again, but for the end of the tag around, where there is one.
        const auto begin = buffer().find_first_not_of(" \n\r\t");
        if (begin == std::string::npos) return false;
        const std::string_view rest = std::string_view(buffer()).substr(begin);
        if (rest.size() < kCallEnd.size() && kCallEnd.starts_with(rest) && !over()) return false;
        if (rest.starts_with(kCallEnd)) buffer().erase(0, begin + kCallEnd.size());
        place_ = Place::text;
        return true;
      }
    }
    return false;
  }

  void end() override {
    if (place_ == Place::call) show(fmt::format("{}{}", kCall, passed_));
  }

  static constexpr std::string_view kCall = "<tool_call>";
  static constexpr std::string_view kCallEnd = "</tool_call>";
  static constexpr std::string_view kFunction = "<function=";

  enum class Place : std::uint8_t { text, call, name, function, key, value, behind };
  Place place_ = Place::text;
  std::string passed_;
  std::string text_;
  std::string key_;
};

class GlmParser final : public TaggedParser {
 public:
  explicit GlmParser(const ArgumentTypes& types) : TaggedParser(types) {}

 private:
  bool step() override {
    switch (place_) {
      case Place::text: {
        std::string before;
        const int mark = take_until({"<tool_call>"}, before);
        show(before);
        if (mark != kNone) place_ = Place::name;
        return mark != kNone;
      }
      case Place::name: {
        const int mark = take_until({"<arg_key>", kEnd}, text_);
        if (mark == kNone) return false;
        begin(trimmed(std::exchange(text_, {})));
        return went(mark);
      }
      case Place::between: {
        std::string dropped;
        const int mark = take_until({"<arg_key>", kEnd}, dropped);
        return mark != kNone && went(mark);
      }
      case Place::key: {
        if (take_until({"</arg_key>"}, key_) == kNone) return false;
        place_ = Place::sign;
        return true;
      }
      case Place::sign: {
        std::string dropped;
        const int mark = take_until({"<arg_value>", kEnd}, dropped);
        if (mark == kNone) return false;
        if (mark == 1) return went(1);
        place_ = Place::value;
        return true;
      }
      case Place::value: {
        if (take_until({"</arg_value>"}, text_) == kNone) return false;
        argument(trimmed(std::exchange(key_, {})), std::exchange(text_, {}));
        place_ = Place::between;
        return true;
      }
    }
    return false;
  }

  bool went(int mark) {
    if (mark == 1) close();
    place_ = mark == 0 ? Place::key : Place::text;
    return true;
  }

  void end() override {
    if (place_ == Place::name) show(fmt::format("<tool_call>{}", text_));
  }

  static constexpr std::string_view kEnd = "</tool_call>";

  enum class Place : std::uint8_t { text, name, between, key, sign, value };
  Place place_ = Place::text;
  std::string text_;
  std::string key_;
};

}  // namespace

std::unique_ptr<AnswerParser> qwen_xml_calls(const ArgumentTypes& types) {
  return std::make_unique<QwenXmlParser>(types);
}

std::unique_ptr<AnswerParser> glm_calls(const ArgumentTypes& types) {
  return std::make_unique<GlmParser>(types);
}

}  // namespace ferry
