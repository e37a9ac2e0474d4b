// Tokenizers that are not byte-level BPE from tokenizer.json: of characters, and tiktoken's files.
#include "tokenizer_description.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Ids = std::vector<std::int32_t>;

/// Characters with byte fallback: <unk>, the bytes (id = byte + 1), then some characters.
json character_tokenizer() {
  json vocab = {{"<unk>", 0}};
  for (int b = 0; b < 256; ++b) vocab[fmt::format("<0x{:02X}>", b)] = b + 1;
  for (const char* c : {"\u2581", "a", "b", "\u2581a"}) vocab[c] = vocab.size();
  return {{"added_tokens", {added(300, "<s>")}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Metaspace"}, {"prepend_scheme", "first"}}},
          {"post_processor", nullptr},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", {"\u2581 a"}}}}};
}

constexpr int kMeta = 257;  // ids of character_tokenizer()
constexpr int kA = 258;
constexpr int kB = 259;
constexpr int kMetaA = 260;

TEST(CharacterTokenizer, SpaceGoesInFrontOfTheTextAndOnlyThere) {
  const Tokenizer tokenizer = make(character_tokenizer());
  EXPECT_THAT(tokenizer.encode("ab a"), ElementsAre(kMetaA, kB, kMetaA));
  EXPECT_THAT(tokenizer.encode(" a"), ElementsAre(kMetaA));
  EXPECT_THAT(tokenizer.encode("a<s>a a"), ElementsAre(kMetaA, 300, kA, kMetaA));
  EXPECT_THAT(tokenizer.encode("<s>a"), ElementsAre(300, kA));
  json always = character_tokenizer();
  always["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_THAT(make(always).encode("a<s>a"), ElementsAre(kMetaA, 300, kMetaA));
  json never = character_tokenizer();
  never["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_THAT(make(never).encode("a a"), ElementsAre(kA, kMetaA));
}

TEST(CharacterTokenizer, WhatHasNoTokenBecomesBytesOrUnknown) {
  EXPECT_THAT(make(character_tokenizer()).encode("a\u00e9"),
              ElementsAre(kMetaA, 0xC3 + 1, 0xA9 + 1));
  json unknown = character_tokenizer();
  unknown["model"]["byte_fallback"] = false;
  EXPECT_THAT(make(unknown).encode("axyb"), ElementsAre(kMetaA, 0, kB));
  unknown["model"]["fuse_unk"] = false;
  EXPECT_THAT(make(unknown).encode("axyb"), ElementsAre(kMetaA, 0, 0, kB));
  unknown["model"]["unk_token"] = nullptr;
  EXPECT_THAT(make(unknown).encode("axyb"), ElementsAre(kMetaA, kB));
}

TEST(CharacterTokenizer, TheSpaceInFrontIsDroppedFromTextsButNotFromStreams) {
  const Tokenizer tokenizer = make(character_tokenizer());
  EXPECT_EQ(tokenizer.decode(Ids{kMetaA, kB, kMetaA}), "ab a");
  EXPECT_EQ(tokenizer.decode(Ids{kMeta, kMetaA}), " a");
  EXPECT_EQ(tokenizer.decode(Ids{0xC3 + 1, 0xA9 + 1}), "\u00e9");
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.put(kMetaA), " a");  // it goes on behind a prompt
  EXPECT_EQ(stream.put(0xC3 + 1), "");
  EXPECT_EQ(stream.put(0xA9 + 1), "\u00e9");
}

TEST(CharacterTokenizer, RefusesWhatIsNotSupportedByName) {
  const auto with = [](const char* path, const json& value) {
    json description = character_tokenizer();
    description[json::json_pointer(path)] = value;
    return error_of(description);
  };
  EXPECT_THAT(with("/decoder", {{"type", "Metaspace"}}), HasSubstr("\"Metaspace\""));
  EXPECT_THAT(with("/decoder/decoders/2/type", "WordPiece"), HasSubstr("\"WordPiece\""));
  EXPECT_THAT(with("/decoder/decoders/3/start", 2), HasSubstr("start"));
  EXPECT_THAT(with("/model/unk_token", "<nope>"), HasSubstr("unk_token"));
  EXPECT_THAT(with("/pre_tokenizer/prepend_scheme", "sometimes"), HasSubstr("sometimes"));
  EXPECT_THAT(with("/normalizer", {{"type", "Replace"}, {"content", "x"}}), HasSubstr("pattern"));
  json description = character_tokenizer();
  description["model"]["vocab"].erase("<0x41>");
  EXPECT_THAT(error_of(description), HasSubstr("expected <0x41>"));
}

/// A tiktoken file of the bytes, then these tokens in base64.
std::string ranks(const std::vector<std::string>& more) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string file;
  for (unsigned b = 0; b < 256; ++b) {
    file += fmt::format("{}{}== {}\n", kDigits[b >> 2], kDigits[(b & 3) << 4], b);
  }
  for (std::size_t i = 0; i < more.size(); ++i) file += fmt::format("{} {}\n", more[i], 256 + i);
  return file;
}

TEST(Tiktoken, WholeWordsThenTheLowestRank) {
  // bc, ab, abcd (which no merges reach: a word is looked for whole first).
  const Tokenizer tokenizer = Tokenizer::parse_tiktoken(
      ranks({"YmM=", "YWI=", "YWJjZA=="}),
      "tiktoken.model",
      R"({"added_tokens_decoder": {"260": {"content": "[EOS]", "special": true}}})",
      "tokenizer_config.json");
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre('a', 256));
  EXPECT_THAT(tokenizer.encode("abcd"), ElementsAre(258));
  EXPECT_THAT(tokenizer.encode("ab[EOS]"), ElementsAre(257, 260));
  EXPECT_THAT(tokenizer.encode("<|reserved_token_259|>"), ElementsAre(259));
  EXPECT_TRUE(tokenizer.is_special(260));
  EXPECT_EQ(tokenizer.size(), 259 + 258);
  EXPECT_EQ(tokenizer.decode(Ids{258, 260}, true), "abcd");
}

TEST(Tiktoken, RefusesDamagedFiles) {
  const auto error = [](const std::string& file, const char* config = "{}") {
    return test::message_of<ModelError>([&] {
      Tokenizer::parse_tiktoken(file, "tiktoken.model", config, "tokenizer_config.json");
    });
  };
  EXPECT_THAT(error(""), HasSubstr("found none for 0x00"));
  for (const char* token : {"YmM", "Ym?=", "QQ==", ""}) {
    EXPECT_THAT(error(ranks({token})), HasSubstr("tiktoken.model: line 257")) << token;
  }
  EXPECT_THAT(error(ranks({}) + "YmM= -1\n"), HasSubstr("line 257"));
  EXPECT_THAT(error(ranks({}) + "YmM=\n"), HasSubstr("line 257"));
  EXPECT_THAT(error(ranks({}), "[]"), HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(error(ranks({}), R"({"added_tokens_decoder": {"7": {"content": "x"}}})"),
              HasSubstr("ids from 256"));
  EXPECT_THAT(error(ranks({}), R"({"added_tokens_decoder": {"256": {"content": ""}}})"),
              HasSubstr("content"));
}

}  // namespace
}  // namespace ferry
