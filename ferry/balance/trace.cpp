#include "ferry/balance/trace.h"

#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr std::array<std::pair<std::string_view, TraceKind>, 4> kKinds{{
    {"zipf", TraceKind::zipf},
    {"drifting", TraceKind::drifting},
    {"bursty", TraceKind::bursty},
    {"topics", TraceKind::topics},
}};

constexpr int kDriftSteps = 200;  // from one order of the experts to the next
constexpr int kBurstSteps = 20;   // how long a burst lasts
constexpr int kBurstEvery = 60;   // from the begin of one to the next
constexpr int kBurstExperts = 4;
constexpr double kBurstFactor = 10;
constexpr int kTopicSteps = 20;  // from one topic to the next
constexpr std::size_t kTopics = 8;
constexpr std::size_t kTopicPart = 16;  // one of so many experts belongs to a topic
constexpr double kTopicFactor = 6;

/// The engine is defined by the standard, its distributions are not.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(engine_() % n); }

  /// Nearly normal, mean 0, deviation 1: twelve uniform numbers.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(engine_() >> 11) * 0x1p-53;
    return sum;
  }

 private:
  std::mt19937_64 engine_;
};

std::vector<double> shuffled(std::vector<double> values, Random& random) {
  for (std::size_t i = values.size() - 1; i > 0; --i)
    std::swap(values[i], values[random.below(i + 1)]);
  return values;
}

/// One layer's popularity of experts over the steps.
class Popularity {
 public:
  Popularity(const TraceOptions& o, Random& random)
      : kind_(o.kind), sorted_(static_cast<std::size_t>(o.experts)) {
    for (std::size_t e = 0; e < sorted_.size(); ++e)
      sorted_[e] = std::pow(static_cast<double>(e + 1), -o.exponent);
    from_ = shuffled(sorted_, random);
    to_ = from_;
    if (kind_ != TraceKind::topics) return;
    for (std::vector<std::size_t>& topic : topics_) {
      topic.resize(ceil_div(sorted_.size(), kTopicPart));
      for (std::size_t& e : topic) e = random.below(sorted_.size());
    }
  }

  std::vector<double> at(int step, Random& random) {
    std::vector<double> now = from_;
    if (kind_ == TraceKind::drifting) {
      const double way = static_cast<double>(step % kDriftSteps) / kDriftSteps;
      if (step % kDriftSteps == 0) {
        from_ = to_;
        to_ = shuffled(sorted_, random);
      }
      for (std::size_t e = 0; e < now.size(); ++e) now[e] = (1 - way) * from_[e] + way * to_[e];
    } else if (kind_ == TraceKind::bursty) {
      if (step % kBurstEvery == 0) {
        for (std::size_t& e : burst_) e = random.below(now.size());
      }
      if (step % kBurstEvery < kBurstSteps)
        for (const std::size_t e : burst_) now[e] *= kBurstFactor;
    } else if (kind_ == TraceKind::topics) {
      if (step % kTopicSteps == 0) topic_ = random.below(kTopics);
      for (const std::size_t e : topics_[topic_]) now[e] *= kTopicFactor;
    }
    return now;
  }

 private:
  TraceKind kind_;
  std::vector<double> sorted_;
  std::vector<double> from_;
  std::vector<double> to_;
  std::array<std::size_t, kBurstExperts> burst_{};
  std::array<std::vector<std::size_t>, kTopics> topics_;  // the experts of each
  std::size_t topic_ = 0;
};

}  // namespace

TraceKind parse_trace_kind(std::string_view name) {
  for (const auto& [known, kind] : kKinds)
    if (known == name) return kind;
  fail<ConfigError>("unknown trace \"{}\": use one of {}, or a file", name, kTraceKinds);
}

Trace make_trace(const TraceOptions& o) {
  if (o.steps < 1 || o.layers < 1 || o.experts < 1 || o.rows < 1)
    fail<ConfigError>("a trace needs at least 1 step, layer, expert and row");
  if (!std::isfinite(o.exponent) || o.exponent < 0 || o.exponent > 10)
    fail<ConfigError>("the exponent of popularity must be 0 to 10, not {}", o.exponent);
  constexpr double kMaxCounts = 1 << 27;
  if (static_cast<double>(o.steps) * o.layers * o.experts > kMaxCounts)
    fail<ConfigError>(
        "{} steps of {} layers of {} experts do not fit into memory", o.steps, o.layers, o.experts);
  Random random(o.seed);
  std::vector<Popularity> popularity;
  for (int l = 0; l < o.layers; ++l) popularity.emplace_back(o, random);
  Trace trace;
  trace.reserve(static_cast<std::size_t>(o.steps));
  for (int step = 0; step < o.steps; ++step) {
    ExpertLoad& load = trace.emplace_back(o.layers, o.experts);
    for (int l = 0; l < o.layers; ++l) {
      const std::vector<double> now = popularity[static_cast<std::size_t>(l)].at(step, random);
      const double total = std::accumulate(now.begin(), now.end(), 0.0);
      const auto counts = load.layer(l);
      for (std::size_t e = 0; e < now.size(); ++e) {
        const double expected = o.rows * now[e] / total;
        counts[e] = std::max(0.0, std::round(expected + std::sqrt(expected) * random.normal()));
      }
    }
  }
  return trace;
}

}  // namespace ferry
