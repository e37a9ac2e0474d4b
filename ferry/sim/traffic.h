// What an exchange puts on links and moves in memory, counted from the plans that its ranks would
// make: SendPlan, RelayPlan and ReceivePlan are the dispatcher's own, nobody sends anything. The
// first half of a forecast; exchange_time.h charges time to what is counted here. tests/sim holds
// the counts to those of real runs, number by number.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/dispatcher.h"
#include "ferry/sim/link_levels.h"

namespace ferry {

struct LinkCount {
  std::uint64_t puts = 0;
  std::uint64_t bytes = 0;

  friend bool operator==(const LinkCount&, const LinkCount&) = default;
};

template <class T>
using PerLevel = std::array<T, kMaxLinkLevels>;

/// What one rank does in dispatch, or in combine.
struct PhaseTraffic {
  PerLevel<LinkCount> out = {};         ///< its puts: messages, rows, signals without bytes
  PerLevel<LinkCount> in = {};          ///< those that it gets
  PerLevel<std::uint32_t> to_one = {};  ///< most puts to one peer
  /// Bytes of rows that it reads and writes before rows leave: staged, encoded, sums written.
  std::uint64_t moved_before = 0;
  /// And those of results that it adds up for homes.
  std::uint64_t summed_before = 0;
  /// Bytes of rows that it reads where they lie, and writes, once all is there.
  PerLevel<std::uint64_t> read_after = {};
  std::uint64_t written_after = 0;
};

struct RankTraffic {
  int tokens = 0;  ///< of its group
  PhaseTraffic dispatch;
  PhaseTraffic combine;
  ExchangeStats stats;  ///< as its Dispatcher would count
  std::uint64_t rows = 0;
  std::vector<std::int32_t> slot_rows;  ///< [L] that each slot computes
};

struct TrafficOptions {
  DispatcherOptions dispatcher;
  std::vector<int> tokens;               ///< [R] of each rank; with tp of its group, alike there
  std::size_t max_put_bytes = SIZE_MAX;  ///< of the transport (Capabilities)
  int threads = 1;                       ///< of a rank: sums leave in blocks of so many
};

/// Fills [tokens, K] slots of a home's tokens, -1 = none. With tp it is asked once for a group, by
/// its first rank.
using RoutingOf = std::function<void(Rank home, std::span<SlotId> slots)>;

/// [R] One exchange of all ranks. Throws ConfigError as a Dispatcher does, and for
/// hidden_partition, which is not counted.
std::vector<RankTraffic> count_exchange(const TrafficOptions& options,
                                        const LinkLevels& levels,
                                        const RoutingOf& routing);

/// [R] The exchanges of all tracks of experts in `slices`, of which each host has whole holders:
/// rank r is holder r / slices, and its results have slice r % slices of the columns. `options` and
/// `routing` are of holders; levels of ranks. Throws ConfigError also where slices span hosts.
std::vector<RankTraffic> count_tracks(const TrafficOptions& options,
                                      int slices,
                                      const LinkLevels& levels,
                                      const RoutingOf& routing);

}  // namespace ferry
