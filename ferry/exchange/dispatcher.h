// Dispatch and combine: tokens out to the ranks that hold their experts, results back.
//
// One exchange engine; a backend is a named row of its options table (backend.h). The protocol, and
// why it is right, stands in docs/wire_format.md.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/error.h"
#include "ferry/core/function_ref.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/exchange/backend.h"
#include "ferry/exchange/cached_routing.h"
#include "ferry/exchange/dispatch_plan.h"
#include "ferry/exchange/exchange_layout.h"
#include "ferry/exchange/expert_rows.h"
#include "ferry/exchange/relay_plan.h"
#include "ferry/export.h"
#include "ferry/kernels/wire.h"
#include "ferry/transport/transport.h"

namespace ferry {

struct DispatcherOptions {
  ExchangeOptions exchange;
  int slots_per_rank = 0;  ///< L
  int hidden = 0;          ///< H
  int topk = 0;            ///< K
  int max_tokens = 0;      ///< per rank and exchange; callers chunk what is more
  /// Ranks that hold the same tokens (tensor-parallel attention): ranks [g * dp_size, (g + 1) *
  /// dp_size) for each g. Each sends its share, all get every result.
  int dp_size = 1;
  std::int64_t row_alignment = 16;         ///< ragged: slots start at a multiple of so many rows
  WireType dispatch_wire = WireType::f32;  ///< what travels out
  /// What experts receive: the dispatch wire's type (rows as delivered, scales behind the values:
  /// wire.h), or f32 or bf16, converted on the receiving copy.
  WireType expert_type = WireType::f32;
  WireType combine_wire = WireType::f32;  ///< what comes back
  /// Experts get a number with each row, by which they multiply what they read of it
  /// (ExpertRows::weights).
  bool row_weights = false;
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of each phase that waits

  /// What experts write: the combine wire's type, or f32 where that is quantised.
  DType output_type() const { return element_type(combine_wire).value_or(DType::f32); }
};

/// Tokens of this rank. Borrowed for dispatch_send.
struct RoutedTokens {
  RowsView rows = {};       ///< [tokens, H] of `type`; with hidden_partition [tokens, H / R]
  DType type = DType::f32;  ///< f32, bf16; f16 too where the wire is not quantised
  /// The rows are in the dispatch wire's type already, scales behind the values (wire.h): they
  /// travel as they are, and `type` is not read.
  bool encoded = false;
  int tokens = 0;
  std::span<const SlotId> slots = {};   ///< [tokens, K], -1 = none
  std::span<const float> weights = {};  ///< [tokens, K]; needed where ranks sum before home does
  /// [tokens, K], with the option row_weights. A token may then name no slot twice.
  std::span<const float> row_weights = {};
  int chunks = 1;  ///< exchanges that this rank still needs for its tokens, this one included
  int layer = -1;  ///< for diagnosis only
  /// A routing kept from an earlier exchange, to be used again by all ranks: nothing is planned,
  /// `slots` and both weights are not read. Must outlive the exchange.
  const CachedRouting* cached = nullptr;
  /// Of this exchange's phases, where it differs from the options'.
  std::optional<std::chrono::nanoseconds> timeout = {};
};

/// Where combine puts the tokens' results.
struct CombineTarget {
  std::span<const float> weights = {};  ///< [tokens, K]
  MutableRowsView rows = {};  ///< [tokens, H] of `type`; hidden_partition: [tokens, H / R]
  DType type = DType::f32;
  bool accumulate = false;  ///< add to what the rows hold
};

struct ExchangeStats {
  std::uint64_t exchanges = 0;
  std::uint64_t bytes_logical = 0;  ///< payload if every (token, expert) travelled by itself
  std::uint64_t bytes_wire = 0;     ///< payload that left or entered this rank's memory
  std::uint64_t bytes_network = 0;  ///< of that, payload that left for another host
};

/// One lane: one exchange in flight. Every exchange runs its four phases in order on every rank of
/// the group; two exchanges in flight are two Dispatchers. Construction is collective. Threads: one
/// at a time. Allocates only in the constructor.
/// Errors: ConfigError for options that do not go together, with the reason. TransportError names
/// phase, peer, layer, epoch, expected and seen; the dispatcher may then only be destroyed.
///
/// With on_dead_rank = mask no phase throws for a rank that died, gave up or let the timeout pass:
/// it is masked, here and in the transport, and the exchange goes on as if it had sent nothing.
/// lost_tokens() are those whose results lack a part. A rank that was masked while it lived gets a
/// TransportError from its next phase.
class FERRY_API Dispatcher {
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
  /// The same around the caller's experts: called once with all rows, or, with pipeline = tiles,
  /// for one tile after the other, results leaving between them. A tile has all slots' counts;
  /// those not in it are 0.
  void dispatch_recv(FunctionRef<void(const ExpertRows&)> experts);
  /// Tells peers that the rows of ExpertRows::out are written.
  void combine_send();
  /// Waits for all results and writes the sums.
  void combine_recv(const CombineTarget& target);

  /// Whether the next receive phase would find everything there; never blocks. Throws like the
  /// phase itself when the deadline has passed or a peer is gone.
  bool poll();

  /// The routing of the exchange in progress, for RoutedTokens::cached of later ones. Between
  /// dispatch_recv and combine_send; allocates. Row weights, and where ranks sum before home does
  /// the other weights too, are kept with it.
  std::unique_ptr<CachedRouting> keep_routing() const;

  /// Goes on without `peer`, of which the caller knows that it is gone. Needs on_dead_rank = mask.
  void mask(Rank peer);

  int ranks() const { return ranks_; }

  bool is_masked(Rank peer) const { return masked_[static_cast<std::size_t>(peer)] != 0; }

  /// Tokens of the exchange last combined that needed a masked rank, rising: their sums lack its
  /// results.
  std::span<const int> lost_tokens() const { return lost_tokens_; }

  /// Greatest `chunks` that any rank announced in the exchange last received.
  int chunks_of_all() const { return chunks_of_all_; }

  /// [max_tokens, H] rows of the dispatch wire's type that peers can read ([.., H / R] with
  /// hidden_partition). Tokens handed to dispatch_send from here are not copied first. May be
  /// written between exchanges only.
  MutableRowsView registered_input() const;

  const DispatcherOptions& options() const { return options_; }

  const ExchangeStats& stats() const { return stats_; }

 private:
  enum class Phase : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent };

  // dispatch.cpp
  void stage_rows(const RoutedTokens& tokens);
  /// push(first row in the slab, first token, rows) for all that is pushed to `peer`.
  template <class Push>
  void for_pushed_rows(Rank peer, Push push) const;
  std::uint32_t num_row_puts(Rank peer) const;
  void push_rows(Rank peer);
  void receive_messages();
  void take_rows(Rank home);
  void copy_rows(Rank home);
  ExpertRows rows_of_slots(std::span<const std::int32_t> counts,
                           std::span<const std::int64_t> offsets) const;

  // dispatch_message.cpp
  std::size_t write_dispatch_message(Rank peer, const RoutedTokens& tokens, std::uint32_t puts);
  std::uint32_t append_reduce_entries(Rank peer, const RoutedTokens& tokens, std::byte*& out) const;
  void append_row_weights(Rank peer, const RoutedTokens& tokens, std::byte*& out) const;
  TransportError contradiction(Rank home) const;
  std::span<std::uint32_t> counts_of(Rank home);
  void read_dispatch_message(Rank home);
  bool sane(const DispatchHeader& header) const;
  bool sane(const DispatchMessage& message) const;
  bool count_records(Rank home, std::uint32_t tokens, std::span<const Record> records);
  void check_groups() const;

  // relay.cpp
  bool reads(Rank rank) const { return reads_[static_cast<std::size_t>(rank)] != 0; }

  void pass_on(Rank home);
  void pass_on_what_arrived();

  /// Whether this host's sums for `home` leave as one.
  bool sums_per_host(Rank home) const {
    return sums_per_host_ && !relays_.is_near(home) && !relays_.neighbours().empty();
  }

  Rank summing_rank(Rank rank) const;
  void relay_sums();
  void sum_per_host(Rank home);
  void push_host_sums(Rank home);

  // tiles.cpp
  bool worth_own_tile() const;
  void run_tile(FunctionRef<void(const ExpertRows&)> experts, std::size_t first, std::size_t end);

  // combine.cpp
  void finish_results(std::size_t end_slot);
  void encode_results(std::size_t first_slot, std::size_t end_slot);
  void sum_per_rank(Rank home);
  void sum_tokens(Rank home, std::size_t first_entry, std::size_t end_entry, int worker);
  void write_sum(std::byte* to, std::size_t terms, WireType type_of_terms, std::size_t worker);
  void push_sums(Rank home, std::span<const ReduceEntry> entries);
  void push_results(Rank home, std::size_t first_slot, std::size_t end_slot);
  std::size_t write_combine_message(Rank home);
  void read_combine_message(Rank peer);
  std::span<std::int64_t> result_rows(Rank peer, std::size_t share);
  void sum_at_home(const CombineTarget& target, std::int64_t token, int worker);
  std::size_t gather_rank_sums(std::size_t token, std::size_t worker);
  std::size_t gather_results(const CombineTarget& target, std::size_t token, std::size_t worker);
  void collect_lost_tokens();

  // dispatcher.cpp
  void enter(Phase expected, Phase next, std::string_view phase);
  void put(Rank peer, std::size_t offset, std::span<const std::byte> source, ExchangeSignal signal);
  /// Raises at `peer` what `source` raises there, in its name.
  void raise(Rank peer, Rank source, ExchangeSignal signal);
  std::size_t rows_per_put(std::size_t row_bytes) const;
  /// Puts rows of our part at `from` to a peer's part at `to`; returns how many puts that took.
  std::uint32_t put_rows(Rank peer,
                         std::size_t to,
                         std::size_t from,
                         std::size_t rows,
                         std::size_t row_bytes,
                         ExchangeSignal signal);
  /// False: `peer` is masked, now or since earlier.
  bool await(Rank peer, ExchangeSignal signal, std::uint64_t count);
  bool arrived(Rank peer, ExchangeSignal signal, std::uint64_t count);
  bool mask_after(const TransportError& error);
  void mask_late(Rank peer);
  void throw_if_masked_by_others();
  std::string where() const;
  template <class Call>
  auto in_context(Call call);
  int signal_index(Rank source, ExchangeSignal signal) const;

  template <class T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(region_->local().data() + offset);
  }

  // Ranks that hold the same tokens by rows: `base` is the first of this one's group.
  Rank base_of(Rank rank) const { return rank / options_.dp_size * options_.dp_size; }

  int share_of(std::size_t token) const {
    return static_cast<int>(token % static_cast<std::size_t>(options_.dp_size));
  }

  /// The rank whose message says where the rows of `home` stand.
  Rank source_of(Rank home) const { return options_.exchange.hidden_partition ? 0 : home; }

  bool sums_per_rank() const {
    return options_.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home;
  }

  bool masks() const { return options_.exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask; }

  const std::vector<SendPlan>& send_plans() const {
    return cached_ ? cached_->send_plans_ : send_plans_;
  }

  const SendPlan& own_plan() const {
    return send_plans()[static_cast<std::size_t>(transport_.rank() - base_of(transport_.rank()))];
  }

  const ReceivePlan& receive_plan() const {
    return cached_ ? cached_->receive_plan_ : receive_plan_;
  }

  /// A rank's part of the region. REQUIRES: reads(rank).
  const std::byte* part_of(Rank rank) const;
  /// Where the rows of `home` can be read: its stage, or the slab they were pushed to.
  const std::byte* rows_of(Rank home);
  /// Where the results of `peer` can be read.
  const std::byte* results_of(Rank peer);
  /// Where experts write.
  std::byte* output() const;

  const DispatcherOptions options_;
  Transport& transport_;
  ThreadPool& pool_;
  const int ranks_;
  const bool pull_;  // all peers' memory can be read, so that nothing is pushed
  const RelayPlan relays_;
  const bool sums_per_host_;  // before they cross the network
  const ExchangeLayout layout_;
  std::unique_ptr<Region> region_;
  std::vector<std::uint8_t> reads_;    // [R] whether this rank reads that one's memory
  std::vector<std::uint64_t> passed_;  // [R] exchange whose rows were last passed on
  std::vector<SendPlan> send_plans_;   // [dp_size]: of each member's share of the group's tokens
  ReceivePlan receive_plan_;
  const CachedRouting* cached_ = nullptr;        // instead of the plans, in this exchange
  std::vector<DispatchMessage> messages_;        // [R] of this exchange; a masked rank's is empty
  std::vector<std::uint32_t> counts_;            // [R][L] of the messages
  std::vector<std::int64_t> result_rows_;        // [R][dp_size][L] of the combine messages
  std::vector<std::uint32_t> tokens_of_;         // [R]
  Buffer expert_input_;                          // [expert_rows, H] unless rows are only pointed at
  Buffer expert_output_;                         // rows that do not leave as experts write them
  std::vector<const std::byte*> row_pointers_;   // [expert_rows] in that format
  std::vector<float> row_weights_;               // [expert_rows] with that option
  Buffer no_row_;                                // pointed at where a masked rank's never came
  std::vector<std::int32_t> tile_counts_;        // [L] rows not computed yet
  std::vector<std::int32_t> counts_of_tile_;     // [L]
  std::vector<std::int64_t> tile_offsets_;       // [L]
  std::size_t arriving_bytes_ = 0;               // of experts' rows, in this exchange
  bool own_rows_taken_ = false;                  // before the other ranks' messages were there
  std::size_t finished_slots_ = 0;               // whose results have left
  std::vector<std::uint32_t> result_puts_;       // [R] of this exchange
  std::vector<std::uint64_t> rows_expected_;     // [R] cumulative pushed rows, dispatch
  std::vector<std::uint64_t> results_expected_;  // [R] the same, combine
  std::vector<std::vector<const std::byte*>> sum_rows_;  // a thread's pointers, weights
  std::vector<std::vector<float>> sum_weights_;          // and sum of one token
  std::vector<std::vector<float>> sum_row_;
  std::vector<std::uint8_t> masked_;       // [R]
  std::vector<std::uint8_t> has_results_;  // [R] whether the peer's results are there
  std::vector<std::uint8_t> lost_;         // [max_tokens]
  std::vector<int> lost_tokens_;
  Deadline deadline_ = kNoDeadline;  // of the phase that waits
  std::chrono::nanoseconds timeout_;
  Phase phase_ = Phase::idle;
  std::string_view phase_name_ = "idle";
  int layer_ = -1;
  int tokens_ = 0;  // of this rank's group, this exchange
  std::uint64_t epoch_ = 0;
  int chunks_of_all_ = 1;
  ExchangeStats stats_;
};

}  // namespace ferry
