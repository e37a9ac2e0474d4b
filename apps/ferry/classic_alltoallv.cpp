#include "apps/ferry/classic_alltoallv.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "apps/ferry/raw_mpi.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

enum Signal { rows_signal, results_signal, counts_signal, num_signals };

}  // namespace

ClassicAllToAllV::ClassicAllToAllV(const Options& options, Transport& transport)
    : options_(options),
      transport_(transport),
      row_bytes_(static_cast<std::size_t>(options.hidden) * dtype_bytes(DType::bf16)) {
  const auto ranks = static_cast<std::size_t>(transport.size());
  const auto slots = static_cast<std::size_t>(options.slots_per_rank);
  rows_per_peer_ = static_cast<std::int64_t>(options.max_tokens) * options.topk;
  const auto entries = static_cast<std::size_t>(rows_per_peer_);
  const std::size_t counts_bytes = ranks * slots * sizeof(std::uint32_t);
  const std::size_t page = 4096;
  counts_outbox_ =
      static_cast<std::size_t>(round_up(static_cast<std::int64_t>(counts_bytes), page));
  outbox_ = 2 * counts_outbox_;
  // Rows and results each have an outbox and an inbox: a fast peer's results arrive while this rank
  // still permutes the rows it received.
  const std::size_t box_bytes = entries * row_bytes_;
  inbox_ = outbox_ + 2 * box_bytes;
  region_ = transport.allocate_region(inbox_ + 2 * ranks * box_bytes, num_signals);
  expert_rows_ = Buffer(ranks * entries * row_bytes_);
  sorted_of_entry_.resize(entries);
  send_first_.resize(ranks);
  send_count_.resize(ranks);
  receive_count_.resize(ranks);
  expert_row_.resize(ranks * entries);
}

std::size_t ClassicAllToAllV::outbox_of(int phase) const {
  return outbox_ + static_cast<std::size_t>(phase) * box_bytes();
}

std::size_t ClassicAllToAllV::inbox_of(int phase) const {
  const auto ranks = static_cast<std::size_t>(transport_.size());
  return inbox_ + static_cast<std::size_t>(phase) * ranks * box_bytes();
}

void ClassicAllToAllV::await(int signal, std::uint64_t round) {
  const std::uint64_t count = round * static_cast<std::uint64_t>(transport_.size());
  if (transport_.wait(*region_, signal, count, deadline_in(options_.timeout)) ==
      WaitResult::timed_out) {
    throw TransportError(TransportError::Kind::timeout,
                         -1,
                         fmt::format("rank {}: baseline exchange {} timed out after {} s",
                                     transport_.rank(),
                                     round,
                                     std::chrono::duration<double>(options_.timeout).count()));
  }
}

/// MPI_Alltoallv by puts: rows [first, first + count) of the outbox to each rank's inbox.
void ClassicAllToAllV::exchange(std::span<const std::int64_t> send_first,
                                std::span<const std::int64_t> send_count,
                                std::span<const std::int64_t> receive_count,
                                int phase) {
  const auto me = static_cast<std::size_t>(transport_.rank());
  const std::size_t outbox = outbox_of(phase);
  if (options_.over_mpi) {
    std::byte* local = region_->local().data();
    return mpi_alltoallv({.from = local + outbox,
                          .send_first = send_first,
                          .send_count = send_count,
                          .to = local + inbox_of(phase),
                          .receive_stride = rows_per_peer_,
                          .receive_count = receive_count,
                          .row_bytes = row_bytes_});
  }
  for (Rank peer = 0; peer < transport_.size(); ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    const auto first = static_cast<std::size_t>(send_first[p]) * row_bytes_;
    const auto bytes = static_cast<std::size_t>(send_count[p]) * row_bytes_;
    transport_.put({.region = region_.get(),
                    .peer = peer,
                    .offset = inbox_of(phase) + me * box_bytes(),
                    .source = region_->local().subspan(outbox + first, bytes),
                    .signal = phase});
  }
  await(phase, round_);
}

void ClassicAllToAllV::dispatch(const std::byte* rows, int tokens, std::span<const SlotId> slots) {
  ++round_;
  tokens_ = tokens;
  const auto ranks = static_cast<std::size_t>(transport_.size());
  const auto per_rank = static_cast<std::size_t>(options_.slots_per_rank);
  std::byte* local = region_->local().data();

  // Sort by expert, pack.
  auto* counts = reinterpret_cast<std::uint32_t*>(local + counts_outbox_);  // [R * L]
  std::fill_n(counts, ranks * per_rank, 0U);
  for (const SlotId slot : slots) ++counts[slot];
  std::vector<std::int64_t> next(ranks * per_rank);
  std::exclusive_scan(counts, counts + next.size(), next.begin(), std::int64_t{0});
  for (std::size_t r = 0; r < ranks; ++r) {
    send_first_[r] = next[r * per_rank];
    send_count_[r] = std::accumulate(counts + r * per_rank, counts + (r + 1) * per_rank, 0LL);
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    sorted_of_entry_[i] = next[static_cast<std::size_t>(slots[i])]++;
    std::memcpy(
        local + outbox_of(rows_signal) + static_cast<std::size_t>(sorted_of_entry_[i]) * row_bytes_,
        rows + i / static_cast<std::size_t>(options_.topk) * row_bytes_,
        row_bytes_);
  }

  // Counts, then rows.
  exchange_counts();
  const auto* received_counts = reinterpret_cast<const std::uint32_t*>(local);  // [R][L]
  for (std::size_t r = 0; r < ranks; ++r) {
    const std::uint32_t* of_rank = received_counts + r * per_rank;
    receive_count_[r] = std::accumulate(of_rank, of_rank + per_rank, std::int64_t{0});
  }
  exchange(send_first_, send_count_, receive_count_, rows_signal);

  // Permute to expert-major.
  std::vector<std::int64_t> at(ranks);  // arriving row of each source, in order
  received_ = 0;
  for (std::size_t slot = 0; slot < per_rank; ++slot) {
    for (std::size_t r = 0; r < ranks; ++r) {
      for (std::uint32_t i = 0; i < received_counts[r * per_rank + slot]; ++i) {
        const std::size_t arriving =
            r * static_cast<std::size_t>(rows_per_peer_) + static_cast<std::size_t>(at[r]++);
        expert_row_[arriving] = received_;
        std::memcpy(expert_rows_.data() + static_cast<std::size_t>(received_++) * row_bytes_,
                    local + inbox_of(rows_signal) + arriving * row_bytes_,
                    row_bytes_);
      }
    }
  }
}

void ClassicAllToAllV::exchange_counts() {
  ++counts_round_;
  const std::size_t bytes =
      static_cast<std::size_t>(options_.slots_per_rank) * sizeof(std::uint32_t);
  std::byte* local = region_->local().data();
  if (options_.over_mpi) return mpi_alltoall(local + counts_outbox_, local, bytes);
  for (Rank peer = 0; peer < transport_.size(); ++peer) {
    transport_.put({.region = region_.get(),
                    .peer = peer,
                    .offset = static_cast<std::size_t>(transport_.rank()) * bytes,
                    .source = region_->local().subspan(
                        counts_outbox_ + static_cast<std::size_t>(peer) * bytes, bytes),
                    .signal = counts_signal});
  }
  await(counts_signal, counts_round_);
}

void ClassicAllToAllV::combine(std::span<const float> weights, std::byte* out) {
  const auto ranks = static_cast<std::size_t>(transport_.size());
  std::byte* local = region_->local().data();
  // Un-permute: back to the order of arrival, rank by rank.
  std::vector<std::int64_t> first(ranks);
  std::int64_t packed = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    first[r] = packed;
    for (std::int64_t i = 0; i < receive_count_[r]; ++i, ++packed) {
      const auto row =
          expert_row_[r * static_cast<std::size_t>(rows_per_peer_) + static_cast<std::size_t>(i)];
      std::memcpy(local + outbox_of(results_signal) + static_cast<std::size_t>(packed) * row_bytes_,
                  expert_rows_.data() + static_cast<std::size_t>(row) * row_bytes_,
                  row_bytes_);
    }
  }
  exchange(first, receive_count_, send_count_, results_signal);

  // Weighted sum over the rows as they were sent.
  std::vector<const std::byte*> terms(static_cast<std::size_t>(options_.topk));
  for (int t = 0; t < tokens_; ++t) {
    const auto entry = static_cast<std::size_t>(t) * terms.size();
    for (std::size_t k = 0; k < terms.size(); ++k) {
      const std::int64_t sorted = sorted_of_entry_[entry + k];
      const auto peer = static_cast<std::size_t>(
          std::upper_bound(send_first_.begin(), send_first_.end(), sorted) - send_first_.begin() -
          1);
      const auto row = peer * static_cast<std::size_t>(rows_per_peer_) +
                       static_cast<std::size_t>(sorted - send_first_[peer]);
      terms[k] = local + inbox_of(results_signal) + row * row_bytes_;
    }
    kernels().weighted_sum({.rows = terms.data(),
                            .weights = weights.data() + entry,
                            .k = options_.topk,
                            .n = options_.hidden,
                            .in_type = WireType::bf16,
                            .out = out + static_cast<std::size_t>(t) * row_bytes_,
                            .out_type = DType::bf16});
  }
}

}  // namespace ferry
