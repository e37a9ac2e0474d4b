#include "ferry/text/tokenizer.h"

#include <gmock/gmock.h>

#include <ctime>
#include <random>
#include <thread>

#include "tokenizer_description.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Ids = std::vector<std::int32_t>;

/// The letter that stands for a byte, worked out anew.
std::string letter(int b) {
  int shifted = 0;
  for (int i = 0; i <= b; ++i) {
    const bool itself = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
    if (i == b && itself) {
      return b < 128 ? std::string(1, static_cast<char>(b))
                     : std::string{static_cast<char>(0xC0 | b >> 6),
                                   static_cast<char>(0x80 | (b & 0x3F))};
    }
    if (i < b && !itself) ++shifted;
  }
  const int c = 256 + shifted;
  return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
}

/// A tokenizer of the 256 bytes (id = byte) and ByteLevel without a split.
json byte_tokenizer() {
  json vocab;
  for (int b = 0; b < 256; ++b) vocab[letter(b)] = b;
  return {
      {"added_tokens", json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
}

/// Adds tokens for merged strings, with the merges that lead there, from id 256 on.
void add_merges(json& description, const std::vector<std::pair<std::string, std::string>>& merges) {
  for (const auto& [left, right] : merges) {
    description["model"]["vocab"].emplace(left + right, description["model"]["vocab"].size());
    description["model"]["merges"].push_back(json::array({left, right}));
  }
}

/// How the pre-tokenizer cuts: every character of a word merges with its neighbours (of a and b).
std::vector<std::string> words(const json& split, const std::string& text) {
  json description = byte_tokenizer();
  description["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split, {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  // All pairs and longer words over "ab-" merge, so that a token is a word.
  std::vector<std::string> grown = {"a", "b", "-"};
  for (std::size_t i = 0; i < grown.size() && grown[i].size() < 4; ++i) {
    for (const char* c : {"a", "b", "-"}) {
      add_merges(description, {{grown[i], c}});
      grown.push_back(grown[i] + c);
    }
  }
  const Tokenizer tokenizer = make(description);
  std::vector<std::string> result;
  for (const std::int32_t id : tokenizer.encode(text)) {
    result.emplace_back(tokenizer.token_bytes(id));
  }
  return result;
}

json split_step(const char* behavior, bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"String", "-"}}},
          {"behavior", behavior},
          {"invert", invert}};
}

TEST(Tokenizer, MergesByRankThenFromTheLeft) {
  json description = byte_tokenizer();
  add_merges(description, {{"b", "c"}, {"a", "b"}, {"a", "a"}});
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre('a', 256));
  EXPECT_THAT(tokenizer.encode("ab"), ElementsAre(257));
  EXPECT_THAT(tokenizer.encode("aaa"), ElementsAre(258, 'a'));
  EXPECT_EQ(tokenizer.size(), 259);
  EXPECT_EQ(tokenizer.decode(std::array{256}), "bc");
}

TEST(Tokenizer, BothFormsOfMergesMeanTheSame) {
  json description = byte_tokenizer();
  description["model"]["vocab"]["ab"] = 256;
  description["model"]["merges"] = json::array({json::array({"a", "b"})});
  EXPECT_THAT(make(description).encode("ab"), ElementsAre(256));
  description["model"]["merges"] = {"a b"};
  EXPECT_THAT(make(description).encode("ab"), ElementsAre(256));
}

TEST(Tokenizer, IgnoreMergesTakesWholeWordsFromTheVocabulary) {
  json description = byte_tokenizer();
  description["model"]["vocab"]["abc"] = 256;
  EXPECT_EQ(make(description).encode("abc").size(), 3U);
  description["model"]["ignore_merges"] = true;
  EXPECT_THAT(make(description).encode("abc"), ElementsAre(256));
}

TEST(Tokenizer, SplitsInEveryBehavior) {
  const std::string text = "a--b-";
  EXPECT_THAT(words(split_step("Isolated"), text), ElementsAre("a", "-", "-", "b", "-"));
  EXPECT_THAT(words(split_step("Removed"), text), ElementsAre("a", "b"));
  EXPECT_THAT(words(split_step("Removed", true), text), ElementsAre("-", "-", "-"));
  EXPECT_THAT(words(split_step("MergedWithPrevious"), text), ElementsAre("a-", "-", "b-"));
  EXPECT_THAT(words(split_step("MergedWithNext"), text), ElementsAre("a", "-", "-b", "-"));
  EXPECT_THAT(words(split_step("Contiguous"), text), ElementsAre("a", "--", "b", "-"));
  EXPECT_THAT(
      words({{"type", "Split"}, {"pattern", {{"Regex", "-(?!-)"}}}, {"behavior", "Isolated"}},
            text),
      ElementsAre("a-", "-", "b", "-"));
}

TEST(Tokenizer, SplitsDigits) {
  json description = byte_tokenizer();
  description["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Digits"}, {"individual_digits", true}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  add_merges(description, {{"1", "2"}, {"a", "1"}});
  EXPECT_THAT(make(description).encode("a12"), ElementsAre('a', '1', '2'));
  description["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_THAT(make(description).encode("a12"), ElementsAre('a', 256));
}

TEST(Tokenizer, SpaceIsTheUnicodePropertyNotPerlsIdea) {
  // U+180E is a space to PCRE2 but not to Hugging Face's engine; U+3000 is to both.
  json description = byte_tokenizer();
  description["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "[\\s]"}}}, {"behavior", "Removed"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  EXPECT_THAT(make(description).encode("\u3000x\u2028"), ElementsAre('x'));
  EXPECT_EQ(make(description).encode("\u180e").size(), 3U);
}

TEST(Tokenizer, PrefixSpaceComesBeforeEveryPieceThatHasNone) {
  json description = byte_tokenizer();
  description["pre_tokenizer"] = {{"type", "ByteLevel"}};  // defaults: prefix and regex
  description["added_tokens"] = {added(256, "<s>")};
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("a<s>b"), ElementsAre(' ', 'a', 256, ' ', 'b'));
  EXPECT_THAT(tokenizer.encode(" a"), ElementsAre(' ', 'a'));
  EXPECT_THAT(tokenizer.encode(""), IsEmpty());
}

TEST(AddedTokens, LeftmostThenLongestWins) {
  json description = byte_tokenizer();
  description["added_tokens"] = {added(256, "<a>"), added(257, "<a><b>"), added(258, "><")};
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("<a><b><a>"), ElementsAre(257, 256));
  EXPECT_THAT(tokenizer.encode("x><a"), ElementsAre('x', 258, 'a'));
}

TEST(AddedTokens, StripAndSingleWord) {
  json description = byte_tokenizer();
  description["added_tokens"] = {added(256, "<l>", {{"lstrip", true}}),
                                 added(257, "<r>", {{"rstrip", true}}),
                                 added(258, "word", {{"single_word", true}})};
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("a \t<l> b"), ElementsAre('a', 256, ' ', 'b'));
  EXPECT_THAT(tokenizer.encode("a <r>\u3000 <l>"), ElementsAre('a', ' ', 257, 256));
  EXPECT_THAT(tokenizer.encode("word-word"), ElementsAre(258, '-', 258));
  EXPECT_EQ(tokenizer.encode("words").size(), 5U);
  EXPECT_EQ(tokenizer.encode("\u00e9word").size(), 6U);
}

TEST(AddedTokens, NormalizedOnesAreFoundInTheNormalForm) {
  json description = byte_tokenizer();
  description["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  description["added_tokens"] = {added(256, "e\u0301", {{"normalized", true}}),
                                 added(257, "o\u0301")};
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("\u00e9"), ElementsAre(256));
  EXPECT_THAT(tokenizer.encode("e\u0301"), ElementsAre(256));
  EXPECT_THAT(tokenizer.encode("o\u0301"), ElementsAre(257));
  EXPECT_THAT(tokenizer.encode("\u00f3"), ElementsAre(0xC3, 0xB3));
}

TEST(AddedTokens, SpecialOnesCanBeSkipped) {
  json description = byte_tokenizer();
  description["added_tokens"] = {added(256, "<s>"), added(300, "<tool>", {{"special", false}})};
  const Tokenizer tokenizer = make(description);
  EXPECT_TRUE(tokenizer.is_special(256));
  EXPECT_FALSE(tokenizer.is_special(300));
  EXPECT_FALSE(tokenizer.is_special(-5));
  EXPECT_EQ(tokenizer.decode(Ids{'a', 256, 300}), "a<s><tool>");
  EXPECT_EQ(tokenizer.decode(Ids{'a', 256, 300}, true), "a<tool>");
  EXPECT_EQ(tokenizer.size(), 301);
  for (const std::int32_t id : {-1, 257, 301, std::numeric_limits<std::int32_t>::max()}) {
    EXPECT_THAT(test::message_of<ConfigError>([&] { tokenizer.decode(Ids{id}); }),
                HasSubstr(fmt::format("token id {}: expected one of the vocabulary's", id)));
  }
}

TEST(Tokenizer, TemplatePutsTokensAround) {
  json description = byte_tokenizer();
  description["added_tokens"] = {added(256, "<s>"), added(257, "</s>")};
  description["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
           {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
           {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}}}},
         {"special_tokens",
          {{"<s>", {{"id", "<s>"}, {"ids", {256}}, {"tokens", {"<s>"}}}},
           {"</s>", {{"id", "</s>"}, {"ids", {257}}, {"tokens", {"</s>"}}}}}}}}}};
  const Tokenizer tokenizer = make(description);
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(256, 'a', 257));
  EXPECT_THAT(tokenizer.encode("a", false), ElementsAre('a'));
  description["post_processor"]["processors"][1]["special_tokens"]["<s>"]["ids"] = {999};
  error_of(description);
  description["post_processor"]["processors"][1]["special_tokens"].erase("<s>");
  EXPECT_THAT(error_of(description), HasSubstr("an entry for \"<s>\""));
}

TEST(Tokenizer, BrokenUtf8BecomesReplacementCharacters) {
  const Tokenizer tokenizer = make(byte_tokenizer());
  const std::string fffd = "\xEF\xBF\xBD";
  const auto round_trip = [&](const std::string& text) {
    return tokenizer.decode(tokenizer.encode(text));
  };
  EXPECT_EQ(round_trip("a\xFF"
                       "b"),
            "a" + fffd + "b");
  EXPECT_EQ(round_trip("\xE2\x82"), fffd);  // one incomplete character
  EXPECT_EQ(round_trip("\xE2\x82"
                       "A"),
            fffd + "A");
  EXPECT_EQ(round_trip("\xC0\x80"), fffd + fffd);             // overlong
  EXPECT_EQ(round_trip("\xED\xA0\x80"), fffd + fffd + fffd);  // surrogate
  EXPECT_EQ(round_trip("\xF4\x90\x80\x80"), fffd + fffd + fffd + fffd);
  EXPECT_EQ(round_trip(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(StreamDecoder, HoldsBackIncompleteCharacters) {
  const Tokenizer tokenizer = make(byte_tokenizer());
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.put(0xF0), "");
  EXPECT_EQ(stream.put(0x9F), "");
  EXPECT_EQ(stream.put(0x98), "");
  EXPECT_EQ(stream.put(0x80), "\U0001F600");
  EXPECT_EQ(stream.put(0xE2), "");
  EXPECT_EQ(stream.put('x'), "\uFFFDx");
  EXPECT_EQ(stream.put(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, LongWordsAreNotQuadratic) {
  json description = byte_tokenizer();
  add_merges(description, {{"a", "b"}, {"ab", "ab"}, {"abab", "abab"}, {"b", "a"}});
  const Tokenizer tokenizer = make(description);
  std::string text;
  for (int i = 0; i < 500000; ++i) text += "ab";
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  EXPECT_EQ(tokenizer.encode(text).size(), 125000U);
  const std::string spaces(200000, ' ');
  const Tokenizer qwen = Tokenizer::load(test::data_dir("tokenizer_qwen"));
  EXPECT_EQ(qwen.decode(qwen.encode(spaces + "x")), spaces + "x");
  const std::string letters(200000, 'q');
  EXPECT_EQ(qwen.decode(qwen.encode(letters)), letters);
  std::string marks = "e";  // each pair is in the wrong order
  std::string ordered = "\u1eb9";
  for (int i = 0; i < 50000; ++i) marks += "\u0301\u0323";
  for (int i = 0; i < 49999; ++i) ordered += "\u0323";
  for (int i = 0; i < 50000; ++i) ordered += "\u0301";
  EXPECT_EQ(qwen.decode(qwen.encode(marks)), ordered);
  EXPECT_LT(std::clock() - start, 20 * CLOCKS_PER_SEC);
}

TEST(Tokenizer, SeveralThreadsMayShareOne) {
  const Tokenizer tokenizer = Tokenizer::load(test::data_dir("tokenizer_qwen"));
  const std::string text = "caf\u00e9 <|im_start|>user\n 12 \u6e21\u8239 don't";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  threads.reserve(4);
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) wrong += tokenizer.encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, RefusesWhatIsNotSupportedByName) {
  const auto with = [](const char* path, const json& value) {
    json description = byte_tokenizer();
    description[json::json_pointer(path)] = value;
    return error_of(description);
  };
  EXPECT_THAT(with("/model/type", "Unigram"), HasSubstr("type: expected BPE, found \"Unigram\""));
  with("/model", nullptr);
  EXPECT_THAT(with("/model/byte_fallback", true), HasSubstr("false with ByteLevel"));
  with("/model/end_of_word_suffix", "</w>");
  with("/model/continuing_subword_prefix", "##");
  with("/model/dropout", 0.1);
  EXPECT_THAT(with("/normalizer", {{"type", "Lowercase"}}), HasSubstr("\"Lowercase\""));
  EXPECT_THAT(with("/pre_tokenizer", nullptr), HasSubstr("decoder"));  // ByteLevel's does not fit
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Whitespace"}}), HasSubstr("\"Whitespace\""));
  with("/pre_tokenizer", split_step("Isolated"));
  with("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", 3}});
  with(
      "/pre_tokenizer",
      {{"type", "Sequence"}, {"pretokenizers", {{{"type", "ByteLevel"}}, split_step("Isolated")}}});
  EXPECT_THAT(with("/pre_tokenizer", split_step("Sideways")), HasSubstr("Sideways"));
  json broken = split_step("Isolated");
  broken["pattern"] = {{"Regex", "(a"}};
  EXPECT_THAT(with("/pre_tokenizer", broken), HasSubstr("does not compile"));
  broken["pattern"] = {{"Regex", "\\C"}};  // could cut a character in two
  with("/pre_tokenizer", broken);
  with("/decoder", nullptr);
  EXPECT_THAT(with("/decoder", {{"type", "WordPiece"}}), HasSubstr("\"WordPiece\""));
  with("/decoder", {{"type", "Sequence"}, {"decoders", {{{"type", "Strip"}}}}});
  with("/post_processor", {{"type", "BertProcessing"}});
}

TEST(Tokenizer, RefusesDamagedTables) {
  json description = byte_tokenizer();
  description["model"]["vocab"].erase("a");
  EXPECT_THAT(error_of(description), HasSubstr("found none for 0x61"));
  description = byte_tokenizer();
  for (const json& id : {json(97), json(-1), json(1.5), json("x"), json(1U << 30)}) {
    description["model"]["vocab"]["zz"] = id;
    error_of(description);
  }
  description["model"]["vocab"]["zz"] = 256;
  for (const json& merge :
       {json("zz"), json("z q"), json(3), json({"z"}), json::array({"z", 3}), json("")}) {
    description["model"]["merges"] = {merge};
    EXPECT_THAT(error_of(description), HasSubstr("merges"));
  }
  description["model"]["merges"] = {"z z"};
  make(description);
  for (const json& token : {json(3),
                            json({{"content", "<s>"}}),
                            json({{"id", -1}, {"content", "<s>"}}),
                            json({{"id", 300}, {"content", ""}}),
                            json({{"id", 97}, {"content", "<s>"}}),     // taken by "a"
                            json({{"id", 300}, {"content", "zz"}})}) {  // has id 256
    description["added_tokens"] = {token};
    error_of(description);
  }
}

TEST(Tokenizer, FlippedBytesLoadOrThrow) {
  json description = byte_tokenizer();
  add_merges(description, {{"a", "b"}, {"b", "c"}});
  description["added_tokens"] = {added(258, "<s>")};
  description["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "\\s+|[a-c]+"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const std::string whole = description.dump();
  const std::size_t structure = whole.find("\"vocab\"");
  const std::string text_to_encode = "abc <s> \xff caf\u00e9";
  // Without spaces: a misspelt "add_prefix_space" is one that is not there, and so true.
  const std::string decoded = "abc<s>\ufffdcaf\u00e9";
  int loaded = 0;
  int refused = 0;
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    std::string text = whole;
    // Half of the flips go where the structure is, not into the long vocabulary.
    std::size_t at = random() % text.size();
    if (i % 2 == 0) at = at < text.size() / 2 ? at % structure : text.size() - 1 - at % 250;
    text[at] ^= static_cast<char>(1 + random() % 255);
    try {
      const Tokenizer tokenizer = Tokenizer::parse(text, "tokenizer.json");
      std::string found = tokenizer.decode(tokenizer.encode(text_to_encode));
      std::erase(found, ' ');
      EXPECT_EQ(found, decoded) << text;
      ++loaded;
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      ++refused;
    }
  }
  EXPECT_GT(loaded, 50);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace ferry
