// Grammars over a tokenizer's vocabulary: which tokens may come next, so that a generated text is
// one that a JSON schema, a regular expression or a grammar allows. The work is xgrammar's, which
// scripts/setup.sh brings; without it every grammar is refused in one line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ferry/grammar_text.h"

namespace ferry {

class Tokenizer;

/// One text's place in a grammar: a function of the tokens so far alone. A token that the grammar
/// did not allow (where others banned all that it does), and all tokens behind it or behind the end
/// of text, are free. Must not outlive its Grammars. Threads: one at a time.
class GrammarState {
 public:
  virtual ~GrammarState() = default;
  GrammarState& operator=(const GrammarState&) = delete;

  virtual std::unique_ptr<GrammarState> fork() const = 0;

  /// The next token. The mask for what may follow is computed on another thread from now on.
  virtual void advance(std::int32_t token) = 0;

  /// Takes the last tokens back. REQUIRES: so many have come.
  virtual void roll_back(std::size_t tokens) = 0;

  /// Makes the logits of all tokens that must not come next -infinity. An end of text may come
  /// where the text is complete, and only there.
  virtual void mask(std::span<float> logits) = 0;

 protected:
  GrammarState() = default;
  GrammarState(const GrammarState&) = default;
};

/// The grammars of one tokenizer and model, compiled when they are first used and kept while there
/// is room. Starts threads with its first grammar, not before. Threads: any.
class Grammars {
 public:
  /// Whether this build knows any grammar.
  static bool built_in();

  /// Borrows the tokenizer. `vocab`: ids of the model, of which the tokenizer may lack some. A text
  /// ends with one of `eos_ids`.
  Grammars(const Tokenizer& tokenizer, int vocab, std::span<const std::int32_t> eos_ids);
  ~Grammars();

  /// Compiles it. Throws ConfigError that says in one line why this cannot be: what it asks for is
  /// not supported, or it takes too long.
  void check(const GrammarText& grammar);

  /// The place before the first token. REQUIRES: the grammar has passed check(), here or in another
  /// process; then it is compiled while others work, and waited for by mask().
  std::unique_ptr<GrammarState> begin(const GrammarText& grammar);

  /// What compiled grammars that are kept take, roughly.
  std::size_t kept_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
