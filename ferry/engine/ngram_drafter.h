// Drafts of the tokens that a sequence will give next, taken from its own text: its newest tokens
// are looked for earlier in it, and what followed them there is the draft (prompt lookup).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

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

/// Of one sequence. What it says changes no token that the sequence gives, only how many steps that
/// takes. Pure logic; threads: one at a time.
class NgramDrafter {
 public:
  explicit NgramDrafter(const DraftOptions& options);

  /// Up to `most` tokens that may follow `ids`: those behind the place where most of the newest
  /// tokens stand, the latest of such places. Empty where there is none. REQUIRES: `ids` begins
  /// with those of the last call.
  std::vector<std::int32_t> draft(std::span<const std::int32_t> ids, int most);

  /// As DraftLength.
  void learn(int tokens, int right) { length_.learn(tokens, right); }

 private:
  void add_places(std::span<const std::int32_t> ids);
  std::size_t bucket(const std::int32_t* run) const;
  std::int64_t find(std::span<const std::int32_t> ids) const;

  DraftOptions options_;
  DraftLength length_;
  // A chain for each bucket of runs of the shortest length: ends of runs, the latest first; 0: no
  // more.
  std::vector<std::int32_t> latest_;  // [a power of two]
  std::vector<std::int32_t> before_;  // [end]: the one before in its chain
};

}  // namespace ferry
