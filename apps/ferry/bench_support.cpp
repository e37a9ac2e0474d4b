#include "apps/ferry/bench_support.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "ferry/transport/launch.h"

namespace ferry {

Summary summarize(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  const auto percentile = [&](double share) {
    return values[static_cast<std::size_t>(std::ceil(share * n)) - 1];
  };
  Summary s;
  s.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  for (const double v : values) s.stddev += (v - s.mean) * (v - s.mean);
  s.stddev = std::sqrt(s.stddev / n);
  s.p50 = percentile(0.5);
  s.p95 = percentile(0.95);
  s.p99 = percentile(0.99);
  s.min = values.front();
  return s;
}

bool reads_peers(std::string_view transport) {
  for (const TransportInfo& t : list_transports())
    if (t.name == transport) return t.load_store;
  return false;
}

std::string_view routing_name(BenchRouting routing) {
  switch (routing) {
    case BenchRouting::uniform:
      return "uniform";
    case BenchRouting::zipf:
      return "zipf";
    case BenchRouting::one_hot:
      return "one_hot";
  }
  return "?";
}

BenchRouting parse_routing(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');  // "one-hot", as others write it
  for (const BenchRouting r : {BenchRouting::uniform, BenchRouting::zipf, BenchRouting::one_hot})
    if (name == routing_name(r)) return r;
  fail<ConfigError>("unknown --routing '{}'; known: uniform, zipf, one_hot", name);
}

void draw_routing(
    BenchRouting routing, int experts, int topk, std::uint64_t seed, std::span<ExpertId> chosen) {
  const auto popularity = [&](std::size_t expert) {
    if (routing == BenchRouting::zipf) return 1.0 / static_cast<double>(expert + 1);
    if (routing == BenchRouting::one_hot && expert == 0)
      return std::numeric_limits<double>::infinity();
    return 1.0;
  };
  std::mt19937_64 engine(seed);
  std::exponential_distribution<double> waiting_time(1.0);
  // Of independent waits with these rates the K shortest are K draws without replacement.
  std::vector<std::pair<double, ExpertId>> waits(static_cast<std::size_t>(experts));
  const auto k = static_cast<std::size_t>(topk);
  for (std::size_t at = 0; at < chosen.size(); at += k) {
    for (std::size_t e = 0; e < waits.size(); ++e)
      waits[e] = {waiting_time(engine) / popularity(e), static_cast<ExpertId>(e)};
    std::partial_sort(waits.begin(), waits.begin() + topk, waits.end());
    for (std::size_t i = 0; i < k; ++i) chosen[at + i] = waits[i].second;
  }
}

}  // namespace ferry
