#include "ferry/engine/ngram_drafter.h"

#include <algorithm>
#include <bit>

namespace ferry {

namespace {

/// Places of a chain that are looked at: a text of one word has as many as tokens.
constexpr int kMostPlaces = 64;
constexpr std::size_t kFewestBuckets = 64;

}  // namespace

NgramDrafter::NgramDrafter(const DraftOptions& options) : options_(options), length_(options) {}

std::size_t NgramDrafter::bucket(const std::int32_t* run) const {
  std::uint64_t hash = 0;
  for (int i = 0; i < options_.shortest_run; ++i)
    hash = (hash ^ static_cast<std::uint32_t>(run[i])) * 0x9e3779b97f4a7c15ULL;
  return static_cast<std::size_t>(hash >> 32U) & (latest_.size() - 1);
}

/// Of all runs that a token follows.
void NgramDrafter::add_places(std::span<const std::int32_t> ids) {
  if (ids.size() > latest_.size()) {
    latest_.assign(std::bit_ceil(std::max(2 * ids.size(), kFewestBuckets)), 0);
    before_.clear();
  }
  const auto shortest = static_cast<std::size_t>(options_.shortest_run);
  before_.resize(std::max(before_.size(), shortest), 0);
  for (std::size_t end = before_.size(); end < ids.size(); ++end) {
    std::int32_t& latest = latest_[bucket(ids.data() + end - shortest)];
    before_.push_back(latest);
    latest = static_cast<std::int32_t>(end);
  }
}

/// Where the run ends that has most in common with the newest tokens; 0: none has enough.
std::int64_t NgramDrafter::find(std::span<const std::int32_t> ids) const {
  const auto shortest = static_cast<std::size_t>(options_.shortest_run);
  std::int64_t best = 0;
  std::int64_t most = options_.shortest_run - 1;
  std::int32_t end = latest_[bucket(ids.data() + ids.size() - shortest)];
  for (int looked = 0; end > 0 && looked < kMostPlaces; ++looked) {
    const std::int64_t longest = std::min(options_.longest_run, end);
    std::int64_t same = 0;
    while (same < longest && ids[static_cast<std::size_t>(end - same - 1)] ==
                                 ids[ids.size() - static_cast<std::size_t>(same) - 1])
      ++same;
    if (same > most) {
      most = same;
      best = end;
    }
    if (same == options_.longest_run) break;
    end = before_[static_cast<std::size_t>(end)];
  }
  return best;
}

std::vector<std::int32_t> NgramDrafter::draft(std::span<const std::int32_t> ids, int most) {
  const int length = std::min(length_.tokens(), most);
  if (length <= 0 || ids.size() <= static_cast<std::size_t>(options_.shortest_run)) return {};
  add_places(ids);
  const std::int64_t from = find(ids);
  if (from == 0) return {};
  // What repeats a few tokens again and again goes on into the draft itself.
  std::vector<std::int32_t> tokens;
  for (auto i = static_cast<std::size_t>(from); std::ssize(tokens) < length; ++i)
    tokens.push_back(i < ids.size() ? ids[i] : tokens[i - ids.size()]);
  return tokens;
}

}  // namespace ferry
