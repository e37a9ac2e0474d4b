// The logits processors of one sequence, in the order of the table (CMakeLists.txt of this room).
// The model's logits come in, and what comes out is what the sampler chooses from. Hashes and log
// probabilities are of the model's own logits, before any processor.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "ferry/logits_processor.h"

namespace ferry {

/// Numbers, integers and others together, that all processors of a request may have.
inline constexpr std::size_t kMaxProcessorNumbers = 8192;

/// Bytes of their texts together, which are grammars.
inline constexpr std::size_t kMaxProcessorText = std::size_t{64} << 10U;

/// The table, in order of application.
std::span<const ProcessorKind* const> processor_kinds();

/// Changes the processors that a request asks for by the members that are there; those without
/// effect are left out. Throws ConfigError.
void read_processors(const RequestMembers& members, std::vector<ProcessorOptions>& processors);

/// Throws ConfigError where the request names an unknown processor or one twice, where its numbers
/// are out of range or too many, and where its processors ban every token from the beginning.
void check_processors(const Request& request, const ProcessorContext& model);

/// Empty, and free, for a request that asks for none. Where processors ban every token those that
/// bind (a grammar) count alone, and where these do, too, the model's logits stand: a sequence
/// always goes on. Threads: one at a time.
class LogitsChain {
 public:
  LogitsChain() = default;

  /// For a request that has generated some tokens already. Throws ConfigError as
  /// check_processors() does, except for the last reason.
  LogitsChain(const Request& request,
              std::span<const std::int32_t> generated,
              const ProcessorContext& model);

  bool empty() const { return processors_.empty(); }

  /// The logits to choose from: `logits` itself, or what the processors make of them in `scratch`.
  /// REQUIRES: `history` has as many generated tokens as the chain has been told of.
  std::span<const float> apply(std::span<const float> logits,
                               const TokenHistory& history,
                               std::vector<float>& scratch) const;

  /// Whether all processors together leave a token to choose.
  bool leaves_any(std::span<const float> logits,
                  const TokenHistory& history,
                  std::vector<float>& scratch) const;

  void advance(std::int32_t token);

  /// Takes back the last tokens of `generated`. REQUIRES: these are the tokens that it has been
  /// told of, at least `tokens` of them.
  void roll_back(std::span<const std::int32_t> generated, std::size_t tokens);

  LogitsChain fork() const;

 private:
  std::vector<std::unique_ptr<LogitsProcessor>> processors_;
  std::vector<const LogitsProcessor*> binding_;  // of these
  std::size_t generated_ = 0;                    // tokens that it has been told of; 0 while empty
};

}  // namespace ferry
