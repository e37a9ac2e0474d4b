#include "ferry/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/engine/token_weights.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// SplitMix64's finaliser: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// Blocks of one vocabulary that a thread takes at a time.
constexpr std::int64_t kGrain = 4;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

[[noreturn]] void refuse_logits(std::span<const float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == kInfinity) {
      fail<ModelError>(
          "logit of token id {} is {}, so no token can be chosen; the weights are damaged or "
          "overflow: check the checkpoint, or try --weights f32",
          i,
          logits[i]);
    }
  }
  fail<ModelError>(
      "none of the {} logits is finite, so no token can be chosen; check the checkpoint",
      logits.size());
}

/// What differences of logits are multiplied by. Bounded so that it and what it gives are numbers
/// for every logit: a banned one times nothing would be none.
float weight_factor(double temperature) {
  return static_cast<float>(std::clamp(1 / temperature, 1e-30, 1e30));
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    fail<ConfigError>("temperature {} is out of range: it must be 0 (greedy) or a positive number",
                      options.temperature);
  }
  if (options.top_k < 0)
    fail<ConfigError>("top-k {} is out of range: it must be 0 (all) or more", options.top_k);
  if (!(options.top_p > 0 && options.top_p <= 1))
    fail<ConfigError>("top-p {} is out of range: it must be above 0 and at most 1", options.top_p);
  if (!(options.min_p >= 0 && options.min_p <= 1))
    fail<ConfigError>("min-p {} is out of range: it must be 0 (all) to 1", options.min_p);
}

double uniform_number(std::uint64_t seed, std::uint64_t counter) noexcept {
  return static_cast<double>(mix(mix(seed) + counter) >> 11) * 0x1.0p-53;
}

/// One draw, in steps of which the first and the third may run on several threads: scan(), lead(),
/// weigh(), choose().
class Sampler::Row {
 public:
  void begin(Draw& draw) {
    draw_ = &draw;
    most_of_block_.resize(static_cast<std::size_t>(blocks()));
    if (random()) weights_.resize(draw.logits.size());
  }

  std::int64_t blocks() const { return ceil_div(std::ssize(draw_->logits), TokenWeights::kBlock); }

  /// One heaviest token is the leader, also where others have its weight for want of bits.
  bool random() const { return draw_->options->temperature > 0 && draw_->options->top_k != 1; }

  void scan(std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      const std::span<const float> part = block(b);
      most_of_block_[static_cast<std::size_t>(b)] =
          kernels().greatest(part.data(), std::ssize(part));
    }
  }

  /// The first token of those with the greatest logit.
  void lead() {
    most_ = -kInfinity;
    std::int64_t leader = -1;
    for (std::int64_t b = 0; b < blocks(); ++b) {
      const float most = most_of_block_[static_cast<std::size_t>(b)];
      if (std::isnan(most) || most == kInfinity) refuse_logits(draw_->logits);
      if (most <= most_) continue;
      most_ = most;
      leader = b;
    }
    if (leader < 0) refuse_logits(draw_->logits);
    const std::span<const float> part = block(leader);
    const auto at = std::find(part.begin(), part.end(), most_) - part.begin();
    draw_->token = static_cast<std::int32_t>(leader * TokenWeights::kBlock + at);
  }

  void weigh(std::int64_t first, std::int64_t last) {
    if (random())
      weights_.weigh(draw_->logits, first, last, most_, weight_factor(draw_->options->temperature));
  }

  /// Most draws from all tokens are of one that may be drawn, and to see that takes one count: only
  /// where it may not, what may is looked for, and one drawn of that.
  void choose() {
    if (!random()) return;
    const SamplingOptions& options = *draw_->options;
    const bool both = options.top_k > 0 && options.top_p < 1;
    TokenCut cut = weights_.all();
    draw_->token = draw(cut, draw_->index);
    if (both) {
      cut = weights_.heaviest(static_cast<std::uint64_t>(options.top_k));
      if (may_be_drawn(cut)) return;
      cut = weights_.with_share(cut, options.top_p);
    } else {
      if (may_be_drawn(cut)) return;
      if (options.top_k > 0) cut = weights_.heaviest(static_cast<std::uint64_t>(options.top_k));
      if (options.top_p < 1) cut = weights_.with_share(cut, options.top_p);
    }
    cut = weights_.at_least(cut, least_weight());
    draw_->token = draw(cut, ~draw_->index);
  }

 private:
  /// The token's weight relative to that of the leader, which is 1.
  std::uint32_t least_weight() const {
    return static_cast<std::uint32_t>(std::ceil(draw_->options->min_p * (1U << kWeightBits)));
  }

  std::int32_t draw(const TokenCut& cut, std::uint64_t counter) const {
    const double place =
        uniform_number(draw_->options->seed, counter) * static_cast<double>(cut.sum);
    return weights_.at(cut, std::min(static_cast<std::uint64_t>(place), cut.sum - 1));
  }

  /// `cut`: what top-p takes its share of.
  bool may_be_drawn(const TokenCut& cut) const {
    const SamplingOptions& options = *draw_->options;
    if (weights_.weight(draw_->token) < least_weight()) return false;
    if (options.top_k == 0 && options.top_p == 1) return true;
    const TokenMass before = weights_.before(draw_->token);
    if (options.top_k > 0 && before.tokens >= static_cast<std::uint64_t>(options.top_k))
      return false;
    return options.top_p == 1 || before.sum < share_of(cut, options.top_p);
  }

  std::span<const float> block(std::int64_t b) const {
    const std::int64_t begin = b * TokenWeights::kBlock;
    const std::int64_t n = std::min(TokenWeights::kBlock, std::ssize(draw_->logits) - begin);
    return draw_->logits.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
  }

  Draw* draw_ = nullptr;
  float most_ = 0;
  std::vector<float> most_of_block_;
  TokenWeights weights_;
};

Sampler::Sampler(ThreadPool& pool) : pool_(pool) {
  for (int i = 0; i < pool.size(); ++i) rows_.push_back(std::make_unique<Row>());
}

Sampler::~Sampler() = default;

void Sampler::sample(std::span<Draw> draws) {
  const std::int64_t n = std::ssize(draws);
  if (n >= pool_.size()) {
    pool_.parallel_for(n, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
      Row& row = *rows_[static_cast<std::size_t>(worker)];
      for (std::int64_t i = begin; i < end; ++i) {
        row.begin(draws[static_cast<std::size_t>(i)]);
        row.scan(0, row.blocks());
        row.lead();
        row.weigh(0, row.blocks());
        row.choose();
      }
    });
    return;
  }
  // In turn, so that the caches are each one's own while it is drawn.
  for (Draw& draw : draws) {
    Row& row = *rows_.front();
    row.begin(draw);
    pool_.parallel_for(row.blocks(), kGrain, [&](std::int64_t first, std::int64_t last, int) {
      row.scan(first, last);
    });
    row.lead();
    if (!row.random()) continue;
    pool_.parallel_for(row.blocks(), kGrain, [&](std::int64_t first, std::int64_t last, int) {
      row.weigh(first, last);
    });
    row.choose();
  }
}

}  // namespace ferry
