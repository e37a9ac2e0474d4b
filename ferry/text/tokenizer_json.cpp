// Builds a Tokenizer from tokenizer.json; refuses by name what it does not know.
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/tensor_source.h"
#include "ferry/core/error.h"
#include "ferry/text/tokenizer_parts.h"
#include "ferry/text/utf8.h"

namespace ferry {

using nlohmann::json;

namespace {

/// The byte that "<0x0A>" names.
std::optional<unsigned> byte_of_name(std::string_view token) {
  unsigned byte = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  const auto result = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  return result.ptr == token.data() + 5 ? std::optional(byte) : std::nullopt;
}

/// Fills TokenizerParts part by part. Every error starts with the file's name and the part.
class Builder {
 public:
  Builder(const json& root, std::string file)
      : in_(root, file), parts_(make_parts(in_, file)), file_(std::move(file)) {}

  std::unique_ptr<const TokenizerParts> build() &&;

 private:
  static std::unique_ptr<TokenizerParts> make_parts(const ConfigReader& in,
                                                    const std::string& file) {
    static const json null;
    const json& pre = in.has("pre_tokenizer") ? in.value("pre_tokenizer") : null;
    return std::make_unique<TokenizerParts>(file, PreTokenizer(pre, file));
  }

  void read_vocab(const ConfigReader& model);
  void read_merges(const ConfigReader& model);
  Bpe::Merge read_merge(const json& merge, std::int32_t rank) const;
  void read_added_tokens();
  std::string bytes_of(const std::string& token) const;
  Bpe::Characters read_characters(const ConfigReader& model) const;
  void read_decoder();
  void read_character_decoder(const ConfigReader& part);
  void read_decoder_step(const ConfigReader& step);
  void read_post_processor(const ConfigReader& part);
  void read_template(const ConfigReader& part);
  void append_template_token(const ConfigReader& part, const json& item, bool before);

  ConfigReader in_;
  std::unique_ptr<TokenizerParts> parts_;
  std::vector<std::pair<Regex, std::string>> replaced_;  // in tokens that are decoded
  bool bytes_from_names_ = false;                        // "<0x0A>" decodes to that byte
  std::string file_;
};

std::unique_ptr<const TokenizerParts> Builder::build() && {
  if (!in_.has("model")) in_.refuse("model", "an object");
  const ConfigReader model = in_.object("model");
  if (model.text_or("type", "BPE") != "BPE") model.refuse("type", "BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.text_or(key, "").empty()) model.refuse(key, "none");
  }
  if (model.has("dropout") && model.value("dropout") != 0) model.refuse("dropout", "none");
  parts_->ignore_merges = model.flag_or("ignore_merges", false);
  if (in_.has("normalizer")) parts_->normalizer = Normalizer(in_.value("normalizer"), file_);
  read_decoder();
  read_vocab(model);
  read_merges(model);
  read_added_tokens();
  if (in_.has("post_processor")) read_post_processor(in_.object("post_processor"));
  return std::move(parts_);
}

/// What a token decodes to.
std::string Builder::bytes_of(const std::string& token) const {
  if (parts_->pre_tokenizer.byte_level()) {
    // A token with letters outside the byte alphabet stands for its own text.
    return bytes_of_letters(token).value_or(token);
  }
  if (bytes_from_names_) {
    if (const auto byte = byte_of_name(token)) return std::string(1, static_cast<char>(*byte));
  }
  std::string text = token;
  for (const auto& [pattern, replacement] : replaced_) {
    text = pattern.replace(text, replacement);
  }
  return text;
}

void Builder::read_vocab(const ConfigReader& model) {
  if (!model.has("vocab") || !model.value("vocab").is_object()) model.refuse("vocab", "an object");
  for (const auto& [token, id] : model.value("vocab").items()) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kMaxWidth) {
      fail<ModelError>("{}: model: vocab: token {}: expected an id from 0 to {}, found {}",
                       file_,
                       token,
                       kMaxWidth - 1,
                       describe(id));
    }
    place_token(*parts_, id.get<std::int32_t>(), token, bytes_of(token));
    if (!parts_->ignore_merges) continue;
    const auto word = parts_->pre_tokenizer.byte_level() ? bytes_of_letters(token) : token;
    if (word) parts_->words.emplace(*word, id.get<std::int32_t>());
  }
}

Bpe::Merge Builder::read_merge(const json& merge, std::int32_t rank) const {
  std::string left;
  std::string right;
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const auto space = text.find(' ');
    left = text.substr(0, space);
    right = space == std::string::npos ? "" : text.substr(space + 1);
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
             merge[1].is_string()) {
    left = merge[0].get<std::string>();
    right = merge[1].get<std::string>();
  } else {
    fail<ModelError>(
        "{}: model: merges: expected pairs of tokens, found {}", file_, describe(merge));
  }
  const auto id_of = [&](const std::string& token) {
    const auto it = parts_->ids.find(token);
    if (it == parts_->ids.end()) {
      fail<ModelError>("{}: model: merges: {}: expected tokens of the vocabulary, found {}",
                       file_,
                       describe(merge),
                       describe(token));
    }
    return it->second;
  };
  return {id_of(left), id_of(right), id_of(left + right), rank};
}

void Builder::read_merges(const ConfigReader& model) {
  if (!model.has("merges") || !model.value("merges").is_array()) model.refuse("merges", "a list");
  std::vector<Bpe::Merge> merges;
  for (const json& merge : model.value("merges")) {
    merges.push_back(read_merge(merge, static_cast<std::int32_t>(merges.size())));
  }
  if (!parts_->pre_tokenizer.byte_level()) {
    parts_->bpe = Bpe(read_characters(model), merges);
    return;
  }
  // unk_token needs no care here: every byte has a token, so nothing is ever unknown.
  if (model.flag_or("byte_fallback", false)) model.refuse("byte_fallback", "false with ByteLevel");
  std::array<std::int32_t, 256> byte_ids{};
  for (unsigned b = 0; b < 256; ++b) {
    const auto it = parts_->ids.find(letter_of_byte(static_cast<unsigned char>(b)));
    if (it == parts_->ids.end()) {
      fail<ModelError>(
          "{}: model: vocab: expected a token for each byte, found none for 0x{:02x}", file_, b);
    }
    byte_ids[b] = it->second;
  }
  parts_->bpe = Bpe(byte_ids, merges);
}

Bpe::Characters Builder::read_characters(const ConfigReader& model) const {
  Bpe::Characters characters;
  for (const auto& [token, id] : parts_->ids) {
    if (!token.empty() && token.size() == utf8_length(token[0])) {
      characters.ids.emplace(char_at(token, 0), id);
    }
  }
  if (model.flag_or("byte_fallback", false)) {
    characters.byte_ids.emplace();
    for (unsigned b = 0; b < 256; ++b) {
      const auto it = parts_->ids.find(fmt::format("<0x{:02X}>", b));
      if (it == parts_->ids.end()) {
        fail<ModelError>(
            "{}: model: vocab: expected <0x{:02X}>, as byte_fallback wants, found none", file_, b);
      }
      (*characters.byte_ids)[b] = it->second;
    }
  }
  const std::string unknown = model.text_or("unk_token", "");
  if (!unknown.empty()) {
    const auto it = parts_->ids.find(unknown);
    if (it == parts_->ids.end()) model.refuse("unk_token", "a token of the vocabulary");
    characters.unknown = it->second;
  }
  characters.fuse_unknown = model.flag_or("fuse_unk", false);
  return characters;
}

void Builder::read_added_tokens() {
  if (!in_.has("added_tokens")) return;
  if (!in_.value("added_tokens").is_array()) in_.refuse("added_tokens", "a list");
  for (const json& item : in_.value("added_tokens")) {
    const std::string where = file_ + ": added_tokens";
    if (!item.is_object()) {
      fail<ModelError>("{}: expected objects, found {}", where, describe(item));
    }
    const ConfigReader part(item, where);
    const auto id = part.integers("id", 0, kMaxWidth - 1);
    AddedToken token{.id = id.size() == 1 ? id[0] : -1,
                     .content = part.text_or("content", ""),
                     .special = part.flag_or("special", false),
                     .single_word = part.flag_or("single_word", false),
                     .lstrip = part.flag_or("lstrip", false),
                     .rstrip = part.flag_or("rstrip", false),
                     .normalized = part.flag_or("normalized", true)};
    if (token.id < 0) part.refuse("id", "an integer");
    if (token.content.empty()) part.refuse("content", "a text");
    place_token(*parts_, token.id, token.content, bytes_of(token.content));
    match_added_token(*parts_, token);
  }
}

void Builder::read_decoder() {
  const bool byte_level = parts_->pre_tokenizer.byte_level();
  if (!in_.has("decoder")) in_.refuse("decoder", byte_level ? "ByteLevel" : "a Sequence");
  const ConfigReader part = in_.object("decoder");
  if (!byte_level) return read_character_decoder(part);
  if (part.text_or("type", "") == "ByteLevel") return;
  const bool sequence = part.text_or("type", "") == "Sequence" && part.has("decoders") &&
                        part.value("decoders").is_array();
  if (!sequence) part.refuse("type", "ByteLevel, or a Sequence with it");
  bool found = false;
  for (const json& step : part.value("decoders")) {
    const std::string type =
        step.is_object() ? ConfigReader(step, part.file()).text_or("type", "") : "";
    // Fuse joins what ByteLevel has already joined.
    if (type != "ByteLevel" && type != "Fuse") part.refuse("decoders", "ByteLevel and Fuse only");
    found = found || type == "ByteLevel";
  }
  if (!found) part.refuse("decoders", "ByteLevel among them");
}

/// What SentencePiece's vocabularies decode by: Replace, ByteFallback, Fuse and Strip, in this
/// order.
void Builder::read_character_decoder(const ConfigReader& part) {
  const bool sequence = part.text_or("type", "") == "Sequence" && part.has("decoders") &&
                        part.value("decoders").is_array();
  if (!sequence) part.refuse("type", "a Sequence, where the pre-tokenizer is not ByteLevel");
  for (const json& step : part.value("decoders")) {
    if (!step.is_object()) part.refuse("decoders", "a list of objects");
    read_decoder_step(ConfigReader(step, part.file()));
  }
}

void Builder::read_decoder_step(const ConfigReader& step) {
  const std::string type = step.text_or("type", "");
  if (!parts_->dropped_prefix.empty()) step.refuse("type", "nothing behind Strip");
  if (type == "Replace") {
    replaced_.emplace_back(Regex::from_json(step), step.text_or("content", ""));
  } else if (type == "ByteFallback") {
    bytes_from_names_ = true;
  } else if (type == "Strip") {
    const std::string content = step.text_or("content", "");
    const auto start = step.integers("start", 0, kMaxWidth);
    const auto stop = step.integers("stop", 0, kMaxWidth);
    const bool one_in_front =
        start.size() == 1 && start[0] == 1 && stop.size() == 1 && stop[0] == 0 && !content.empty();
    if (!one_in_front) step.refuse("start", "1, a content, and a stop of 0");
    parts_->dropped_prefix = content;
  } else if (type != "Fuse") {
    step.refuse("type", "Replace, ByteFallback, Fuse or Strip");
  }
}

void Builder::read_post_processor(const ConfigReader& part) {
  const std::string type = part.text_or("type", "");
  if (type == "ByteLevel") return;  // changes offsets only
  if (type == "TemplateProcessing") {
    read_template(part);
  } else if (type == "Sequence" && part.has("processors") && part.value("processors").is_array()) {
    for (const json& step : part.value("processors")) {
      if (!step.is_object()) part.refuse("processors", "a list of objects");
      read_post_processor(ConfigReader(step, part.file()));
    }
  } else {
    part.refuse("type", "ByteLevel, TemplateProcessing, or a Sequence of them");
  }
}

void Builder::read_template(const ConfigReader& part) {
  if (!part.has("single") || !part.value("single").is_array()) part.refuse("single", "a list");
  bool before = true;
  for (const json& item : part.value("single")) {
    if (item.is_object() && item.contains("Sequence")) {
      if (!before) part.refuse("single", "the text once");
      before = false;
    } else if (item.is_object() && item.contains("SpecialToken")) {
      append_template_token(part, item, before);
    } else {
      part.refuse("single", "SpecialToken and Sequence only");
    }
  }
  if (before) part.refuse("single", "the text once");
}

void Builder::append_template_token(const ConfigReader& part, const json& item, bool before) {
  const json& token = item["SpecialToken"];
  const std::string name =
      token.is_object() ? ConfigReader(token, part.file()).text_or("id", "") : "";
  const bool table = part.has("special_tokens") && part.value("special_tokens").is_object();
  const json* entry = nullptr;
  if (table) {
    const auto it = part.value("special_tokens").find(name);
    if (it != part.value("special_tokens").end() && it->is_object()) entry = &*it;
  }
  if (entry == nullptr) part.refuse("special_tokens", fmt::format("an entry for \"{}\"", name));
  for (const std::int32_t id :
       ConfigReader(*entry, part.file()).integers("ids", 0, kMaxWidth - 1)) {
    const auto at = static_cast<std::size_t>(id);
    if (at >= parts_->present.size() || !parts_->present[at]) {
      fail<ModelError>("{}: special token {}: expected an id of the vocabulary, found {}",
                       part.file(),
                       name,
                       id);
    }
    (before ? parts_->prefix : parts_->suffix).push_back(id);
  }
}

constexpr const char* kJsonFile = "tokenizer.json";
constexpr const char* kTiktokenFile = "tiktoken.model";

}  // namespace

Tokenizer Tokenizer::parse(std::string_view text, const std::string& file) {
  const json root = parse_json(text, file);
  if (!root.is_object()) {
    fail<ModelError>("{}: expected a JSON object, found {}", file, describe(root));
  }
  return Tokenizer(Builder(root, file).build());
}

bool Tokenizer::exists(const std::filesystem::path& directory) {
  std::error_code code;
  if (std::filesystem::is_regular_file(directory, code))
    return model_text(directory, kJsonFile).has_value();
  return std::filesystem::exists(directory / kJsonFile, code) ||
         std::filesystem::exists(directory / kTiktokenFile, code);
}

Tokenizer Tokenizer::load(const std::filesystem::path& directory) {
  const auto path = directory / kJsonFile;
  std::error_code code;
  if (std::filesystem::is_regular_file(directory, code)) {
    const auto text = model_text(directory, kJsonFile);
    if (!text) fail<ModelError>("{}: expected a tokenizer, found none", directory.string());
    return parse(text->text, text->file);
  }
  const auto tiktoken = directory / kTiktokenFile;
  if (!std::filesystem::exists(path, code) && std::filesystem::exists(tiktoken, code)) {
    const auto config = directory / "tokenizer_config.json";
    return parse_tiktoken(
        read_text_file(tiktoken), tiktoken.string(), read_text_file(config), config.string());
  }
  return parse(read_text_file(path), path.string());
}

}  // namespace ferry
