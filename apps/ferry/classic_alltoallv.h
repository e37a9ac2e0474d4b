// The baseline of `ferry bench a2a`: what an engine does without an all-to-all made for MoE. Sort
// by expert, exchange counts, pack, alltoallv, permute to expert-major; and the way back in
// reverse.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/types.h"
#include "ferry/transport.h"

namespace ferry {

/// One rank's end of the classic path, over any transport, in bf16. Construction is collective;
/// each dispatch is followed by a combine. Threads: one at a time.
class ClassicAllToAllV {
 public:
  struct Options {
    int slots_per_rank = 0;
    int hidden = 0;
    int topk = 0;
    int max_tokens = 0;
    std::chrono::nanoseconds timeout = std::chrono::seconds(30);
    bool over_mpi = false;  ///< MPI_Alltoall and MPI_Alltoallv carry it instead of puts
  };

  ClassicAllToAllV(const Options& options, Transport& transport);

  /// rows: bf16 [tokens, H]; slots: [tokens, K], all >= 0. Leaves the rows for this rank's slots
  /// expert-major in expert_rows().
  void dispatch(const std::byte* rows, int tokens, std::span<const SlotId> slots);

  /// Every rank's counts, as the last dispatch had them, to every rank: what rows have to wait for
  /// where their places are not known before. Part of dispatch; alone, to be measured.
  void exchange_counts();

  /// bf16 [received, H]; the caller overwrites it with the experts' results.
  std::byte* expert_rows() const { return expert_rows_.data(); }

  std::int64_t received() const { return received_; }

  /// out: bf16 [tokens, H], the weighted sums in top-k order.
  void combine(std::span<const float> weights, std::byte* out);

 private:
  void exchange(std::span<const std::int64_t> send_first,
                std::span<const std::int64_t> send_count,
                std::span<const std::int64_t> receive_count,
                int phase);
  void await(int signal, std::uint64_t round);

  std::size_t box_bytes() const { return static_cast<std::size_t>(rows_per_peer_) * row_bytes_; }

  std::size_t outbox_of(int phase) const;
  std::size_t inbox_of(int phase) const;

  Options options_;
  Transport& transport_;
  std::size_t row_bytes_;
  std::unique_ptr<Region>
      region_;  // counts in, counts out; for rows and results: outboxes, inboxes
  std::size_t counts_outbox_ = 0, outbox_ = 0, inbox_ = 0;
  std::int64_t rows_per_peer_ = 0;
  std::uint64_t round_ = 0, counts_round_ = 0;
  int tokens_ = 0;
  std::int64_t received_ = 0;
  Buffer expert_rows_;
  std::vector<std::int64_t> sorted_of_entry_;  // [tokens, K] place in the packed rows
  std::vector<std::int64_t> send_first_, send_count_, receive_count_;  // [R] rows
  std::vector<std::int64_t> expert_row_;  // [received] expert-major row of each arriving row
};

}  // namespace ferry
