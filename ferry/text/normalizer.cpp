#include "ferry/text/normalizer.h"

#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/core/error.h"
#include "ferry/text/utf8.h"

namespace ferry {

using nlohmann::json;

Normalizer::Normalizer(const json& description, const std::string& file) {
  if (!description.is_null()) add(description, file);
}

void Normalizer::add(const json& description, const std::string& file) {
  const std::string where = file + ": normalizer";
  if (!description.is_object()) {
    fail<ModelError>("{}: expected an object, found {}", where, describe(description));
  }
  const ConfigReader in(description, where);
  const std::string type = in.text_or("type", "");
  if (type == "Sequence") {
    if (!in.has("normalizers") || !in.value("normalizers").is_array()) {
      in.refuse("normalizers", "a list");
    }
    for (const json& part : in.value("normalizers")) add(part, file);
  } else if (type == "NFC") {
    steps_.push_back({.kind = Step::Kind::nfc});
  } else if (type == "Prepend") {
    steps_.push_back({.kind = Step::Kind::prepend, .text = in.text_or("prepend", "")});
  } else if (type == "Replace") {
    steps_.push_back({.kind = Step::Kind::replace,
                      .text = in.text_or("content", ""),
                      .replaced = {Regex::from_json(in)}});
  } else {
    in.refuse("type", "NFC, Prepend, Replace, or a Sequence of them");
  }
}

std::string Normalizer::normalize(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    if (step.kind == Step::Kind::nfc) {
      result = normalize_nfc(result);
    } else if (step.kind == Step::Kind::prepend) {
      if (!result.empty()) result.insert(0, step.text);
    } else {
      result = step.replaced[0].replace(result, step.text);
    }
  }
  return result;
}

}  // namespace ferry
