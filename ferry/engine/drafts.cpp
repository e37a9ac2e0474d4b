#include "ferry/engine/drafts.h"

#include <algorithm>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr int kMostWrong = 6;  // that are counted: a pause of 31 steps

}  // namespace

DraftSource parse_draft_source(std::string_view what, std::string_view name) {
  if (name == "ngram") return DraftSource::text;
  if (name == "mtp") return DraftSource::layer;
  fail<ConfigError>(
      "{} is ngram (drafts out of a sequence's own text) or mtp (by the checkpoint's layer that "
      "predicts further tokens), not \"{}\"",
      what,
      name);
}

void check_drafts(const DraftOptions& options) {
  if (options.tokens < 0 || options.tokens > kMostDraftTokens)
    fail<ConfigError>("drafts of {} tokens (--draft-tokens); 1 to {} are possible",
                      options.tokens,
                      kMostDraftTokens);
  if (options.shortest_run < 1 || options.longest_run < options.shortest_run ||
      options.longest_run > kLongestDraftRun)
    fail<ConfigError>(
        "drafts behind runs of {} to {} tokens (--draft-ngram-min, --draft-ngram-max); 1 to {} are "
        "possible, the shortest first",
        options.shortest_run,
        options.longest_run,
        kLongestDraftRun);
}

void DraftLength::learn(int tokens, int right) {
  tokens_ = right == tokens ? std::min(std::max(tokens_, 2 * tokens), most_) : std::max(right, 1);
  wrong_ = right > 0 ? 0 : std::min(wrong_ + 1, kMostWrong);
  pause_ = wrong_ > 0 ? (1 << (wrong_ - 1)) - 1 : 0;
}

}  // namespace ferry
