// How many prompt tokens may run beside decodes, so that a long prompt does not hold up everybody
// else's next token.
#pragma once

#include <chrono>

namespace ferry {

/// Learns from the steps what a step of decodes alone takes and what a prompt token adds, and
/// allows as many prompt tokens as make a step kSlowdown times as long. Changes no result: a
/// sequence's tokens do not depend on how its prompt is cut. Threads: one at a time.
class PromptPacer {
 public:
  static constexpr double kSlowdown = 3;
  static constexpr int kLeast = 16;  ///< prompts go on whatever it costs

  /// `most`: prompt tokens that a rank's step holds at all. REQUIRES: most >= 1.
  explicit PromptPacer(int most);

  /// A step took `time`: `prompt_tokens` of the rank that had most of them, `decode_tokens` over
  /// all ranks.
  void observe(int prompt_tokens, int decode_tokens, std::chrono::nanoseconds time);

  /// Prompt tokens that a rank may run in a step that has decodes.
  int tokens() const;

 private:
  int most_;
  double decode_s_ = 0;  // 0: not known yet
  double token_s_ = 0;
};

}  // namespace ferry
