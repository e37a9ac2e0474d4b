#include "ferry/sim/exchange_time.h"

#include <algorithm>
#include <numeric>

#include "ferry/core/error.h"
#include "ferry/transport/group_gather.h"

namespace ferry {

namespace {

constexpr double kBytesPerUs = 1e3;       // of a GB/s
constexpr double kPerSecond = 1e-6;       // per us
constexpr double kOperationsPerUs = 1e6;  // of a TFLOP/s
constexpr double kTileRows = 256;         // of TilePipeline

using Phase = RankLoad::Phase;

/// A link's time by what it is of.
struct LinkTime {
  double messages = 0;
  double bandwidth = 0;

  double us() const { return std::max(messages, bandwidth); }
};

/// Adds up to a phase of the mean rank.
struct Parts {
  double latency = 0;
  LinkTime link;  ///< of the level that is waited for
  double memory = 0;
};

class Clock {
 public:
  Clock(std::span<const RankLoad> loads, const Cluster& cluster, const LinkLevels& levels)
      : loads_(loads), cluster_(cluster), levels_(levels) {}

  double memory_us(double bytes) const {
    return bytes / (cluster_.memory_gbytes_per_s * kBytesPerUs);
  }

  /// Of results that are added up.
  double sum_us(double bytes) const {
    const double rate = cluster_.sum_gbytes_per_s;
    return rate > 0 ? bytes / (std::min(rate, cluster_.memory_gbytes_per_s) * kBytesPerUs)
                    : memory_us(bytes);
  }

  double before_us(const Phase& phase) const {
    return memory_us(phase.moved_before) + sum_us(phase.summed_before);
  }

  double weights_us(const RankLoad::Work& work) const {
    return memory_us(work.bytes) + work.near_bytes / near_rate();
  }

  double arithmetic_us(const RankLoad::Work& work) const {
    return work.operations / (cluster_.tflops * kOperationsPerUs);
  }

  double experts_us(const RankLoad::Work& work) const {
    return std::max(weights_us(work), arithmetic_us(work));
  }

  /// When all is there: rows to where experts want them; neighbours' come over the host's link.
  double copy_us(const Phase& phase) const {
    return memory_us(phase.written_after + phase.read_after[kOwnLevel]) + near_us(phase);
  }

  /// The results' sums at home: adding up and bringing them over are one loop.
  double add_us(const Phase& phase) const {
    return memory_us(phase.written_after) + sum_us(phase.read_after[kOwnLevel]) +
           std::max(near_us(phase), sum_us(phase.read_after[kHostLevel]));
  }

  double near_us(const Phase& phase) const { return phase.read_after[kHostLevel] / near_rate(); }

  /// Bytes of a neighbour's memory in a microsecond.
  double near_rate() const {
    return std::min(cluster_.links.front().gbytes_per_s, cluster_.memory_gbytes_per_s) *
           kBytesPerUs;
  }

  /// When a phase is over on a rank that was `ready` to send and had everything at `arrival`.
  double end_us(double arrival, double ready, double after) const {
    return cluster_.copies_overlap ? std::max(arrival, ready + after) : arrival + after;
  }

  /// Of the port that `rank` shares, out or in.
  LinkTime port_us(std::size_t rank, Phase RankLoad::*phase, std::size_t level, bool out) const {
    const ClusterLink& link = cluster_.links[level - 1];
    const auto port = static_cast<std::size_t>(link.ranks_per_port);
    const std::size_t first = rank / port * port;
    double puts = 0, bytes = 0, to_one = 0;
    for (std::size_t r = first; r < std::min(first + port, loads_.size()); ++r) {
      const Phase& p = loads_[r].*phase;
      puts += out || !link.full_duplex ? p.out_puts[level] : 0;
      bytes += out || !link.full_duplex ? p.out_bytes[level] : 0;
      puts += !out || !link.full_duplex ? p.in_puts[level] : 0;
      bytes += !out || !link.full_duplex ? p.in_bytes[level] : 0;
      to_one = std::max(to_one, p.to_one[level]);
    }
    LinkTime time{puts / (link.messages_per_s * kPerSecond),
                  bytes / (link.gbytes_per_s * kBytesPerUs)};
    if (out && link.peer_messages_per_s > 0)
      time.messages = std::max(time.messages, to_one / (link.peer_messages_per_s * kPerSecond));
    return time;
  }

  /// When each rank has what all others sent it, each from its slowest sender on. ready: [R] when
  /// each has all that it sends; head_start: [R] how much earlier its links may begin. Says what
  /// the last wait was for.
  void arrival_us(Phase RankLoad::*phase,
                  std::span<const double> ready,
                  std::span<const double> head_start,
                  std::vector<double>& arrival,
                  Parts& parts) const {
    arrival.assign(loads_.size(), 0);
    const double first = *std::ranges::min_element(ready);
    double last = 0;
    for (std::size_t rank = 0; rank < loads_.size(); ++rank) arrival[rank] = ready[rank];
    for (std::size_t level = kHostLevel; level < levels_.levels(); ++level) {
      const double latency = cluster_.links[level - 1].latency_us;
      double sent = 0;
      LinkTime slowest;
      bool used = false;
      for (std::size_t rank = 0; rank < loads_.size(); ++rank) {
        if ((loads_[rank].*phase).out_puts[level] == 0) continue;
        used = true;
        const LinkTime out = port_us(rank, phase, level, /*out=*/true);
        // Tiles: all but the last has left while the experts were at work.
        const double done = std::max(ready[rank] - head_start[rank] + out.us(), ready[rank]);
        sent = std::max(sent, done);
        if (out.us() > slowest.us()) slowest = out;
      }
      if (!used) continue;
      for (std::size_t rank = 0; rank < loads_.size(); ++rank) {
        if ((loads_[rank].*phase).in_puts[level] == 0) continue;
        const LinkTime in = port_us(rank, phase, level, /*out=*/false);
        const double here = latency + std::max(sent, first + in.us());
        arrival[rank] = std::max(arrival[rank], here);
        if (in.us() > slowest.us()) slowest = in;
        if (here > last) {
          last = here;
          parts.latency = latency;
          parts.link = slowest;
        }
      }
    }
  }

 private:
  std::span<const RankLoad> loads_;
  const Cluster& cluster_;
  const LinkLevels& levels_;
};

/// A gather's time by what it is of.
struct GatherTime {
  double latency = 0;
  double bandwidth = 0;
  double memory = 0;

  double us() const { return latency + bandwidth + memory; }
};

/// A member copies its columns to its slab, and all others' from theirs; over a network they are
/// sent.
GatherTime gather_time(const GatherLoad& load, const Cluster& cluster, const LinkLevels& levels) {
  if (load.members == 1 || load.gathers == 0) return {};
  const double part = load.bytes / load.members;
  const double memory = cluster.memory_gbytes_per_s * kBytesPerUs;
  const int near = std::min(load.members, levels.ranks_per_host());
  const std::size_t level = levels.between(0, load.members - 1);
  const ClusterLink& host = cluster.links.front();
  const ClusterLink& furthest = cluster.links[level - 1];
  const double rounds = std::max(load.gathers, part / static_cast<double>(GroupGather::kSlabBytes));
  GatherTime time{.latency = rounds * furthest.latency_us, .memory = part / memory};
  time.bandwidth =
      (near - 1) * part / (std::min(host.gbytes_per_s, cluster.memory_gbytes_per_s) * kBytesPerUs);
  if (level > kHostLevel) {
    time.bandwidth += (load.members - near) * part * furthest.ranks_per_port /
                      (furthest.gbytes_per_s * kBytesPerUs);
    time.memory += (load.members - near) * part / memory;
  }
  return time;
}

/// One layer of all ranks, without saying what it is of.
struct Run {
  std::vector<RankTime> ranks;
  double layer_us = 0;
  Parts counts, dispatch, combine;
  double fetch_us = 0;  ///< that the last rank waits for weights
};

bool tells_counts(std::span<const RankLoad> loads) {
  return std::ranges::any_of(loads, [](const RankLoad& load) {
    return std::ranges::any_of(load.counts.out_puts, [](double puts) { return puts > 0; });
  });
}

Run run_layer(std::span<const RankLoad> loads,
              const Cluster& cluster,
              const LinkLevels& levels,
              bool tiles) {
  const Clock clock(loads, cluster, levels);
  Run run;
  run.ranks.resize(loads.size());
  std::vector<double> ready(loads.size()), arrival, head_start(loads.size(), 0.0);
  for (std::size_t r = 0; r < loads.size(); ++r)
    ready[r] = cluster.start_us + clock.before_us(loads[r].dispatch);
  std::vector<double> weights(loads.size(), 0.0);
  if (tells_counts(loads)) {
    clock.arrival_us(&RankLoad::counts, std::vector<double>(ready), head_start, ready, run.counts);
    Parts unused;
    clock.arrival_us(&RankLoad::fetch, ready, head_start, weights, unused);
  }
  clock.arrival_us(&RankLoad::dispatch, ready, head_start, arrival, run.dispatch);
  for (std::size_t r = 0; r < loads.size(); ++r) {
    RankTime& time = run.ranks[r];
    time.dispatch = clock.end_us(arrival[r], ready[r], clock.copy_us(loads[r].dispatch));
    time.experts = clock.experts_us(loads[r].own);
    if (const double last = clock.experts_us(loads[r].fetched); last > 0) {
      const double wait = std::max(0.0, weights[r] - time.dispatch - time.experts);
      run.fetch_us = std::max(run.fetch_us, wait);
      time.experts += wait + last;
    }
    time.experts += gather_us(loads[r].between, cluster, levels);
    ready[r] = time.dispatch + time.experts + cluster.start_us + clock.before_us(loads[r].combine);
    const double num_tiles = std::max(1.0, loads[r].rows / kTileRows);
    if (tiles) head_start[r] = time.experts * (1 - 1 / num_tiles);
  }
  clock.arrival_us(&RankLoad::combine, ready, head_start, arrival, run.combine);
  for (std::size_t r = 0; r < loads.size(); ++r) {
    RankTime& time = run.ranks[r];
    time.combine = clock.end_us(arrival[r], ready[r], clock.add_us(loads[r].combine)) -
                   time.dispatch - time.experts + gather_us(loads[r].results, cluster, levels);
    run.layer_us = std::max(run.layer_us, time.layer());
  }
  return run;
}

}  // namespace

double gather_us(const GatherLoad& load, const Cluster& cluster, const LinkLevels& levels) {
  return gather_time(load, cluster, levels).us();
}

RankLoad load_of(const RankTraffic& traffic, const ExpertWork& experts) {
  RankLoad load;
  const auto take = [](const PhaseTraffic& from, RankLoad::Phase& to) {
    for (std::size_t l = 0; l < kMaxLinkLevels; ++l) {
      to.out_puts[l] = static_cast<double>(from.out[l].puts);
      to.out_bytes[l] = static_cast<double>(from.out[l].bytes);
      to.in_puts[l] = static_cast<double>(from.in[l].puts);
      to.in_bytes[l] = static_cast<double>(from.in[l].bytes);
      to.to_one[l] = static_cast<double>(from.to_one[l]);
      to.read_after[l] = static_cast<double>(from.read_after[l]);
    }
    to.moved_before = static_cast<double>(from.moved_before);
    to.summed_before = static_cast<double>(from.summed_before);
    to.written_after = static_cast<double>(from.written_after);
  };
  take(traffic.dispatch, load.dispatch);
  take(traffic.combine, load.combine);
  load.rows = static_cast<double>(traffic.rows);
  const auto touched =
      std::ranges::count_if(traffic.slot_rows, [](std::int32_t rows) { return rows > 0; });
  load.own.bytes =
      static_cast<double>(touched) * experts.bytes_per_slot + load.rows * experts.bytes_per_row;
  load.own.operations = load.rows * experts.operations_per_row;
  return load;
}

RankLoad mean_load(std::span<const RankLoad> loads) {
  FERRY_CHECK(!loads.empty(), "the mean of {} ranks", loads.size());
  const double n = static_cast<double>(loads.size());
  RankLoad mean;
  const auto add = [n](const RankLoad::Phase& from, RankLoad::Phase& to) {
    for (std::size_t l = 0; l < kMaxLinkLevels; ++l) {
      to.out_puts[l] += from.out_puts[l] / n;
      to.out_bytes[l] += from.out_bytes[l] / n;
      to.in_puts[l] += from.in_puts[l] / n;
      to.in_bytes[l] += from.in_bytes[l] / n;
      to.to_one[l] += from.to_one[l] / n;
      to.read_after[l] += from.read_after[l] / n;
    }
    to.moved_before += from.moved_before / n;
    to.summed_before += from.summed_before / n;
    to.written_after += from.written_after / n;
  };
  const auto add_work = [n](const RankLoad::Work& from, RankLoad::Work& to) {
    to.bytes += from.bytes / n;
    to.near_bytes += from.near_bytes / n;
    to.operations += from.operations / n;
  };
  const auto add_gather = [n](const GatherLoad& from, GatherLoad& to) {
    to.members = from.members;
    to.gathers += from.gathers / n;
    to.bytes += from.bytes / n;
  };
  for (const RankLoad& load : loads) {
    add_gather(load.between, mean.between);
    add_gather(load.results, mean.results);
    add(load.dispatch, mean.dispatch);
    add(load.combine, mean.combine);
    add(load.counts, mean.counts);
    add(load.fetch, mean.fetch);
    mean.rows += load.rows / n;
    add_work(load.own, mean.own);
    add_work(load.fetched, mean.fetched);
  }
  return mean;
}

LayerTime time_layer(std::span<const RankLoad> loads,
                     const Cluster& cluster,
                     const LinkLevels& levels,
                     bool tiles) {
  Run run = run_layer(loads, cluster, levels, tiles);
  const RankLoad mean = mean_load(loads);
  const std::vector<RankLoad> alike(loads.size(), mean);
  const Run even = run_layer(alike, cluster, levels, tiles);
  const Clock clock(alike, cluster, levels);

  LayerTime time{std::move(run.ranks), run.layer_us, {}};
  const auto of = [&](Bound bound) -> double& {
    return time.bound_us[static_cast<std::size_t>(bound)];
  };
  of(Bound::latency) =
      2 * cluster.start_us + even.counts.latency + even.dispatch.latency + even.combine.latency;
  for (const Parts* parts : {&even.counts, &even.dispatch, &even.combine})
    of(parts->link.messages > parts->link.bandwidth ? Bound::messages : Bound::bandwidth) +=
        parts->link.us();
  of(Bound::bandwidth) += even.fetch_us;
  for (const GatherLoad* gather : {&mean.between, &mean.results}) {
    const GatherTime parts = gather_time(*gather, cluster, levels);
    of(Bound::latency) += parts.latency;
    of(Bound::bandwidth) += parts.bandwidth;
    of(Bound::memory) += parts.memory;
  }
  for (const RankLoad::Work* work : {&mean.own, &mean.fetched})
    of(clock.arithmetic_us(*work) > clock.weights_us(*work) ? Bound::arithmetic : Bound::memory) +=
        clock.experts_us(*work);
  of(Bound::memory) += clock.before_us(mean.dispatch) + clock.before_us(mean.combine) +
                       clock.copy_us(mean.dispatch) + clock.add_us(mean.combine);
  // Tiles, and copies that overlap, hide a part of the time of links and memory; what the parts
  // have too much was hidden.
  const double parts = std::accumulate(time.bound_us.begin(), time.bound_us.end(), 0.0);
  double hidden = std::max(0.0, parts - even.layer_us);
  for (const Bound bound : cluster.copies_overlap
                               ? std::array{Bound::memory, Bound::bandwidth, Bound::messages}
                               : std::array{Bound::bandwidth, Bound::messages, Bound::memory}) {
    const double taken = std::min(hidden, of(bound));
    of(bound) -= taken;
    hidden -= taken;
  }
  of(Bound::imbalance) = std::max(0.0, time.layer_us - even.layer_us);
  return time;
}

}  // namespace ferry
