// `bad_words` (vLLM): sequences of tokens of which none is completed: where all but its last token
// have just been generated, that one is not chosen (apply_bad_words of
// vllm/v1/sample/ops/bad_words.py). The integers are each sequence's length and its ids.
#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

constexpr const char* kBadWords = "bad_words";

using Words = std::vector<std::vector<std::int32_t>>;

class BadWords final : public LogitsProcessor {
 public:
  explicit BadWords(Words words) : words_(std::move(words)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<BadWords>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& history) const override {
    for (const std::vector<std::int32_t>& word : words_) {
      const auto begun = std::span(word).first(word.size() - 1);
      if (history.generated.size() >= begun.size() &&
          std::ranges::equal(history.generated.last(begun.size()), begun))
        logits[static_cast<std::size_t>(word.back())] = kBanned;
    }
  }

 private:
  Words words_;
};

/// Throws ConfigError where the integers are no lengths and ids.
Words words_of(const ProcessorOptions& options) {
  Words words;
  for (std::size_t at = 0; at < options.integers.size();) {
    const std::int32_t length = options.integers[at++];
    if (length < 1 || static_cast<std::size_t>(length) > options.integers.size() - at)
      fail<ConfigError>("{} takes sequences of token ids, each behind its length", kBadWords);
    const auto begin = options.integers.begin() + static_cast<std::ptrdiff_t>(at);
    words.emplace_back(begin, begin + length);
    at += static_cast<std::size_t>(length);
  }
  return words;
}

void read_bad_words(const RequestMembers& members, ProcessorOptions& options) {
  const auto words = members.words(kBadWords);
  if (!words) return;
  options.integers.clear();
  for (const std::vector<std::int32_t>& word : *words) {
    if (word.empty()) fail<ConfigError>("a word of \"{}\" is empty", kBadWords);
    options.integers.push_back(static_cast<std::int32_t>(word.size()));
    options.integers.insert(options.integers.end(), word.begin(), word.end());
  }
}

void check_bad_words(const ProcessorOptions& options,
                     const Request& /*request*/,
                     const ProcessorContext& model) {
  if (!options.numbers.empty())
    fail<ConfigError>("{} takes sequences of token ids and nothing else", kBadWords);
  for (const std::vector<std::int32_t>& word : words_of(options)) {
    for (const std::int32_t id : word)
      if (id < 0 || id >= model.vocab)
        fail<ConfigError>(
            "{}: token id {} is outside the vocabulary 0..{}", kBadWords, id, model.vocab - 1);
  }
}

std::unique_ptr<LogitsProcessor> make_bad_words(const ProcessorOptions& options,
                                                const Request& /*request*/,
                                                const ProcessorContext& /*model*/) {
  return std::make_unique<BadWords>(words_of(options));
}

}  // namespace

const ProcessorKind& bad_words_processor() {
  static const ProcessorKind kind{.name = "bad_words",
                                  .read = read_bad_words,
                                  .check = check_bad_words,
                                  .make = make_bad_words};
  return kind;
}

}  // namespace ferry
