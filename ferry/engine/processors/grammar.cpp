// Structured output: the text is one that a grammar allows (vLLM's structured_outputs, SGLang's
// json_schema, regex, ebnf and structural_tag, OpenAI's response_format). The integer is the kind,
// the text the grammar. It binds: where other processors ban all that it allows, they count for
// nothing, and it still does.
#include "ferry/core/error.h"
#include "ferry/logits_processor.h"
#include "ferry/text/grammars.h"

namespace ferry {

namespace {

class GrammarMask final : public LogitsProcessor {
 public:
  explicit GrammarMask(std::unique_ptr<GrammarState> state) : state_(std::move(state)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<GrammarMask>(state_->fork());
  }

  void apply(std::span<float> logits, const TokenHistory& /*history*/) const override {
    state_->mask(logits);
  }

  void advance(std::int32_t token) override { state_->advance(token); }

  void roll_back(std::span<const std::int32_t> tokens) override {
    state_->roll_back(tokens.size());
  }

 private:
  std::unique_ptr<GrammarState> state_;
};

GrammarText grammar_of(const ProcessorOptions& options) {
  return {.kind = static_cast<GrammarText::Kind>(options.integers[0]), .text = options.text};
}

void read_grammar(const RequestMembers& members, ProcessorOptions& options) {
  auto grammar = members.grammar();
  if (!grammar) return;
  options.integers = {static_cast<std::int32_t>(grammar->kind)};
  options.text = std::move(grammar->text);
}

void check_grammar(const ProcessorOptions& options,
                   const Request& /*request*/,
                   const ProcessorContext& model) {
  constexpr auto kLast = static_cast<std::int32_t>(GrammarText::Kind::structural_tag);
  if (options.integers.size() != 1 || !options.numbers.empty() || options.integers[0] < 0 ||
      options.integers[0] > kLast)
    fail<ConfigError>("grammar takes its kind and its text");
  if (model.grammars == nullptr)
    fail<ConfigError>("a grammar needs a tokenizer, which this model has not");
}

void prepare_grammar(const ProcessorOptions& options, const ProcessorContext& model) {
  model.grammars->check(grammar_of(options));
}

std::unique_ptr<LogitsProcessor> make_grammar(const ProcessorOptions& options,
                                              const Request& /*request*/,
                                              const ProcessorContext& model) {
  return std::make_unique<GrammarMask>(model.grammars->begin(grammar_of(options)));
}

}  // namespace

const ProcessorKind& grammar_processor() {
  static const ProcessorKind kind{.name = "grammar",
                                  .read = read_grammar,
                                  .check = check_grammar,
                                  .make = make_grammar,
                                  .prepare = prepare_grammar,
                                  .binds = true};
  return kind;
}

}  // namespace ferry
