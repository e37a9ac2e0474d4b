#include "sum_bounds.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace ferry::testing {

namespace {

constexpr double kRounding = 0x1p-24;  // of one f32 operation, relative

/// Values of a row and how far each may be off.
struct Uncertain {
  explicit Uncertain(std::size_t n) : value(n), off(n) {}

  double greatest() const {
    double most = 0;
    for (std::size_t i = 0; i < value.size(); ++i)
      most = std::max(most, std::abs(value[i]) + off[i]);
    return most;
  }

  void travel(WireType wire) {
    const double most = greatest();
    for (std::size_t i = 0; i < value.size(); ++i)
      off[i] += wire_error_bound(wire, std::abs(value[i]) + off[i], most);
  }

  /// After so many f32 operations on terms of magnitudes[i] altogether.
  void compute(const std::vector<double>& magnitudes, int operations) {
    for (std::size_t i = 0; i < value.size(); ++i)
      off[i] += operations * kRounding * (1 + 0x1p-18) * magnitudes[i];
  }

  std::vector<double> value, off;
};

/// A weighted sum as it grows.
struct Sum {
  explicit Sum(std::size_t n) : row(n), magnitudes(n) {}

  void add(double weight, const Uncertain& term) {
    for (std::size_t i = 0; i < row.value.size(); ++i) {
      row.value[i] += weight * term.value[i];
      row.off[i] += weight * term.off[i];
      magnitudes[i] += weight * (std::abs(term.value[i]) + term.off[i]);
    }
    ++terms;
  }

  Uncertain& rounded() {
    row.compute(magnitudes, terms + 1);
    return row;
  }

  Uncertain row;
  std::vector<double> magnitudes;
  int terms = 0;
};

/// What the expert in `slot` writes for a row: (slot + 2) * x + 1.
Uncertain result(const DispatcherOptions& o, SlotId slot, const Uncertain& x) {
  Uncertain y(x.value.size());
  std::vector<double> magnitudes(x.value.size());
  const double factor = slot + 2;
  for (std::size_t i = 0; i < x.value.size(); ++i) {
    y.value[i] = factor * x.value[i] + 1;
    y.off[i] = factor * x.off[i];
    magnitudes[i] = factor * (std::abs(x.value[i]) + x.off[i]) + 1;
  }
  y.compute(magnitudes, 2);
  y.travel(wire_type(o.output_type()));
  return y;
}

}  // namespace

BoundedSums bounded_sums(const ExchangeCase& exchange, Rank rank) {
  const DispatcherOptions& o = exchange.options;
  const std::vector<float> rows = exchange.rows(rank);
  const std::vector<SlotId> slots = exchange.slots(rank);
  const std::vector<float> weights = exchange.weights(rank);
  const auto width = static_cast<std::size_t>(o.hidden);
  const auto topk = static_cast<std::size_t>(o.topk);
  const bool home = o.exchange.reduce_at == ExchangeOptions::ReduceAt::home;
  const auto first = static_cast<std::ptrdiff_t>(exchange.first_column(rank));
  BoundedSums sums;
  for (std::size_t t = 0; t < static_cast<std::size_t>(exchange.tokens(rank)); ++t) {
    Uncertain x(width);
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(t * width), width, x.value.begin());
    x.travel(o.dispatch_wire);
    if (o.expert_type != o.dispatch_wire) x.travel(o.expert_type);
    Sum sum(width);
    std::vector<Sum> parts(static_cast<std::size_t>(exchange.ranks), Sum(width));
    for (std::size_t k = t * topk; k < (t + 1) * topk; ++k) {
      if (slots[k] < 0) continue;
      Uncertain y = result(o, slots[k], x);
      if (home && is_quantized(o.combine_wire)) y.travel(o.combine_wire);
      Sum& to = home ? sum : parts[static_cast<std::size_t>(slots[k] / o.slots_per_rank)];
      to.add(double{weights[k]}, y);
    }
    std::map<int, Sum> host_sums;
    for (Rank peer = 0; peer < exchange.ranks; ++peer) {
      Sum& part = parts[static_cast<std::size_t>(peer)];
      if (part.terms == 0) continue;
      part.rounded().travel(o.combine_wire);
      if (exchange.sums_per_host(rank, peer)) {
        const int host = exchange.hosts[static_cast<std::size_t>(peer)];
        host_sums.try_emplace(host, width).first->second.add(1, part.row);
      } else {
        sum.add(1, part.row);
      }
    }
    for (auto& [host, host_sum] : host_sums) {
      if (host_sum.terms > 1) host_sum.rounded().travel(o.combine_wire);
      sum.add(1, host_sum.row);
    }
    const Uncertain& total = sum.rounded();
    const auto append = [&](const std::vector<double>& from, std::vector<double>& to) {
      to.insert(to.end(), from.begin() + first, from.begin() + first + exchange.columns());
    };
    append(total.value, sums.exact);
    append(total.off, sums.bound);
  }
  return sums;
}

}  // namespace ferry::testing
