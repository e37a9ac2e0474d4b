#include "ferry/server/answer_parts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace ferry {

using Json = nlohmann::ordered_json;

std::vector<AnswerParts::Step> AnswerParts::put(const std::string& text, bool last) {
  std::vector<Step> steps;
  const Json delta = answer_.put(text, last);
  const Json calls = delta.value("tool_calls", Json::array());
  // What goes on in a call stood before the text that ends it.
  std::size_t done = 0;
  for (; done < calls.size() && !calls[done].contains("id"); ++done) call(calls[done], steps);
  if (const auto found = delta.find("reasoning_content"); found != delta.end())
    grow(AnswerPart::Kind::thinking, *found, steps);
  if (const auto found = delta.find("content"); found != delta.end())
    grow(AnswerPart::Kind::text, *found, steps);
  for (; done < calls.size(); ++done) call(calls[done], steps);
  if (last) end(steps);
  return steps;
}

bool AnswerParts::has(AnswerPart::Kind kind) const {
  return std::any_of(
      parts_.begin(), parts_.end(), [&](const AnswerPart& part) { return part.kind == kind; });
}

void AnswerParts::begin(AnswerPart part, std::vector<Step>& steps) {
  end(steps);
  parts_.push_back(std::move(part));
  open_ = true;
  steps.push_back({.what = Step::What::begins, .part = parts_.size() - 1});
}

void AnswerParts::end(std::vector<Step>& steps) {
  if (std::exchange(open_, false))
    steps.push_back({.what = Step::What::ends, .part = parts_.size() - 1});
}

void AnswerParts::grow(AnswerPart::Kind kind, const std::string& text, std::vector<Step>& steps) {
  if (!open_ || parts_.back().kind != kind) begin({.kind = kind}, steps);
  parts_.back().text += text;
  steps.push_back({.what = Step::What::grows, .part = parts_.size() - 1, .text = text});
}

void AnswerParts::call(const Json& delta, std::vector<Step>& steps) {
  const Json& function = delta.at("function");
  if (delta.contains("id"))
    begin({.kind = AnswerPart::Kind::call, .call_id = delta.at("id"), .name = function.at("name")},
          steps);
  const std::string arguments = function.at("arguments");
  if (!arguments.empty()) grow(AnswerPart::Kind::call, arguments, steps);
}

}  // namespace ferry
