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

#include "ferry/backend.h"
#include "ferry/exchange_stats.h"
#include "ferry/expert_rows.h"
#include "ferry/export.h"
#include "ferry/function_ref.h"
#include "ferry/memory_kind.h"
#include "ferry/threads.h"
#include "ferry/transport.h"
#include "ferry/types.h"
#include "ferry/wire.h"

namespace ferry {

class CachedRouting;
class DataPlane;
struct KeptRouting;

struct DispatcherOptions {
  ExchangeOptions exchange;
  int slots_per_rank = 0;  ///< L
  int hidden = 0;          ///< H
  int result_columns = 0;  ///< of H, that a result has: where experts compute some alone. 0: all
  int topk = 0;            ///< K
  int max_tokens = 0;      ///< per rank and exchange; callers chunk what is more
  /// Ranks that hold the same tokens (tensor-parallel attention): ranks [g * tp, (g + 1) *
  /// tp) for each g. Each sends its share, all get every result.
  int tp = 1;
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

  int columns_of_results() const { return result_columns != 0 ? result_columns : hidden; }

  /// What experts write: the combine wire's type, or f32 where that is quantised.
  DType output_type() const { return element_type(combine_wire).value_or(DType::f32); }
};

/// Tokens of this rank. Borrowed for dispatch_send; where the plane has a queue, until that has
/// passed it.
struct RoutedTokens {
  MemoryPlace place = {};   ///< of `rows`
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

/// Where combine puts the tokens' results. Borrowed like RoutedTokens.
struct CombineTarget {
  MemoryPlace place = {};               ///< of `rows`
  std::span<const float> weights = {};  ///< [tokens, K]
  MutableRowsView rows = {};  ///< [tokens, result_columns] of `type`; hidden_partition: H / R
  DType type = DType::f32;
  bool accumulate = false;  ///< add to what the rows hold
};

/// A routing kept for later exchanges: made by Dispatcher::keep_routing() on every rank of one
/// exchange, and used again on all of them together, in dispatchers of the same options. Owns
/// copies. Threads: read only.
class CachedRouting {
 public:
  explicit CachedRouting(std::unique_ptr<const KeptRouting> kept);
  ~CachedRouting();
  CachedRouting(const CachedRouting&) = delete;
  CachedRouting& operator=(const CachedRouting&) = delete;

  const KeptRouting& kept() const { return *kept_; }

 private:
  std::unique_ptr<const KeptRouting> kept_;
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
  /// On the host: every call has done its work when it returns.
  Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool);
  /// On a plane that outlives it. On one with a queue calls return at once, and what an exchange
  /// computes (counts, chunks_of_all(), lost_tokens(), stats(), source_stats(), the rows of
  /// CombineTarget) may be read after synchronise(); earlier is a BrokenContract, or a fault where
  /// it is memory.
  Dispatcher(const DispatcherOptions& options, Transport& transport, DataPlane& plane);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  /// Bytes of memory that a dispatcher with these options reserves on each of `ranks` ranks, whose
  /// transport has these capabilities.
  static std::size_t mem_size(const DispatcherOptions& options,
                              int ranks,
                              const Capabilities& transport);

  /// Plans and sends; returns when everything in `tokens` has been taken.
  void dispatch_send(const RoutedTokens& tokens);
  /// Waits for all peers' tokens. The rows stay valid until combine_send.
  ExpertRows dispatch_recv();
  /// The same around the caller's experts: called once with all rows, or, with pipeline = tiles,
  /// for one tile after the other, results leaving between them. A tile has all slots' counts;
  /// those not in it are 0. On a plane with a queue it is called at once and once, to put its work
  /// on the queue (ExpertRows::place).
  void dispatch_recv(FunctionRef<void(const ExpertRows&)> experts);
  /// Tells peers that the rows of ExpertRows::out are written.
  void combine_send();
  /// Waits for all results and writes the sums.
  void combine_recv(const CombineTarget& target);

  /// Whether the next receive phase would find everything there; never blocks. Throws like the
  /// phase itself when the deadline has passed or a peer is gone. On a plane with a queue phases
  /// wait for nothing, and it is true.
  bool poll();

  /// The routing of the exchange in progress, for RoutedTokens::cached of later ones. Between
  /// dispatch_recv and combine_send; allocates. Row weights, and where ranks sum before home does
  /// the other weights too, are kept with it. Synchronises.
  std::unique_ptr<CachedRouting> keep_routing() const;

  /// Returns when everything that was called has been done; throws what went wrong in it.
  void synchronise();

  /// Goes on without `peer`, of which the caller knows that it is gone. Needs on_dead_rank = mask.
  void mask(Rank peer);

  int ranks() const;

  bool is_masked(Rank peer) const;

  /// Tokens of the exchange last combined that needed a masked rank, rising: their sums lack its
  /// results.
  std::span<const int> lost_tokens() const;

  /// Greatest `chunks` that any rank announced in the exchange last received.
  int chunks_of_all() const;

  /// [max_tokens, H] rows of the dispatch wire's type that peers can read ([.., H / R] with
  /// hidden_partition). Tokens handed to dispatch_send from here are not copied first. May be
  /// written between exchanges only.
  MutableRowsView registered_input() const;

  /// With the format that was chosen (ExchangeOptions::fixed_format).
  const DispatcherOptions& options() const;

  const ExchangeStats& stats() const;

  /// [R], by source rank: whom this rank has waited for, and rows that came from whom. Waits are 0
  /// for this rank itself. Read between calls, by the thread that makes them; see stats() for a
  /// plane with a queue.
  std::span<const SourceStats> source_stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
