// All-gather among ranks that hold the same tokens: each member has computed some columns of the
// same rows, afterwards all have all of them. It moves finished values and sums nothing, so the
// bits do not depend on how many members there are.
//
// A round: a member copies its columns of some rows into its slab and signals the others, who copy
// them from there to their rows (load/store transports) or are sent them (networks). Two slabs
// alternate, and that is enough: a member signals round r + 1 only when it is done with round r,
// and a slab is written again in round r + 2, when all have signalled r + 1.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/transport.h"

namespace ferry {

/// What is gathered, for messages.
struct GatherPhase {
  std::string_view name;
  int layer = -1;  ///< -1: not of a layer
};

/// One rank's end. Construction is collective over all ranks, a gather over the ranks of a group.
/// Threads: one at a time. Allocates only in the constructor.
/// Errors: ConfigError where the ranks do not divide into groups. TransportError names phase, layer
/// and peer; the object may then only be destroyed.
class GroupGather {
 public:
  /// All ranks must have the same.
  struct Options {
    int tp = 1;  ///< N: ranks [g * N, (g + 1) * N) are group g
    /// Of one member's columns of one row; several rows travel together where they fit kSlabBytes.
    std::size_t max_row_bytes = 0;
    std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of a round
  };

  static constexpr std::size_t kSlabBytes = std::size_t{1} << 20;

  GroupGather(const Options& options, Transport& transport, ThreadPool& pool);
  GroupGather(const GroupGather&) = delete;
  GroupGather& operator=(const GroupGather&) = delete;

  int tp() const { return options_.tp; }

  /// This rank's place in its group, 0..tp() - 1.
  int member() const { return member_; }

  /// Of `count` rows, member m has filled in the bytes [bounds[m], bounds[m + 1]); returns when
  /// this rank has all of them. Members pass the same count, bounds and phase, in the same order.
  /// `bounds` [tp + 1] rises; a member may have nothing. No rows: nothing is sent.
  void gather(const MutableRowsView& rows,
              std::int64_t count,
              std::span<const std::int64_t> bounds,
              const GatherPhase& phase);

 private:
  void gather_round(const MutableRowsView& rows,
                    std::int64_t count,
                    std::span<const std::int64_t> bounds,
                    const GatherPhase& phase);
  void send(std::size_t bytes, const GatherPhase& phase);
  void await(int from, std::size_t bytes, const GatherPhase& phase);
  void copy_columns(const MutableRowsView& to,
                    const RowsView& from,
                    std::int64_t count,
                    std::int64_t bytes);

  Rank rank_of(int member) const { return transport_.rank() - member_ + member; }

  int buffer() const { return static_cast<int>(rounds_ % 2); }

  int signal_of(int member) const { return buffer() * options_.tp + member; }

  /// Where a member's slab of this round begins in the part that holds it.
  std::size_t slab_offset(int member) const;
  std::uint64_t puts_for(std::size_t bytes) const;

  const Options options_;
  Transport& transport_;
  ThreadPool& pool_;
  const int member_;
  const bool pull_;  // receivers read peers' memory; otherwise senders push
  const std::size_t slab_bytes_;
  std::unique_ptr<Region> region_;       // pull: [2] slabs, this rank's; else [2][tp] slabs
  std::vector<std::uint64_t> expected_;  // [2][tp] puts so far, by signal
  std::uint64_t rounds_ = 0;
};

}  // namespace ferry
