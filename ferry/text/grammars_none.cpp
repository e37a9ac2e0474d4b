// Where scripts/setup.sh has not brought xgrammar.
#include "ferry/core/error.h"
#include "ferry/text/grammars.h"

namespace ferry {

namespace {

[[noreturn]] void refuse() {
  fail<ConfigError>(
      "this program was built without grammars (json_schema, regex, ...); build it again behind "
      "scripts/setup.sh, which brings xgrammar");
}

}  // namespace

class Grammars::Impl {};

bool Grammars::built_in() { return false; }

Grammars::Grammars(const Tokenizer& /*tokenizer*/,
                   int /*vocab*/,
                   std::span<const std::int32_t> /*eos_ids*/) {}

Grammars::~Grammars() = default;

void Grammars::check(const GrammarText& /*grammar*/) { refuse(); }

std::unique_ptr<GrammarState> Grammars::begin(const GrammarText& /*grammar*/) { refuse(); }

std::size_t Grammars::kept_bytes() const { return 0; }

}  // namespace ferry
