// Tokenizers as Hugging Face's library and tiktoken have them (tools/make_golden.py).
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "ferry/text/tokenizer.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using testing::AnyOf;

using Ids = std::vector<std::int32_t>;

json golden_json(const std::string& name, const char* file) {
  return json::parse(test::read_file(test::data_dir(name) / file));
}

class GoldenTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTokenizer, EncodesAndDecodesAsHuggingFaceDoes) {
  const Tokenizer tokenizer = Tokenizer::load(test::data_dir(GetParam()));
  for (const json& item : golden_json(GetParam(), "golden.json")) {
    const auto text = item["text"].get<std::string>();
    const auto ids = item["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text, /*add_special=*/false), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids), item["decoded"].get<std::string>());
  }
}

TEST_P(GoldenTokenizer, DecodesPartsOfCharactersAsHuggingFaceDoes) {
  const Tokenizer tokenizer = Tokenizer::load(test::data_dir(GetParam()));
  for (const json& item : golden_json(GetParam(), "decode.json")) {
    const auto ids = item["ids"].get<Ids>();
    const auto decoded = item["decoded"].get<std::string>();
    EXPECT_EQ(tokenizer.decode(ids), decoded);
    StreamDecoder stream(tokenizer, /*skip_special=*/false);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += stream.put(id);
    streamed += stream.finish();
    EXPECT_THAT(streamed, AnyOf(decoded, " " + decoded));  // it goes on behind a prompt
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         GoldenTokenizer,
                         testing::Values("tokenizer_qwen",
                                         "tokenizer_gpt2",
                                         "tokenizer_mixtral",
                                         "tokenizer_metaspace",
                                         "tokenizer_o200k",
                                         "tokenizer_glm",
                                         "tokenizer_qwen35",
                                         "tokenizer_tekken",
                                         "tokenizer_deepseek_v3",
                                         "tokenizer_deepseek_v2",
                                         "tokenizer_kimi"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace ferry
