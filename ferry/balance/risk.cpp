// What makes a rank late is not its load over a window but its load in a step. So a rank is a row
// of loads, one for each sample of the window, and what exchanges lower is the sum over ranks and
// samples of the fourth powers of load over the sample's mean. Rows of experts that rise together
// add up (covariance), rows of an expert that varies stand out (variance).
#include <algorithm>
#include <cstddef>

#include "ferry/balance/policies.h"

namespace ferry {

namespace {

using Index = std::size_t;

class RiskSearch {
 public:
  RiskSearch(const LayerProblem& p, std::vector<ExpertId>& map)
      : p_(p),
        map_(map),
        ranks_(static_cast<Index>(p.topology.ranks)),
        per_rank_(static_cast<Index>(p.slots_per_rank)),
        samples_(p.samples.size() / p.load.size()),
        item_(map.size() * samples_, 0.0F),
        rank_(ranks_ * samples_, 0.0F),
        holds_(ranks_ * p.load.size(), 0),
        risk_(ranks_, 0.0F) {
    std::vector<float> scale(samples_, 0.0F);  // one over the mean of the ranks in each sample
    for (Index s = 0; s < samples_; ++s) {
      for (Index e = 0; e < p.load.size(); ++e) scale[s] += p.samples[s * p.load.size() + e];
      scale[s] = scale[s] > 0 ? static_cast<float>(ranks_) / scale[s] : 0;
    }
    std::vector<int> copies(p.load.size(), 0);
    for (const ExpertId e : map)
      if (e >= 0) ++copies[static_cast<Index>(e)];
    for (Index slot = 0; slot < map.size(); ++slot) {
      if (map[slot] < 0) continue;
      const auto e = static_cast<Index>(map[slot]);
      holds_[slot / per_rank_ * p.load.size() + e] = 1;
      for (Index s = 0; s < samples_; ++s) {
        item(slot)[s] = p.samples[s * p.load.size() + e] * scale[s] / static_cast<float>(copies[e]);
        rank(slot / per_rank_)[s] += item(slot)[s];
      }
    }
    for (Index r = 0; r < ranks_; ++r) risk_[r] = risk_of(rank(r));
  }

  /// The best exchange with the rank at most risk; false where none helps.
  bool exchange() {
    const auto hot =
        static_cast<Index>(std::max_element(risk_.begin(), risk_.end()) - risk_.begin());
    float best_gain = 1e-3F * risk_[hot];
    Index give = map_.size();
    Index get = 0;
    for (Index from = hot * per_rank_; from < (hot + 1) * per_rank_; ++from) {
      if (map_[from] < 0) continue;
      for (Index r = 0; r < ranks_; ++r) {
        if (r == hot || !same_domain(r, hot) || holds(r, map_[from])) continue;
        for (Index to = r * per_rank_; to < (r + 1) * per_rank_; ++to) {
          if (map_[to] >= 0 && holds(hot, map_[to])) continue;
          const float gain = gain_of(hot, from, r, to);
          if (gain <= best_gain) continue;
          best_gain = gain;
          give = from;
          get = to;
        }
      }
    }
    if (give == map_.size()) return false;
    apply(hot, give, get / per_rank_, get);
    return true;
  }

 private:
  float* item(Index slot) { return item_.data() + slot * samples_; }

  float* rank(Index r) { return rank_.data() + r * samples_; }

  bool holds(Index r, ExpertId e) const {
    return holds_[r * p_.load.size() + static_cast<Index>(e)] != 0;
  }

  bool same_domain(Index a, Index b) const {
    const auto per_node = static_cast<Index>(p_.topology.ranks_per_node());
    return !p_.topology.hierarchical() || a / per_node == b / per_node;
  }

  float risk_of(const float* loads) const {
    float sum = 0;
    for (Index s = 0; s < samples_; ++s) {
      const float square = loads[s] * loads[s];
      sum += square * square;
    }
    return sum;
  }

  float gain_of(Index hot, Index from, Index cool, Index to) {
    const float* const a = rank(hot);
    const float* const b = rank(cool);
    const float* const x = item(from);
    const float* const y = item(to);
    float sum = 0;
    for (Index s = 0; s < samples_; ++s) {
      const float difference = x[s] - y[s];
      const float in_a = (a[s] - difference) * (a[s] - difference);
      const float in_b = (b[s] + difference) * (b[s] + difference);
      sum += in_a * in_a + in_b * in_b;
    }
    return risk_[hot] + risk_[cool] - sum;
  }

  void apply(Index hot, Index from, Index cool, Index to) {
    char* const hot_holds = holds_.data() + hot * p_.load.size();
    char* const cool_holds = holds_.data() + cool * p_.load.size();
    hot_holds[map_[from]] = 0;
    cool_holds[map_[from]] = 1;
    if (map_[to] >= 0) {
      cool_holds[map_[to]] = 0;
      hot_holds[map_[to]] = 1;
    }
    for (Index s = 0; s < samples_; ++s) {
      const float difference = item(from)[s] - item(to)[s];
      rank(hot)[s] -= difference;
      rank(cool)[s] += difference;
    }
    std::swap(map_[from], map_[to]);
    std::swap_ranges(item(from), item(from) + samples_, item(to));
    risk_[hot] = risk_of(rank(hot));
    risk_[cool] = risk_of(rank(cool));
  }

  const LayerProblem& p_;
  std::vector<ExpertId>& map_;
  Index ranks_;
  Index per_rank_;
  Index samples_;
  std::vector<float> item_;  // [P][samples] what each slot carries
  std::vector<float> rank_;  // [R][samples]
  std::vector<char> holds_;  // [R][E]
  std::vector<float> risk_;  // [R] sum of the fourth powers
};

}  // namespace

void spread_risk(const LayerProblem& p, std::vector<ExpertId>& map) {
  constexpr int kMaxExchanges = 64;
  RiskSearch search(p, map);
  for (int i = 0; i < kMaxExchanges && search.exchange(); ++i) {
  }
}

}  // namespace ferry
