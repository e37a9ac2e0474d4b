#include "ferry/text/pre_tokenizer.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

// GPT-2's own split, which ByteLevel applies unless use_regex is false.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Matches nothing: a step that only adds the space.
constexpr std::string_view kNoPattern = "(?!)";

}  // namespace

PreTokenizer::PreTokenizer(const json& description, const std::string& file) {
  if (!description.is_null()) add(description, file);
}

PreTokenizer::PreTokenizer(Regex pattern) : byte_level_(true) {
  steps_.push_back({.pattern = std::move(pattern)});
}

void PreTokenizer::add(const json& description, const std::string& file) {
  const std::string where = file + ": pre_tokenizer";
  if (!description.is_object()) {
    fail<ModelError>("{}: expected an object, found {}", where, describe(description));
  }
  if (byte_level_) {
    fail<ModelError>("{}: expected ByteLevel to be the last step, found another behind it", where);
  }
  const ConfigReader in(description, where);
  const std::string type = in.text_or("type", "");
  if (type == "Sequence") {
    if (!in.has("pretokenizers") || !in.value("pretokenizers").is_array()) {
      in.refuse("pretokenizers", "a list");
    }
    for (const json& part : in.value("pretokenizers")) add(part, file);
  } else if (type == "Split") {
    add_split(description, where);
  } else if (type == "Digits") {
    const bool single = in.flag_or("individual_digits", false);
    steps_.push_back({Regex("\\p{N}", where), single ? Behavior::isolated : Behavior::contiguous});
  } else if (type == "ByteLevel") {
    add_byte_level(description, where);
  } else if (type == "Metaspace") {
    add_metaspace(description, where);
  } else {
    in.refuse("type", "Sequence, Split, Digits, Metaspace or ByteLevel");
  }
}

void PreTokenizer::add_split(const json& description, const std::string& file) {
  static const std::map<std::string, Behavior> behaviors = {
      {"Isolated", Behavior::isolated},
      {"Removed", Behavior::removed},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous}};
  const ConfigReader in(description, file);
  const auto behavior = behaviors.find(in.text_or("behavior", ""));
  if (behavior == behaviors.end()) {
    in.refuse("behavior", "Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
  }
  steps_.push_back({Regex::from_json(in), behavior->second, in.flag_or("invert", false)});
}

void PreTokenizer::add_byte_level(const json& description, const std::string& file) {
  const ConfigReader in(description, file);
  const bool cut = in.flag_or("use_regex", true);
  const bool prefix_space = in.flag_or("add_prefix_space", true);
  if (cut || prefix_space) {
    steps_.push_back({.pattern = Regex(cut ? kByteLevelPattern : kNoPattern, file),
                      .prefix = prefix_space ? Prefix::all : Prefix::none});
  }
  byte_level_ = true;
}

void PreTokenizer::add_metaspace(const json& description, const std::string& file) {
  static const std::map<std::string, Prefix> schemes = {
      {"always", Prefix::all}, {"first", Prefix::first}, {"never", Prefix::none}};
  const ConfigReader in(description, file);
  const std::string replacement = in.text_or("replacement", "\u2581");
  if (replacement.empty()) in.refuse("replacement", "a character");
  // Older files say add_prefix_space instead.
  const bool add_space = in.flag_or("add_prefix_space", true);
  const auto scheme = schemes.find(in.text_or("prepend_scheme", add_space ? "always" : "never"));
  if (scheme == schemes.end()) in.refuse("prepend_scheme", "always, first or never");
  const bool cut = in.flag_or("split", true);
  steps_.push_back({.pattern = cut ? Regex::literal(replacement, file) : Regex(kNoPattern, file),
                    .behavior = cut ? Behavior::merged_with_next : Behavior::isolated,
                    .prefix = scheme->second,
                    .space = replacement});
}

void PreTokenizer::split(std::string_view text,
                         bool at_start,
                         const std::function<void(std::string_view)>& word) const {
  if (!text.empty()) run(0, text, at_start, word);
}

void PreTokenizer::run(std::size_t step,
                       std::string_view text,
                       bool at_start,
                       const std::function<void(std::string_view)>& word) const {
  if (step == steps_.size()) {
    word(text);
    return;
  }
  const Step& now = steps_[step];
  std::string changed;
  if (now.space != " ") {
    for (const char c : text) {
      if (c == ' ')
        changed += now.space;
      else
        changed += c;
    }
    text = changed;
  }
  const bool prefixed = now.prefix == Prefix::all || (now.prefix == Prefix::first && at_start);
  if (prefixed && !text.starts_with(now.space)) {
    changed = now.space + std::string(text);
    text = changed;
  }
  for (const Piece& piece : cut(now, text)) {
    run(step + 1,
        text.substr(piece.begin, piece.end - piece.begin),
        at_start && piece.begin == 0,
        word);
  }
}

std::vector<PreTokenizer::Piece> PreTokenizer::cut(const Step& step, std::string_view text) {
  std::vector<Piece> pieces;
  std::size_t last = 0;
  step.pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    if (begin > last) pieces.push_back({last, begin, step.invert});
    pieces.push_back({begin, end, !step.invert});
    last = end;
  });
  if (last < text.size()) pieces.push_back({last, text.size(), step.invert});
  return merge(std::move(pieces), step.behavior);
}

std::vector<PreTokenizer::Piece> PreTokenizer::merge(std::vector<Piece> pieces, Behavior behavior) {
  if (behavior == Behavior::isolated) return pieces;
  if (behavior == Behavior::removed) {
    std::erase_if(pieces, [](const Piece& p) { return p.match; });
    return pieces;
  }
  const bool backwards = behavior == Behavior::merged_with_next;
  if (backwards) std::reverse(pieces.begin(), pieces.end());
  std::vector<Piece> merged;
  bool previous = false;
  for (const Piece& piece : pieces) {
    const bool join =
        behavior == Behavior::contiguous ? piece.match == previous : piece.match && !previous;
    if (join && !merged.empty()) {
      (backwards ? merged.back().begin : merged.back().end) = backwards ? piece.begin : piece.end;
    } else {
      merged.push_back(piece);
    }
    previous = piece.match;
  }
  if (backwards) std::reverse(merged.begin(), merged.end());
  return merged;
}

}  // namespace ferry
