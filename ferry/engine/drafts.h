// Drafts: tokens that a sequence may give next, which run beside its one token. What is asked of
// them, wherever they come from, and how long they are.
#pragma once

#include <cstdint>
#include <string_view>

namespace ferry {

/// Where drafts come from.
enum class DraftSource : std::uint8_t {
  text,   ///< the sequence's own text (n-grams)
  layer,  ///< the model's layer that predicts further tokens (multi-token prediction)
};

struct DraftOptions {
  int tokens = 0;  ///< of a draft, at most; 0: there are none
  DraftSource source = DraftSource::text;
  int shortest_run = 2;  ///< that many of the newest tokens must stand earlier in the text
  int longest_run = 8;   ///< more of them are not compared

  bool on() const { return tokens > 0; }

  bool by_layer() const { return on() && source == DraftSource::layer; }
};

inline constexpr int kMostDraftTokens = 64;
inline constexpr int kLongestDraftRun = 64;

/// "ngram" or "mtp", as in `what` (a flag or a field). Throws ConfigError for another.
DraftSource parse_draft_source(std::string_view what, std::string_view name);

/// Throws ConfigError that names the flag, its range and what was found.
void check_drafts(const DraftOptions& options);

/// How long a sequence's next draft is to be: as long as it pays.
class DraftLength {
 public:
  explicit DraftLength(const DraftOptions& options)
      : most_(options.tokens), tokens_(options.tokens) {}

  int tokens() const { return tokens_; }

  /// The same where making a draft costs something, whatever comes true: 0 for some steps behind a
  /// second draft that was all wrong, and for twice as many and one more behind each further one,
  /// up to 31.
  int worth_making() const { return pause_ > 0 ? 0 : tokens_; }

  /// The sequence gave `right` of the `tokens` tokens of its draft.
  void learn(int tokens, int right);

  /// A step has gone by for which none was made.
  void rest() { pause_ = pause_ > 0 ? pause_ - 1 : 0; }

 private:
  int most_;
  int tokens_;
  int wrong_ = 0;  // drafts in a row of which nothing was right
  int pause_ = 0;  // steps
};

}  // namespace ferry
