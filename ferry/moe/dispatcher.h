// Dispatch and combine: tokens out to the ranks that hold their experts, results back.
//
// One exchange engine; a backend is a named row of its options table (backend.h). The protocol, and
// why it is right, stands in docs/wire_format.md.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/moe/backend.h"
#include "ferry/moe/dispatch_plan.h"
#include "ferry/moe/exchange_layout.h"
#include "ferry/moe/experts.h"
#include "ferry/transport/transport.h"

namespace ferry {

struct DispatcherOptions {
  ExchangeOptions exchange;
  int slots_per_rank = 0;            ///< L
  int hidden = 0;                    ///< H
  int topk = 0;                      ///< K
  int max_tokens = 0;                ///< per rank and exchange; callers chunk what is more
  DType dispatch_wire = DType::f32;  ///< what travels out: f32 or bf16
  DType expert_type = DType::f32;    ///< what experts receive; converted on the receiving copy
  DType combine_wire = DType::f32;   ///< what comes back: f32 or bf16
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
};

/// Tokens of this rank. Borrowed for dispatch_send.
struct RoutedTokens {
  RowsView rows = {};  ///< [tokens, H] of `type`
  DType type = DType::f32;
  int tokens = 0;
  std::span<const SlotId> slots = {};   ///< [tokens, K], -1 = none
  std::span<const float> weights = {};  ///< [tokens, K]; needed where ranks sum before home does
  int chunks = 1;  ///< exchanges that this rank still needs for its tokens, this one included
  int layer = -1;  ///< for diagnosis only
};

/// Where combine puts the tokens' results.
struct CombineTarget {
  std::span<const float> weights = {};  ///< [tokens, K]
  MutableRowsView rows = {};            ///< [tokens, H] of `type`
  DType type = DType::f32;
  bool accumulate = false;  ///< add to what the rows hold
};

struct ExchangeStats {
  std::uint64_t exchanges = 0;
  std::uint64_t bytes_logical = 0;  ///< payload if every (token, expert) travelled by itself
  std::uint64_t bytes_wire = 0;     ///< payload that left or entered this rank's memory
};

/// One lane: one exchange in flight. Every exchange runs its four phases in order on every rank of
/// the group; two exchanges in flight are two Dispatchers. Construction is collective. Threads: one
/// at a time. Allocates only in the constructor.
/// Errors: TransportError names phase, peer, layer, epoch, expected and seen; the dispatcher may
/// then only be destroyed.
class Dispatcher {
 public:
  Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool);
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  /// Bytes of memory that a dispatcher with these options reserves on each of `ranks` ranks.
  static std::size_t mem_size(const DispatcherOptions& options, int ranks, bool load_store);

  /// Plans and sends; returns when everything in `tokens` has been taken.
  void dispatch_send(const RoutedTokens& tokens);
  /// Waits for all peers' tokens. The rows stay valid until combine_send.
  ExpertRows dispatch_recv();
  /// Tells peers that the rows of ExpertRows::out are written.
  void combine_send();
  /// Waits for all results and writes the sums.
  void combine_recv(const CombineTarget& target);

  /// Whether the next receive phase would find everything there; never blocks. Throws like the
  /// phase itself when the deadline has passed or a peer is gone.
  bool poll();

  /// Greatest `chunks` that any rank announced in the exchange last received.
  int chunks_of_all() const { return chunks_of_all_; }

  /// [max_tokens, H] rows of the dispatch wire's type that peers can read. Tokens handed to
  /// dispatch_send from here are not copied first. May be written between exchanges only.
  MutableRowsView registered_input() const;

  const ExchangeStats& stats() const { return stats_; }

 private:
  enum class Phase : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent };

  // dispatch.cpp
  void stage_rows(const RoutedTokens& tokens);
  std::size_t write_dispatch_message(Rank peer, const RoutedTokens& tokens, std::uint32_t puts);
  std::uint32_t append_reduce_entries(Rank peer, const RoutedTokens& tokens, std::byte*& out) const;
  std::uint32_t push_rows(Rank peer);
  TransportError contradiction(Rank home) const;
  DispatchMessage message_of(Rank home) const;
  void read_dispatch_message(Rank home);
  void take_rows(Rank home);

  // combine.cpp
  void sum_per_rank(Rank home);
  std::uint32_t push_results(Rank home);
  std::size_t write_combine_message(Rank home, std::uint32_t puts);
  void read_combine_message(Rank peer);
  void sum_at_home(const CombineTarget& target, std::int64_t token, int worker);

  // dispatcher.cpp
  void enter(Phase expected, Phase next, std::string_view phase);
  void put(Rank peer, std::size_t offset, std::span<const std::byte> source, ExchangeSignal signal);
  /// Puts rows of our part at `from` to a peer's part at `to`; returns how many puts that took.
  std::uint32_t put_rows(Rank peer,
                         std::size_t to,
                         std::size_t from,
                         std::size_t rows,
                         std::size_t row_bytes,
                         ExchangeSignal signal);
  void await(Rank peer, ExchangeSignal signal, std::uint64_t count);
  std::string where() const;
  template <class Call>
  auto in_context(Call call);
  int signal_index(Rank source, ExchangeSignal signal) const;

  template <class T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(region_->local().data() + offset);
  }

  /// Where the rows of `home` can be read: its stage, or the slab they were pushed to.
  const std::byte* rows_of(Rank home);
  /// Where the results of `peer` can be read.
  const std::byte* results_of(Rank peer);

  const DispatcherOptions options_;
  Transport& transport_;
  ThreadPool& pool_;
  const int ranks_;
  const bool pull_;  // receivers read peers' memory; otherwise senders push
  const ExchangeLayout layout_;
  std::unique_ptr<Region> region_;
  SendPlan send_plan_;
  ReceivePlan receive_plan_;
  Buffer expert_input_;                          // [expert_rows, H] unless rows are only pointed at
  Buffer expert_output_;                         // where ranks sum: experts' rows before the sum
  std::vector<const std::byte*> row_pointers_;   // [expert_rows] in that format
  std::vector<std::uint64_t> rows_expected_;     // [R] cumulative pushed rows, dispatch
  std::vector<std::uint64_t> results_expected_;  // [R] the same, combine
  std::vector<std::vector<const std::byte*>>
      sum_rows_;  // a thread's pointers and weights of one sum
  std::vector<std::vector<float>> sum_weights_;
  Deadline deadline_ = kNoDeadline;  // of the phase that waits
  Phase phase_ = Phase::idle;
  std::string_view phase_name_ = "idle";
  int layer_ = -1;
  std::uint64_t epoch_ = 0;
  int chunks_of_all_ = 1;
  ExchangeStats stats_;
};

}  // namespace ferry
