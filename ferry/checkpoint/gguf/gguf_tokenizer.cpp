// What cuts a text into words is not in a GGUF file: it has a name for it, and the rest stands
// here, as the published tokenizer.json of the models with that name have it.
#include "ferry/checkpoint/gguf/gguf_tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

// NOLINTBEGIN(cppcoreguidelines-avoid-magic-numbers): the numbers are GGUF's own.
enum class TokenKind : std::int64_t { normal = 1, unknown, control, user_defined, unused, byte };
// NOLINTEND(cppcoreguidelines-avoid-magic-numbers)

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kKinds = "tokenizer.ggml.token_type";
constexpr std::string_view kScores = "tokenizer.ggml.scores";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";
constexpr std::string_view kModel = "tokenizer.ggml.model";
constexpr std::string_view kPre = "tokenizer.ggml.pre";
// Every way to cut a piece is looked at, so that its length matters.
constexpr std::size_t kLongestPiece = 1024;
constexpr std::string_view kTemplate = "tokenizer.chat_template";

/// A way to cut texts into words, before their bytes are merged.
struct Cutting {
  std::string_view name;  ///< in tokenizer.ggml.pre
  bool nfc = false;       ///< texts are composed first
  bool gpt2 = false;      ///< the words of GPT-2, which ByteLevel knows by itself
  std::array<std::string_view, 5> patterns = {};  ///< one behind the other
  bool single_digits = false;                     ///< then each digit alone
  bool whole_words = false;                       ///< a word that is a token is not merged to one
  bool begins = false;  ///< texts begin with a token, where the file does not say
};

constexpr std::string_view kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kThreeDigits =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kUpperAndLower =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kKimi =
    R"(\p{Han}+|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])*(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])+(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseekV3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// clang-format off
constexpr std::array kCuttings = {
    Cutting{.name = "qwen2", .nfc = true, .patterns = {kQwen}},
    Cutting{.name = "hunyuan", .nfc = true, .patterns = {kQwen}},
    Cutting{.name = "gpt-2", .gpt2 = true},
    Cutting{.name = "olmo", .nfc = true, .gpt2 = true},
    Cutting{.name = "glm4", .patterns = {kThreeDigits}},
    Cutting{.name = "chatglm-bpe", .patterns = {kThreeDigits}},
    Cutting{.name = "gpt-4o", .patterns = {kUpperAndLower}},
    Cutting{.name = "llama4", .patterns = {kUpperAndLower}},
    Cutting{.name = "llama-bpe", .patterns = {kThreeDigits}, .whole_words = true, .begins = true},
    Cutting{.name = "tekken", .patterns = {kTekken}, .whole_words = true, .begins = true},
    Cutting{.name = "kimi-k2", .patterns = {kKimi}, .whole_words = true},
    Cutting{.name = "qwen35", .nfc = true, .patterns = {kQwen35}},
    Cutting{.name = "minimax-m2", .patterns = {kUpperAndLower}},
    Cutting{.name = "deepseek-v3", .patterns = {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+", kDeepseekV3}},
    Cutting{.name = "deepseek-llm",
            .patterns = {R"([\r\n])", R"(\s?\p{L}+)",
                         R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)", R"(\s+$)",
                         "[一-龥ࠀ-一가-퟿]+"},
            .single_digits = true},
};

// clang-format on

const Cutting& cutting_of(const GgufFields& fields) {
  const std::string_view name = fields.text(kPre);
  std::string known;
  for (const Cutting& cutting : kCuttings) {
    if (cutting.name == name) return cutting;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", cutting.name);
  }
  fields.refuse(kPre, "one of " + known);
}

json byte_level(bool cuts) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", false},
          {"use_regex", cuts}};
}

json pre_tokenizer(const Cutting& cutting) {
  json steps = json::array();
  for (const std::string_view pattern : cutting.patterns) {
    if (pattern.empty()) continue;
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  if (cutting.single_digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  steps.push_back(byte_level(cutting.gpt2));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

/// The vocabulary, by ids; kinds and scores may be missing.
class Vocabulary {
 public:
  explicit Vocabulary(const GgufFields& fields)
      : fields_(fields),
        tokens_(fields.texts(kTokens)),
        kinds_(fields.integers(kKinds)),
        scores_(fields.numbers(kScores)) {
    if (tokens_.empty()) fields.refuse(kTokens, "a list of texts");
    for (const auto& [key, found] : {std::pair{kKinds, kinds_.size()}, {kScores, scores_.size()}})
      if (found != 0 && found != tokens_.size())
        fields.refuse(key, fmt::format("one for each of {} tokens", tokens_.size()));
    if (!std::ranges::all_of(scores_, [](double score) { return std::isfinite(score); }))
      fields.refuse(kScores, "finite numbers");
  }

  std::size_t size() const { return tokens_.size(); }

  const std::string_view& token(std::size_t id) const { return tokens_[id]; }

  std::span<const double> scores() const { return scores_; }

  TokenKind kind(std::size_t id) const {
    return kinds_.empty() ? TokenKind::normal : static_cast<TokenKind>(kinds_[id]);
  }

  /// Those that texts are merged to, and those that are looked for in texts.
  json merged(bool all) const {
    json vocab = json::object();
    for (std::size_t id = 0; id < size(); ++id) {
      const bool added = kind(id) == TokenKind::control || kind(id) == TokenKind::user_defined;
      if (kind(id) == TokenKind::unused || (added && !all)) continue;
      if (!vocab.emplace(tokens_[id], id).second) {
        fields_.refuse(
            kTokens,
            fmt::format("each token once, but {} is there twice", describe(json(tokens_[id]))));
      }
    }
    return vocab;
  }

  json added() const {
    json list = json::array();
    for (std::size_t id = 0; id < size(); ++id) {
      const bool special = kind(id) == TokenKind::control || kind(id) == TokenKind::unknown;
      if (!special && kind(id) != TokenKind::user_defined) continue;
      list.push_back({{"id", id},
                      {"content", tokens_[id]},
                      {"special", special},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false}});
    }
    return list;
  }

  /// The token that a key names; absent where there is none.
  std::optional<std::size_t> named(std::string_view key) const {
    if (!fields_.has(key)) return std::nullopt;
    const auto id = static_cast<std::size_t>(fields_.size(key));
    if (id >= size()) fields_.refuse(key, fmt::format("a token below {}", size()));
    return id;
  }

 private:
  const GgufFields& fields_;
  std::span<const std::string_view> tokens_;
  std::span<const std::int64_t> kinds_;
  std::span<const double> scores_;
};

/// What stands around every text. SentencePiece's vocabularies begin texts unless told not to.
json post_processor(const GgufFields& fields, const Vocabulary& vocabulary, bool begins) {
  json single = json::array();
  json tokens = json::object();
  const auto add = [&](std::string_view flag, std::string_view key, bool fallback) {
    const auto id = vocabulary.named(key);
    if (!fields.flag_or(flag, fallback) || !id) return;
    const std::string name(vocabulary.token(*id));
    single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
    tokens[name] = {{"id", name}, {"ids", {*id}}, {"tokens", {name}}};
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", begins);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", false);
  if (single.size() == 1) return nullptr;
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", tokens}};
}

json byte_pairs(const GgufFields& fields) {
  const Vocabulary vocabulary(fields);
  const Cutting& cutting = cutting_of(fields);
  json merges = json::array();
  for (const std::string_view merge : fields.texts(kMerges)) merges.push_back(merge);
  json root = {{"model", {{"type", "BPE"}, {"vocab", vocabulary.merged(false)}}},
               {"pre_tokenizer", pre_tokenizer(cutting)},
               {"decoder", byte_level(true)},
               {"added_tokens", vocabulary.added()},
               {"post_processor", post_processor(fields, vocabulary, cutting.begins)}};
  root["model"]["merges"] = std::move(merges);
  root["model"]["ignore_merges"] = cutting.whole_words;
  if (cutting.nfc) root["normalizer"] = {{"type", "NFC"}};
  return root;
}

/// Letters of UTF-8 from the first byte of one on.
std::size_t letters(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

/// SentencePiece merges the neighbours that together are the token of the best score. So every way
/// to cut a token in two is a rule, in the order in which Hugging Face's converter has them.
json scored_merges(const Vocabulary& vocabulary) {
  struct Rule {
    double score = 0;
    std::size_t first_length = 0, second_length = 0, first = 0, second = 0;
  };

  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < vocabulary.size(); ++id)
    if (vocabulary.kind(id) != TokenKind::unused) ids.emplace(vocabulary.token(id), id);
  std::vector<Rule> rules;
  for (std::size_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view token = vocabulary.token(id);
    if (vocabulary.kind(id) != TokenKind::normal || token.size() > kLongestPiece) continue;
    const std::size_t begin = rules.size();
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const auto first = ids.find(token.substr(0, cut));
      const auto second = ids.find(token.substr(cut));
      if (first == ids.end() || second == ids.end()) continue;
      rules.push_back({vocabulary.scores()[id],
                       letters(first->first),
                       letters(second->first),
                       first->second,
                       second->second});
    }
    std::sort(rules.begin() + static_cast<std::ptrdiff_t>(begin),
              rules.end(),
              [](const Rule& a, const Rule& b) {
                return std::pair(a.first, a.second) < std::pair(b.first, b.second);
              });
  }
  std::ranges::stable_sort(rules, [](const Rule& a, const Rule& b) {
    return std::tuple(a.score, a.first_length, a.second_length) >
           std::tuple(b.score, b.first_length, b.second_length);
  });
  json merges = json::array();
  for (const Rule& rule : rules)
    merges.push_back({vocabulary.token(rule.first), vocabulary.token(rule.second)});
  return merges;
}

json replaced(std::string_view from, std::string_view to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

json sentence_pieces(const GgufFields& fields) {
  constexpr std::string_view kSpace = "\u2581";
  const Vocabulary vocabulary(fields);
  if (vocabulary.scores().empty()) fields.refuse(kScores, "a list of numbers");
  const bool prefixed = fields.flag_or("tokenizer.ggml.add_space_prefix", true);
  json normalizers = json::array();
  if (prefixed) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back(replaced(" ", kSpace));
  json decoders = {replaced(kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (prefixed)
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  json model = {{"type", "BPE"}, {"vocab", vocabulary.merged(true)}, {"fuse_unk", true}};
  model["byte_fallback"] = model["vocab"].contains("<0x00>");
  if (const auto id = vocabulary.named("tokenizer.ggml.unknown_token_id"))
    model["unk_token"] = vocabulary.token(*id);
  model["merges"] = scored_merges(vocabulary);
  return {{"model", std::move(model)},
          {"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
          {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
          {"added_tokens", vocabulary.added()},
          {"post_processor", post_processor(fields, vocabulary, true)}};
}

std::optional<std::string> dumped(const json& root, const GgufFields& fields) {
  try {
    return root.dump();
  } catch (const json::exception&) {
    fail<ModelError>("{}: metadata tokenizer: expected texts in UTF-8, found others",
                     fields.file());
  }
}

}  // namespace

std::optional<std::string> gguf_tokenizer(const GgufFields& fields) {
  const auto model = fields.text_if(kModel);
  if (!model) return std::nullopt;
  if (*model == "gpt2") return dumped(byte_pairs(fields), fields);
  if (*model == "llama") return dumped(sentence_pieces(fields), fields);
  fields.refuse(kModel, "gpt2 or llama");
}

std::optional<std::string> gguf_tokenizer_config(const GgufFields& fields) {
  if (!fields.has(kModel)) return std::nullopt;
  const Vocabulary vocabulary(fields);
  json config = json::object();
  for (const auto& [name, key] : {std::pair{"bos_token", "tokenizer.ggml.bos_token_id"},
                                  {"eos_token", "tokenizer.ggml.eos_token_id"},
                                  {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                  {"sep_token", "tokenizer.ggml.seperator_token_id"},
                                  {"pad_token", "tokenizer.ggml.padding_token_id"}}) {
    if (const auto id = vocabulary.named(key)) config[name] = vocabulary.token(*id);
  }
  json templates = json::array();
  const std::string others = fmt::format("{}.", kTemplate);
  for (const auto& [key, value] : fields.all()) {
    const bool usual = key == kTemplate;
    if (!usual && !key.starts_with(others)) continue;
    templates.push_back(
        {{"name", usual ? "default" : key.substr(others.size())}, {"template", fields.text(key)}});
  }
  if (!templates.empty()) config["chat_template"] = std::move(templates);
  return dumped(config, fields);
}

}  // namespace ferry
