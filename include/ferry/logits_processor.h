// What an author of a logits processor writes against. A processor changes the logits of one
// sequence between the model and the sampler: penalties, biases, bans, the mask of a grammar.
// logits_chain.h runs those that a request asks for; docs/logits_processors.md says how to add one.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ferry/export.h"
#include "ferry/grammar_text.h"

namespace ferry {

class Grammars;
struct Request;

/// A banned token's logit: no sampler chooses it.
inline constexpr float kBanned = -std::numeric_limits<float>::infinity();

/// The tokens of a sequence so far. Borrowed for the call.
struct TokenHistory {
  std::span<const std::int32_t> prompt;
  std::span<const std::int32_t> generated;
};

/// One processor of one sequence. Its state is a function of its options, the prompt and the
/// generated tokens alone, however those came about: token by token, with some taken back, by a
/// fork, or all at once on another rank. So results depend on neither batch nor ranks. Threads: one
/// at a time.
class LogitsProcessor {
 public:
  virtual ~LogitsProcessor() = default;

  /// A processor in the same state, which goes its own way from here.
  virtual std::unique_ptr<LogitsProcessor> fork() const = 0;

  /// Changes the logits that choose the token behind `history`, of which advance() and roll_back()
  /// have told. Finite logits stay finite or become kBanned; logits that are banned stay so.
  virtual void apply(std::span<float> logits, const TokenHistory& history) const = 0;

  /// `token` was generated. A processor that looks at the history alone has nothing to do.
  virtual void advance(std::int32_t /*token*/) {}

  /// The last generated tokens, oldest first, are taken back.
  virtual void roll_back(std::span<const std::int32_t> /*tokens*/) {}

 protected:
  LogitsProcessor() = default;
  LogitsProcessor(const LogitsProcessor&) = default;
  LogitsProcessor& operator=(const LogitsProcessor&) = delete;
};

/// Which processor a request asks for, and its numbers: plain data that travels with the request to
/// its home rank. What they mean is the processor's affair. Without any it has no effect.
struct ProcessorOptions {
  std::string name;
  std::vector<std::int32_t> integers;
  std::vector<float> numbers;
  std::string text = {};

  bool has_effect() const { return !integers.empty() || !numbers.empty() || !text.empty(); }

  bool operator==(const ProcessorOptions&) const = default;
};

/// Members of a caller's request by the names that its API gives them, be it JSON or flags. All
/// throw ConfigError, which names the member, for what is of another type.
class RequestMembers {
 public:
  virtual ~RequestMembers() = default;
  virtual std::optional<double> number(const char* name) const = 0;
  virtual std::optional<std::int64_t> integer(const char* name) const = 0;
  virtual std::optional<std::vector<std::int32_t>> token_ids(const char* name) const = 0;
  /// {"id": number, ...}
  virtual std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* name) const = 0;
  /// Sequences of tokens, each that of a text.
  virtual std::optional<std::vector<std::vector<std::int32_t>>> words(const char* name) const = 0;

  /// What the text must match, by whatever members the API has for that. None has any by default.
  virtual std::optional<GrammarText> grammar() const { return std::nullopt; }

 protected:
  RequestMembers() = default;
  RequestMembers(const RequestMembers&) = default;
  RequestMembers& operator=(const RequestMembers&) = delete;
};

/// What processors know of the model.
struct ProcessorContext {
  // Most processors, and callers without grammars, need the vocabulary's size alone.
  ProcessorContext(int vocab_size, Grammars* of_vocabulary = nullptr)  // NOLINT: implicit
      : vocab(vocab_size), grammars(of_vocabulary) {}

  int vocab;
  Grammars* grammars;  ///< borrowed; null: there are none, since there is no tokenizer
};

/// A row of the table of processors.
struct ProcessorKind {
  const char* name;

  /// Changes `options` by the members that are there. Leaves them without numbers where the
  /// processor has no effect. Throws ConfigError for values out of range.
  void (*read)(const RequestMembers& members, ProcessorOptions& options);

  /// Throws ConfigError for options that make() cannot take. REQUIRES: they have numbers.
  void (*check)(const ProcessorOptions& options,
                const Request& request,
                const ProcessorContext& model);

  /// The processor before the first generated token. REQUIRES: check() has passed, here or on
  /// another rank.
  std::unique_ptr<LogitsProcessor> (*make)(const ProcessorOptions& options,
                                           const Request& request,
                                           const ProcessorContext& model);

  /// Does ahead what takes time, where the request comes in. Throws ConfigError where it comes to
  /// nothing. Null: there is nothing. REQUIRES: check() has passed.
  void (*prepare)(const ProcessorOptions& options, const ProcessorContext& model) = nullptr;

  /// Where all processors together ban every token, those that bind still count, and the others do
  /// not.
  bool binds = false;
};

/// For check(): throws ConfigError, naming `member`, unless all ids are inside the vocabulary, in
/// ascending order and different.
FERRY_API void check_ids(std::span<const std::int32_t> ids, const char* member, int vocab);

}  // namespace ferry
