// Tokenizers and templates of GGUF files: those that Hugging Face's library answers for, put into
// such files, give the same ids.
#include <gmock/gmock.h>

#include <map>
#include <nlohmann/json.hpp>

#include "checkpoint/gguf_bytes.h"
#include "ferry/core/error.h"
#include "ferry/text/chat_template.h"
#include "ferry/text/tokenizer.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::GgufBytes;
using testing::HasSubstr;

using Ids = std::vector<std::int32_t>;

constexpr std::int32_t kNormal = 1;
constexpr std::int32_t kUnknown = 2;
constexpr std::int32_t kControl = 3;
constexpr std::int32_t kUserDefined = 4;
constexpr std::int32_t kUnused = 5;
constexpr std::int32_t kByte = 6;

json json_file(const std::string& name, const char* file) {
  return json::parse(test::read_file(test::data_dir(name) / file));
}

struct Tokens {
  std::vector<std::string> texts;
  std::vector<std::int32_t> kinds;
};

/// With two more ids than tokens, as padding.
Tokens tokens_of(const json& tokenizer) {
  std::map<std::int32_t, std::pair<std::string, std::int32_t>> all;
  for (const auto& [text, id] : tokenizer["model"]["vocab"].items()) {
    const bool byte = text.size() == 6 && text.starts_with("<0x");
    all[id.get<std::int32_t>()] = {text, byte ? kByte : kNormal};
  }
  for (const json& token : tokenizer["added_tokens"]) {
    const auto text = token["content"].get<std::string>();
    const std::int32_t special = text == "<unk>" ? kUnknown : kControl;
    all[token["id"].get<std::int32_t>()] = {text, token["special"] ? special : kUserDefined};
  }
  Tokens tokens;
  for (std::int32_t id = 0; id < all.rbegin()->first + 3; ++id) {
    const auto it = all.find(id);
    tokens.texts.push_back(it == all.end() ? "[PAD" + std::to_string(id) + "]" : it->second.first);
    tokens.kinds.push_back(it == all.end() ? kUnused : it->second.second);
  }
  return tokens;
}

/// Byte-level BPE, cut as `pre` names it. `last`: a token more, which no merge makes.
GgufBytes byte_pairs(const std::string& directory,
                     const std::string& pre,
                     const std::string& last = "") {
  const json tokenizer = json_file(directory, "tokenizer.json");
  Tokens tokens = tokens_of(tokenizer);
  if (!last.empty()) {
    tokens.texts.back() = last;
    tokens.kinds.back() = kNormal;
  }
  std::vector<std::string> merges;
  for (const json& merge : tokenizer["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  GgufBytes file = test::small_gguf();
  file.text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", pre)
      .texts("tokenizer.ggml.tokens", tokens.texts)
      .integers("tokenizer.ggml.token_type", tokens.kinds)
      .texts("tokenizer.ggml.merges", merges);
  return file;
}

class GgufTokenizer : public testing::Test {
 protected:
  std::filesystem::path write(const GgufBytes& file) const {
    test::write_file(dir_.path() / "m.gguf", file.bytes());
    return dir_.path() / "m.gguf";
  }

  std::string error(const GgufBytes& file) const {
    return test::message_of<ModelError>([&] { Tokenizer::load(write(file)); });
  }

 private:
  test::TempDir dir_;
};

TEST_F(GgufTokenizer, CutsTextsAsItsNameSays) {
  for (const auto& [directory, pre] : {std::pair{"tokenizer_qwen", "qwen2"},
                                       {"tokenizer_gpt2", "gpt-2"},
                                       {"tokenizer_glm", "glm4"},
                                       {"tokenizer_glm", "llama-bpe"},
                                       {"tokenizer_o200k", "gpt-4o"},
                                       {"tokenizer_o200k", "llama4"},
                                       {"tokenizer_qwen35", "qwen35"},
                                       {"tokenizer_tekken", "tekken"},
                                       {"tokenizer_deepseek_v2", "deepseek-llm"},
                                       {"tokenizer_deepseek_v3", "deepseek-v3"}}) {
    const auto path = write(byte_pairs(directory, pre));
    ASSERT_TRUE(Tokenizer::exists(path));
    const Tokenizer tokenizer = Tokenizer::load(path);
    for (const json& item : json_file(directory, "golden.json")) {
      const auto text = item["text"].get<std::string>();
      const auto ids = item["ids"].get<Ids>();
      EXPECT_EQ(tokenizer.encode(text, /*add_special=*/false), ids) << pre << ": " << text;
      EXPECT_EQ(tokenizer.decode(ids), item["decoded"].get<std::string>()) << pre;
    }
    EXPECT_FALSE(tokenizer.has_token(tokenizer.size())) << "padding is no token";
  }
}

/// Kimi's tokens are merged by rank; the file has the two that make each.
TEST_F(GgufTokenizer, CutsTextsAsTiktokenDoes) {
  const json pairs = json_file("tokenizer_kimi", "byte_pairs.json");
  const auto tokens = pairs["tokens"].get<std::vector<std::string>>();
  std::vector<std::int32_t> kinds(tokens.size(), kNormal);
  std::fill(kinds.end() - 3, kinds.end(), kControl);
  GgufBytes file = test::small_gguf();
  file.text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "kimi-k2")
      .texts("tokenizer.ggml.tokens", tokens)
      .integers("tokenizer.ggml.token_type", kinds)
      .texts("tokenizer.ggml.merges", pairs["merges"].get<std::vector<std::string>>());
  const Tokenizer tokenizer = Tokenizer::load(write(file));
  for (const json& item : json_file("tokenizer_kimi", "golden.json")) {
    const auto text = item["text"].get<std::string>();
    const auto ids = item["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text, /*add_special=*/false), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids), item["decoded"].get<std::string>());
  }
}

TEST_F(GgufTokenizer, SomeNamesBeginTextsAndTakeWholeWords) {
  const std::string word = "zqxzq";
  const json tokenizer = json_file("tokenizer_qwen", "tokenizer.json");
  const auto whole = static_cast<std::int32_t>(tokens_of(tokenizer).texts.size()) - 1;
  const auto bos = tokenizer["added_tokens"][0]["id"].get<std::int32_t>();
  for (const auto& [pre, does] :
       {std::pair{"llama-bpe", true}, {"tekken", true}, {"gpt-4o", false}}) {
    GgufBytes file = byte_pairs("tokenizer_qwen", pre, word);
    file.integer("tokenizer.ggml.bos_token_id", bos);
    const Ids ids = Tokenizer::load(write(file)).encode(word);
    if (does)
      EXPECT_EQ(ids, (Ids{bos, whole})) << pre;
    else
      EXPECT_GT(ids.size(), 2U) << pre;
    file.flag("tokenizer.ggml.add_bos_token", !does);
    EXPECT_EQ(Tokenizer::load(write(file)).encode(word).front() == bos, !does) << pre;
  }
}

/// Scores as SentencePiece has them, by the merge that first makes a token. No token of this
/// vocabulary can be cut in two tokens in another way.
TEST_F(GgufTokenizer, OfScoresMergesAsSentencePieceDoes) {
  const json tokenizer = json_file("tokenizer_mixtral", "tokenizer.json");
  const Tokens tokens = tokens_of(tokenizer);
  std::map<std::string, float> scores;
  for (const json& merge : tokenizer["model"]["merges"]) {
    std::string token = merge.get<std::string>();
    token.erase(token.find(' '), 1);
    scores.emplace(token, -static_cast<float>(scores.size() + 1));
  }
  std::vector<float> list;
  for (const std::string& text : tokens.texts)
    list.push_back(scores.contains(text) ? scores[text] : -10000.0F);
  GgufBytes file = test::small_gguf();
  file.text("tokenizer.ggml.model", "llama")
      .texts("tokenizer.ggml.tokens", tokens.texts)
      .integers("tokenizer.ggml.token_type", tokens.kinds)
      .numbers("tokenizer.ggml.scores", list)
      .integer("tokenizer.ggml.bos_token_id", 1)
      .integer("tokenizer.ggml.unknown_token_id", 0);
  const Tokenizer own = Tokenizer::load(write(file));
  for (const json& item : json_file("tokenizer_mixtral", "golden.json")) {
    const auto text = item["text"].get<std::string>();
    Ids ids = item["ids"].get<Ids>();
    EXPECT_EQ(own.encode(text, /*add_special=*/false), ids) << text;
    EXPECT_EQ(own.decode(ids), item["decoded"].get<std::string>());
    ids.insert(ids.begin(), 1);
    EXPECT_EQ(own.encode(text), ids) << "a text begins with the first token";
  }
  file.flag("tokenizer.ggml.add_bos_token", false).flag("tokenizer.ggml.add_space_prefix", false);
  const Tokenizer bare = Tokenizer::load(write(file));
  EXPECT_EQ(bare.decode(bare.encode(" a")), " a");
}

TEST_F(GgufTokenizer, BeginsAndEndsTextsWhereTheFileSaysSo) {
  GgufBytes file = byte_pairs("tokenizer_qwen", "qwen2");
  const Ids plain = Tokenizer::load(write(file)).encode("abc");
  file.integer("tokenizer.ggml.bos_token_id", 1180).integer("tokenizer.ggml.eos_token_id", 1182);
  EXPECT_EQ(Tokenizer::load(write(file)).encode("abc"), plain);
  file.flag("tokenizer.ggml.add_bos_token", true).flag("tokenizer.ggml.add_eos_token", true);
  Ids around = plain;
  around.insert(around.begin(), 1180);
  around.push_back(1182);
  EXPECT_EQ(Tokenizer::load(write(file)).encode("abc"), around);
}

TEST_F(GgufTokenizer, HasTheTemplatesOfTheFile) {
  const auto messages = nlohmann::ordered_json::parse(R"([{"role": "user", "content": "Hi"}])");
  GgufBytes file = byte_pairs("tokenizer_qwen", "qwen2");
  EXPECT_FALSE(ChatTemplate::load(write(file)));
  file.integer("tokenizer.ggml.eos_token_id", 1182)
      .text("tokenizer.chat_template", "{{ messages[0].content }}{{ eos_token }}")
      .text("tokenizer.chat_template.tool_use", "tools");
  const ChatTemplate chat = ChatTemplate::load(write(file)).value();
  EXPECT_EQ(chat.render(messages), "Hi<|im_end|>");
  const auto tools = nlohmann::ordered_json::array();
  EXPECT_EQ(chat.render(messages, {.tools = &tools}), "tools");
}

TEST_F(GgufTokenizer, WhatIsNotSupportedIsRefusedByName) {
  const GgufBytes whole = byte_pairs("tokenizer_qwen", "qwen2");
  EXPECT_THAT(error(byte_pairs("tokenizer_qwen", "superbpe")),
              HasSubstr("\"tokenizer.ggml.pre\": expected one of qwen2, hunyuan"));
  const auto with_model = [](std::string_view model) {
    GgufBytes file = test::small_gguf();
    return file.text("tokenizer.ggml.model", model);
  };
  EXPECT_THAT(error(test::small_gguf()), HasSubstr("expected a tokenizer, found none"));
  EXPECT_THAT(error(with_model("rwkv")),
              HasSubstr("\"tokenizer.ggml.model\": expected gpt2 or llama, found \"rwkv\""));
  EXPECT_THAT(error(with_model("gpt2")), HasSubstr("\"tokenizer.ggml.tokens\": expected"));
  EXPECT_THAT(error(with_model("llama").texts("tokenizer.ggml.tokens", {"a"})),
              HasSubstr("\"tokenizer.ggml.scores\": expected a list of numbers"));
  EXPECT_THAT(error(with_model("llama")
                        .texts("tokenizer.ggml.tokens", {"a"})
                        .numbers("tokenizer.ggml.scores", {std::nanf("")})),
              HasSubstr("expected finite numbers"));
  EXPECT_THAT(error(with_model("llama")
                        .texts("tokenizer.ggml.tokens", {"a", "b"})
                        .numbers("tokenizer.ggml.scores", {1})),
              HasSubstr("expected one for each of 2 tokens, found a list of 1 numbers"));
  EXPECT_THAT(error(with_model("llama")
                        .texts("tokenizer.ggml.tokens", {"a", "a"})
                        .numbers("tokenizer.ggml.scores", {1, 2})),
              HasSubstr("each token once, but \"a\" is there twice"));
  EXPECT_THAT(error(with_model("llama")
                        .texts("tokenizer.ggml.tokens", {"\xff"})
                        .numbers("tokenizer.ggml.scores", {1})),
              HasSubstr("expected texts in UTF-8"));
  GgufBytes outside = whole;
  outside.integer("tokenizer.ggml.bos_token_id", 99999).flag("tokenizer.ggml.add_bos_token", true);
  EXPECT_THAT(error(outside), HasSubstr("\"tokenizer.ggml.bos_token_id\": expected a token below"));
}

}  // namespace
}  // namespace ferry
