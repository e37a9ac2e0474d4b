#include "ferry/text/answer/text_cutter.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::string_view kSpace = " \n\r\t";

bool is_space(char c) { return kSpace.find(c) != std::string_view::npos; }

}  // namespace

void SteppingParser::put(std::string_view text, AnswerPiece& out) {
  buffer_ += text;
  out_ = &out;
  while (step()) {
  }
}

void SteppingParser::finish(AnswerPiece& out) {
  over_ = true;
  out_ = &out;
  while (step()) {
  }
  end();
  if (calls_ == 0) out.content += std::exchange(held_, {});
}

int SteppingParser::take_until(std::initializer_list<std::string_view> marks, std::string& before) {
  std::size_t first = std::string::npos;
  int found = kNone;
  std::size_t length = 0;
  int i = 0;
  for (const std::string_view mark : marks) {
    const std::size_t at = buffer_.find(mark);
    if (at < first) {
      first = at;
      found = i;
      length = mark.size();
    }
    ++i;
  }
  std::size_t keep = 0;
  if (found == kNone && !over_) {
    for (const std::string_view mark : marks) {
      for (std::size_t n = std::min(mark.size() - 1, buffer_.size()); n > keep; --n)
        if (std::string_view(buffer_).ends_with(mark.substr(0, n))) keep = n;
    }
  }
  const std::size_t end = found == kNone ? buffer_.size() - keep : first;
  before.append(buffer_, 0, end);
  buffer_.erase(0, end + length);
  return found;
}

void SteppingParser::show(std::string_view text) {
  if (behind_call_) text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
  if (text.empty()) return;
  std::size_t end = text.size();
  while (end > 0 && is_space(text[end - 1])) --end;
  if (end > 0) {
    behind_call_ = false;
    out_->content += std::exchange(held_, {});
    out_->content += text.substr(0, end);
  }
  held_ += text.substr(end);
}

void SteppingParser::begin_call(std::string name, std::string id) {
  held_.clear();
  behind_call_ = true;
  out_->calls.push_back(
      {.index = calls_++, .begins = true, .id = std::move(id), .name = std::move(name)});
}

void SteppingParser::add_arguments(std::string_view json) {
  if (json.empty()) return;
  std::vector<CallPiece>& calls = out_->calls;
  if (calls.empty() || calls.back().index != calls_ - 1) calls.push_back({.index = calls_ - 1});
  calls.back().arguments += json;
}

bool JsonValue::put(char c) {
  if (string_.open()) return string_.ends_with(c) && depth_ == 0;
  if (c == '"') string_.begin();
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') return --depth_ == 0;
  return false;
}

CallObject::State CallObject::put(char c, std::string& name, std::string& arguments) {
  if (place_ == Place::in_key) {
    key_ += c;
    if (string_.ends_with(c)) place_ = Place::colon;
    return State::going;
  }
  if (place_ == Place::in_value) return in_value(c, name, arguments);
  if (is_space(c)) return State::going;
  switch (place_) {
    case Place::before:
      place_ = Place::key;
      return c == '{' ? State::going : State::failed;
    case Place::key:
      if (c == '"') {
        key_ = c;
        string_.begin();
        place_ = Place::in_key;
        return State::going;
      }
      return State::failed;
    case Place::colon:
      place_ = Place::value;
      return c == ':' ? State::going : State::failed;
    case Place::value:
      place_ = Place::in_value;
      depth_ = 0;
      value_.clear();
      streams_ = named_ && c != '"' && (key_ == "\"arguments\"" || key_ == "\"parameters\"");
      return in_value(c, name, arguments);
    case Place::next:
      if (c == ',') {
        place_ = Place::key;
        return State::going;
      }
      if (c != '}') return State::failed;
      return named_ ? State::done : State::failed;
    default:
      return State::failed;
  }
}

CallObject::State CallObject::in_value(char c, std::string& name, std::string& arguments) {
  const bool ends_before =
      !string_.open() && depth_ == 0 && (c == ',' || c == '}') && !value_.empty();
  if (ends_before) {  // a number, true, false or null
    const State state = end_value(name, arguments);
    return state == State::going ? put(c, name, arguments) : state;
  }
  if (streams_) arguments += c;
  value_ += c;
  if (string_.open()) {
    const bool whole = string_.ends_with(c) && depth_ == 0;
    return whole ? end_value(name, arguments) : State::going;
  }
  if (c == '"') string_.begin();
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') {
    if (--depth_ == 0) return end_value(name, arguments);
    if (depth_ < 0) return State::failed;
  }
  return State::going;
}

CallObject::State CallObject::end_value(std::string& name, std::string& arguments) {
  place_ = Place::next;
  if (key_ == "\"name\"") {
    const Json text = Json::parse(value_, nullptr, /*allow_exceptions=*/false);
    if (named_ || !text.is_string() || text.get_ref<const std::string&>().empty())
      return State::failed;
    name = text.get<std::string>();
    named_ = true;
    arguments += std::exchange(waiting_, {});
  } else if ((key_ == "\"arguments\"" || key_ == "\"parameters\"") && !streams_) {
    std::string json = value_;
    // Some models write them as a string that has the JSON.
    const Json text = Json::parse(value_, nullptr, /*allow_exceptions=*/false);
    if (text.is_string()) json = text.get<std::string>();
    (named_ ? arguments : waiting_) += json;
  }
  return State::going;
}

}  // namespace ferry
