// What lies where in the memory by which an exchange on GPUs reaches ranks of other hosts: memory
// of the host that kernels reach too, one part a rank, as a Transport's region has it.
//
//   part    = stage results* result_counts outbox* inbox*
//   stage   = the rows that some far rank computes, each at its token's place: written once,
//             however many ranks it goes to, and sent from here
//   results = of a home whose group has far ranks, what our experts give for its rows
//   outbox  = letter                   for each far rank: what our kernels tell it
//   inbox   = letter stage results     from each far rank: what it tells ours, and its rows;
//                                      results are those of every share of our group
//   letter  = signals headers counts tokens weights result_rows
//
// A letter's signals stay where they are: in an outbox kernels ring for the thread that carries
// letters (gpu_network.h), in an inbox it rings for the kernels. All else has the same place in
// both, so a letter travels as it is. Lists have room for all tokens, rows stand at their tokens'
// places: no place depends on a length, and only what is there travels.
//
// Why no box is written too early: as in gpu_layout.h, for an outbox like the part of the rank that
// it goes to, and an inbox like what lies in one's own. Beyond that a network sends from where
// things lie until they have arrived. Our tokens of e have arrived when their rank's results of e
// have come, which our sums waited for, before which we write none of e + 1. Results of e have
// arrived when their home's tokens of e + 1 have come, which ReceiveTokens waits for before it
// tells of others.
#pragma once

#include <vector>

#include "ferry/exchange/gpu/gpu_layout.h"

namespace ferry::gpu {

/// Of each far rank and step, the number of puts that it sent; travels beside them.
struct GpuHeader {
  std::uint64_t exchange = 0;
  std::uint64_t puts = 0;
};

/// Steps whose signals travel: GpuSignal::tokens and GpuSignal::results.
inline constexpr int kGpuSteps = kGpuWaits;

/// Offsets, of one rank among those of all. The same part_bytes on every rank.
class GpuBoxes {
 public:
  /// `hosts` [ranks]: the number of each rank's host.
  GpuBoxes(const GpuLayout& layout, const std::vector<int>& hosts, Rank rank);

  // In a letter.
  struct Letter {
    std::size_t signals, headers, counts, tokens, weights, result_rows, bytes;
  };

  const Letter& letter() const { return letter_; }

  std::size_t part_bytes() const { return part_bytes_; }

  bool is_far(Rank peer) const { return is_far(rank_, peer); }

  /// Whether ranks of other hosts read the results of `home` that we have.
  bool has_results(Rank home) const { return has_results(rank_, home); }

  static constexpr std::size_t stage() { return 0; }

  /// REQUIRES: has_results(home).
  std::size_t results(Rank home) const;

  std::size_t result_counts() const { return result_counts_; }  ///< u32 [ranks], by home

  /// REQUIRES: is_far(peer).
  std::size_t outbox(Rank peer) const;

  std::size_t inbox(Rank peer) const { return inbox(rank_, peer); }

  /// What `peer` has from us, in its part.
  std::size_t inbox_there(Rank peer) const { return inbox(peer, rank_); }

  /// Behind an inbox's begin.
  std::size_t inbox_stage() const { return letter_.bytes; }

  std::size_t inbox_results() const { return inbox_results_; }

  /// What kernels write into, or read from, a letter of memory that they reach at `base`.
  GpuLink link(std::byte* base, std::size_t letter) const;

 private:
  bool is_far(Rank rank, Rank peer) const;
  bool has_results(Rank rank, Rank home) const;
  std::size_t inbox(Rank rank, Rank peer) const;
  /// How many of the ranks before `peer` are far from `rank`.
  std::size_t far_before(Rank rank, Rank peer) const;

  const GpuLayout layout_;
  const std::vector<int> hosts_;
  const Rank rank_;
  Letter letter_ = {};
  std::size_t inbox_results_ = 0, inbox_bytes_ = 0;
  std::size_t results_ = 0, results_bytes_ = 0;
  std::size_t result_counts_ = 0, outboxes_ = 0, inboxes_ = 0, part_bytes_ = 0;
};

}  // namespace ferry::gpu
