// A tokenizer.json or, behind a first line that is no JSON, a tiktoken file and (after a zero byte)
// its tokenizer_config.json. What loads encodes and decodes.
#include "ferry/text/tokenizer.h"

#include "fuzz/fuzz_entry.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using ferry::Tokenizer;
  const std::string_view input = ferry::test::text_of(data, size);
  ferry::test::run_on_input([&] {
    const auto [ranks, config] = ferry::test::halves_of(input);
    const Tokenizer tokenizer =
        input.starts_with('{')
            ? Tokenizer::parse(input, "tokenizer.json")
            : Tokenizer::parse_tiktoken(ranks, "tiktoken.model", config, "tokenizer_config.json");
    constexpr std::string_view kSample =
        " Hello\u2581 <s>  World's 12345\r\n\n \u6e21\u8239\u3002 e\u0301 \U0001f600\xff<|end|> ";
    std::string text(kSample);
    text += input.substr(input.size() - std::min<std::size_t>(input.size(), 64));
    const auto ids = tokenizer.encode(text);
    tokenizer.decode(ids);
    ferry::StreamDecoder stream(tokenizer);
    for (const std::int32_t id : ids) stream.put(id);
    stream.finish();
  });
  return 0;
}
