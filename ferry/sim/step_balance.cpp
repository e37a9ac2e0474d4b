#include "ferry/sim/step_balance.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// A move must bring the end of both ranks so much nearer, as a part of it.
constexpr double kLeastGain = 0.005;
constexpr double kBytesPerUs = 1e3;       // of a GB/s
constexpr double kOperationsPerUs = 1e6;  // of a TFLOP/s

std::size_t index(int i) { return static_cast<std::size_t>(i); }

class FetchPlanner {
 public:
  FetchPlanner(std::span<const std::int64_t> slot_rows,
               const Placement& placement,
               const LinkLevels& levels,
               const StepCosts& costs,
               StepBalance allowed)
      : allowed_(allowed),
        rows_(slot_rows.begin(), slot_rows.end()),
        placement_(placement),
        levels_(levels),
        costs_(costs) {
    for (std::vector<double>& ports : out_) ports.assign(index(ranks()), 0);
    in_ = out_;
    end_.resize(index(ranks()));
  }

  std::vector<Fetch> run() {
    time_all();
    // Every move brings the last rank's end nearer; ranks may change places many times.
    for (int moves = 0; moves < 64 * ranks(); ++moves) {
      const auto last = static_cast<Rank>(std::ranges::max_element(end_) - end_.begin());
      if (!relieve(last)) break;
    }
    return fetches_;
  }

 private:
  int ranks() const { return levels_.ranks(); }

  /// Weights that have to come to a rank: the later of its port and the source's.
  double arrival(const Fetch& f) const {
    const std::size_t level = levels_.between(f.source, f.through);
    if (level <= kHostLevel) return 0;
    const double out = out_[level][port(f.source, level)];
    const double in = in_[level][port(f.through, level)];
    return costs_.latency_us[level] + std::max(out, in) - costs_.hidden_us;
  }

  std::size_t port(Rank rank, std::size_t level) const {
    return index(rank / std::max(1, costs_.ranks_per_port[level]));
  }

  bool waits(const Fetch& f) const { return levels_.between(f.source, f.through) > kHostLevel; }

  double work(double weights_us, std::int64_t rows) const {
    const auto n = static_cast<double>(rows);
    return std::max(weights_us + n * costs_.row_memory_us, n * costs_.row_us);
  }

  double end_of(Rank rank) const {
    std::int64_t rows = 0, far_rows = 0;
    double weights = 0, far_weights = 0, arrives = 0;
    const std::size_t per_rank = index(placement_.slots_per_rank());
    for (std::size_t s = index(rank) * per_rank; s < (index(rank) + 1) * per_rank; ++s) {
      rows += rows_[s];
      weights += rows_[s] > 0 ? costs_.weights_us : 0;
    }
    for (const Fetch& f : fetches_) {
      if (f.to != rank) continue;
      if (f.own()) {
        rows += f.rows;
        weights += rows_[index(f.copy)] > 0 ? 0 : costs_.weights_us;
        continue;
      }
      const bool far = waits(f);
      (far ? far_rows : rows) += f.rows;
      (far ? far_weights : weights) +=
          far && f.through == rank ? costs_.weights_us : costs_.near_us;
      if (far) arrives = std::max(arrives, arrival(f));
    }
    return std::max(work(weights, rows), arrives) + work(far_weights, far_rows);
  }

  void time_all() {
    for (Rank r = 0; r < ranks(); ++r) end_[index(r)] = end_of(r);
  }

  /// How `to` would come by the weights of a slot's expert: from the nearest that holds them or
  /// fetches them already, of those through the port that has least to do.
  Fetch nearest_copy(SlotId slot, Rank to) const {
    Fetch best{.slot = slot, .to = to, .through = to};
    std::size_t level = kMaxLinkLevels;
    double busy = 0;
    const ExpertId expert = placement_.expert_of(slot);
    for (const SlotId replica : placement_.replicas(expert)) {
      const Rank source = placement_.rank_of(replica);
      const std::size_t l = levels_.between(source, to);
      const double out = l > kHostLevel ? out_[l][port(source, l)] : 0;
      if (l < level || (l == level && out < busy)) {
        best.copy = replica;
        best.source = source;
        level = l;
        busy = out;
      }
    }
    if (level <= kHostLevel) return best;
    for (const Fetch& f : fetches_) {
      if (f.through == f.to && placement_.expert_of(f.slot) == expert && levels_.near(f.to, to)) {
        best.copy = f.copy;
        best.source = f.source;
        best.through = f.through;
      }
    }
    return best;
  }

  /// Rows of a slot that `rank` computes: its own, or fetched ones.
  std::int64_t& rows_on(Rank rank, SlotId slot) {
    if (placement_.rank_of(slot) == rank) return rows_[index(slot)];
    return std::ranges::find_if(fetches_,
                                [&](const Fetch& f) { return f.to == rank && f.slot == slot; })
        ->rows;
  }

  /// Adds, or takes back where rows are negative; ports have the time of weights that are fetched.
  void apply(Rank from, const Fetch& f, std::int64_t rows) {
    rows_on(from, f.slot) -= rows;
    for (auto other = fetches_.begin(); other != fetches_.end(); ++other) {
      if (other->slot != f.slot || other->to != f.to) continue;
      other->rows += rows;
      if (other->rows > 0) return;
      add_port_time(f, -1);
      fetches_.erase(other);
      return;
    }
    fetches_.push_back(f);
    fetches_.back().rows = rows;
    add_port_time(f, +1);
  }

  void add_port_time(const Fetch& f, double sign) {
    const std::size_t level = levels_.between(f.source, f.through);
    if (level <= kHostLevel || f.through != f.to) return;
    out_[level][port(f.source, level)] += sign * costs_.far_us[level];
    in_[level][port(f.to, level)] += sign * costs_.far_us[level];
  }

  /// The later end of both ranks, and of all that wait for the same ports, with so many rows moved.
  double tried(Rank from, const Fetch& f, std::int64_t rows) {
    apply(from, f, rows);
    double end = std::max(end_of(from), end_of(f.to));
    if (waits(f)) {
      for (const Fetch& other : fetches_)
        if (other.to != f.to && waits(other)) end = std::max(end, end_of(other.to));
    }
    apply(from, f, -rows);
    return end;
  }

  /// A fetch once planned keeps a row, as its weights may be those of neighbours, too.
  std::int64_t most_to_move(Rank from, SlotId slot) {
    return rows_on(from, slot) - (placement_.rank_of(slot) == from ? 0 : 1);
  }

  /// Rows with which `from` and the fetcher end together, by halves.
  std::int64_t rows_to_move(Rank from, const Fetch& f) {
    std::int64_t low = 1, high = most_to_move(from, f.slot);
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      apply(from, f, middle);
      const bool more = end_of(from) > end_of(f.to);
      apply(from, f, -middle);
      if (more)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  /// The rank of those for which `allowed` says so that ends first.
  template <class Allowed>
  std::optional<Rank> idlest(Allowed allowed) const {
    std::optional<Rank> best;
    for (Rank r = 0; r < ranks(); ++r)
      if (allowed(r) && (!best || end_[index(r)] < end_[index(*best)])) best = r;
    return best;
  }

  bool relieve(Rank from) {
    const int per_rank = placement_.slots_per_rank();
    std::vector<SlotId> slots(index(per_rank));
    std::iota(slots.begin(), slots.end(), from * per_rank);
    for (const Fetch& f : fetches_)
      if (f.to == from) slots.push_back(f.slot);
    std::erase_if(slots, [&](SlotId s) { return most_to_move(from, s) == 0; });
    std::ranges::stable_sort(slots, std::greater<>(), [&](SlotId s) { return rows_on(from, s); });
    for (const SlotId slot : slots) {
      double best = end_[index(from)] * (1 - kLeastGain);
      std::optional<Fetch> chosen;
      for (const auto& to : {idlest([&](Rank r) { return r != from && levels_.near(r, from); }),
                             idlest([&](Rank r) { return !levels_.near(r, from); }),
                             idlest([&](Rank r) { return r != from && has(r, slot); })}) {
        if (!to || placement_.rank_of(slot) == *to) continue;
        Fetch f = nearest_copy(slot, *to);
        if (!f.own() && allowed_ != StepBalance::weights) continue;
        for (const std::int64_t less : {0, 1}) {
          f.rows = rows_to_move(from, f) - less;
          if (f.rows == 0) continue;
          const double end = tried(from, f, f.rows);
          if (end >= best) continue;
          best = end;
          chosen = f;
        }
      }
      if (!chosen) continue;
      apply(from, *chosen, chosen->rows);
      time_all();
      return true;
    }
    return false;
  }

  /// Whether the rank need not fetch what the slot holds, or does so already.
  bool has(Rank rank, SlotId slot) const {
    const auto replicas = placement_.replicas(placement_.expert_of(slot));
    return std::ranges::any_of(replicas, [&](SlotId s) { return placement_.rank_of(s) == rank; }) ||
           std::ranges::any_of(fetches_,
                               [&](const Fetch& f) { return f.to == rank && f.slot == slot; });
  }

  const StepBalance allowed_;
  std::vector<std::int64_t> rows_;  // [R * L] that stay
  const Placement& placement_;
  const LinkLevels& levels_;
  const StepCosts& costs_;
  PerLevel<std::vector<double>> out_, in_;  // [port] us of weights
  std::vector<double> end_;                 // [R]
  std::vector<Fetch> fetches_;
};

}  // namespace

StepBalance parse_step_balance(std::string_view name) {
  if (name == "none") return StepBalance::none;
  if (name == "replicas") return StepBalance::replicas;
  if (name == "weights") return StepBalance::weights;
  fail<ConfigError>("unknown per-step balance \"{}\": use one of {}", name, kStepBalanceNames);
}

StepCosts step_costs(const Cluster& cluster,
                     const LinkLevels& levels,
                     const ExpertWork& work,
                     double hidden_us) {
  const double memory = cluster.memory_gbytes_per_s * kBytesPerUs;
  const double host = std::min(memory, cluster.links.front().gbytes_per_s * kBytesPerUs);
  StepCosts costs{.weights_us = work.bytes_per_slot / memory,
                  .row_memory_us = work.bytes_per_row / memory,
                  .row_us = work.operations_per_row / (cluster.tflops * kOperationsPerUs),
                  .near_us = work.bytes_per_slot / host,
                  .hidden_us = hidden_us};
  for (std::size_t l = kHostLevel + 1; l < levels.levels(); ++l) {
    const ClusterLink& link = cluster.links[l - 1];
    costs.far_us[l] = work.bytes_per_slot / (link.gbytes_per_s * kBytesPerUs);
    costs.ranks_per_port[l] = link.ranks_per_port;
    costs.latency_us[l] = link.latency_us;
  }
  return costs;
}

std::vector<Fetch> plan_fetches(std::span<const std::int64_t> slot_rows,
                                const Placement& placement,
                                const LinkLevels& levels,
                                const StepCosts& costs,
                                StepBalance allowed) {
  FERRY_CHECK(slot_rows.size() == index(placement.slots()),
              "rows of {} slots for {}",
              slot_rows.size(),
              placement.slots());
  return FetchPlanner(slot_rows, placement, levels, costs, allowed).run();
}

FetchedSlots::FetchedSlots(std::span<const std::int64_t> slot_rows,
                           std::span<const Fetch> fetches,
                           int ranks,
                           int slots_per_rank)
    : per_rank_(slots_per_rank), parts_(slot_rows.size()), taken_(slot_rows.size(), 0) {
  std::vector<int> fetched(index(ranks), 0);
  for (const Fetch& f : fetches) fetched[index(f.to)] += f.own() ? 0 : 1;
  all_per_rank_ = slots_per_rank + *std::ranges::max_element(fetched);
  for (std::size_t s = 0; s < slot_rows.size(); ++s) {
    const auto slot = static_cast<SlotId>(s);
    std::int64_t stay = slot_rows[s];
    for (const Fetch& f : fetches) stay -= f.slot == slot ? f.rows : 0;
    parts_[s].push_back({renumbered(slot), stay});
  }
  std::ranges::fill(fetched, slots_per_rank);
  for (const Fetch& f : fetches) {
    std::vector<Part>& parts = parts_[index(f.slot)];
    const SlotId slot =
        f.own() ? renumbered(f.copy) : f.to * all_per_rank_ + fetched[index(f.to)]++;
    parts.push_back({slot, parts.back().until + f.rows});
  }
}

SlotId FetchedSlots::next(SlotId slot) {
  const std::int64_t row = taken_[index(slot)]++;
  for (const Part& part : parts_[index(slot)])
    if (row < part.until) return part.slot;
  FERRY_CHECK(false, "slot {} has no row {}", slot, row);
  return -1;
}

void add_fetches(std::span<const Fetch> fetches,
                 const ExpertWork& work,
                 const LinkLevels& levels,
                 int experts,
                 std::span<RankLoad> loads) {
  for (RankLoad& load : loads) load.fetch = load.dispatch;
  for (const Fetch& f : fetches) {
    if (f.own()) continue;
    const auto rows = static_cast<double>(f.rows);
    RankLoad& to = loads[index(f.to)];
    const bool near = f.through != f.to || levels.near(f.source, f.to);
    const bool far = levels.between(f.source, f.through) > kHostLevel;
    // The exchange has counted the weights as the rank's own.
    to.own.bytes -= work.bytes_per_slot;
    if (far) {
      to.own.bytes -= rows * work.bytes_per_row;
      to.own.operations -= rows * work.operations_per_row;
      to.fetched.bytes += rows * work.bytes_per_row + (near ? 0 : work.bytes_per_slot);
      to.fetched.near_bytes += near ? work.bytes_per_slot : 0;
      to.fetched.operations += rows * work.operations_per_row;
    } else {
      to.own.near_bytes += work.bytes_per_slot;
    }
    if (!far || f.through != f.to) continue;
    const std::size_t level = levels.between(f.source, f.to);
    RankLoad& from = loads[index(f.source)];
    from.fetch.out_puts[level] += 1;
    from.fetch.out_bytes[level] += work.bytes_per_slot;
    to.fetch.in_puts[level] += 1;
    to.fetch.in_bytes[level] += work.bytes_per_slot;
  }
  for (Rank rank = 0; rank < levels.ranks(); ++rank) {
    RankLoad::Phase& counts = loads[index(rank)].counts;
    for (Rank peer = 0; peer < levels.ranks(); ++peer) {
      if (peer == rank) continue;
      const std::size_t level = levels.between(rank, peer);
      counts.out_puts[level] += 1;
      counts.in_puts[level] += 1;
      counts.out_bytes[level] += static_cast<double>(experts) * sizeof(std::uint32_t);
      counts.in_bytes[level] += static_cast<double>(experts) * sizeof(std::uint32_t);
    }
  }
}

}  // namespace ferry
