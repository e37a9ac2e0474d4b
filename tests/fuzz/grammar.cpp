// A grammar of a client: its kind in the first line and its text up to a zero byte. Each byte
// behind it chooses one of the tokens that may come next. A token that was taken back leaves the
// mask that was, and there is always one that may come.
#include <array>
#include <cmath>
#include <vector>

#include "ferry/text/grammars.h"
#include "ferry/text/tokenizer.h"
#include "fuzz/fuzz_entry.h"
#include "support/paths.h"

namespace {

constexpr std::int32_t kEos = 640;
constexpr int kVocab = 656;
constexpr std::size_t kLongestWalk = 64;

using ferry::GrammarText;

bool find_kind(std::string_view name, GrammarText::Kind& kind) {
  constexpr std::array<std::string_view, 5> kNames = {
      "json", "json_schema", "regex", "ebnf", "structural_tag"};
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  kind = static_cast<GrammarText::Kind>(found - kNames.begin());
  return found != kNames.end();
}

std::vector<std::int32_t> allowed(ferry::GrammarState& state) {
  std::vector<float> logits(kVocab, 0.0F);
  state.mask(logits);
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; id < kVocab; ++id)
    if (std::isfinite(logits[static_cast<std::size_t>(id)])) ids.push_back(id);
  return ids;
}

void walk(ferry::GrammarState& state, std::string_view choices) {
  std::vector<std::int32_t> ids = allowed(state);
  for (const char choice : choices.substr(0, kLongestWalk)) {
    if (ids.empty()) {
      std::fprintf(stderr, "no token may come next\n");
      std::abort();
    }
    const std::int32_t id = ids[static_cast<unsigned char>(choice) * 31 % ids.size()];
    state.advance(id);
    state.roll_back(1);
    if (allowed(state) != ids) {
      std::fprintf(stderr, "a token that was taken back left its trace\n");
      std::abort();
    }
    if (id == kEos) return;
    state.advance(id);
    ids = allowed(state);
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto tokenizer =
      ferry::Tokenizer::load(ferry::test::source_dir() / "assets" / "demo-moe");
  static ferry::Grammars grammars(tokenizer, kVocab, std::vector<std::int32_t>{kEos});
  const auto [text, choices] = ferry::test::halves_of(ferry::test::text_of(data, size));
  const std::size_t line = std::min(text.find('\n'), text.size());
  GrammarText grammar;
  if (!find_kind(text.substr(0, line), grammar.kind)) return 0;
  grammar.text = text.substr(std::min(line + 1, text.size()));
  ferry::test::run_on_input([&, choices = choices] {
    grammars.check(grammar);
    const auto state = grammars.begin(grammar);
    walk(*state, choices);
  });
  return 0;
}
