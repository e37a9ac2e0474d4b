// A MoE layer around the caller's own experts: for engines that have kernels and want only the
// tokens carried. docs/all_to_all.md shows how to use it.
//
//   MoeAllToAll a2a(options, transport, pool);                  // once, collective
//   moe_forward(a2a, tokens, {.rows = logits}, my_experts);     // a layer, from router logits
//   moe_forward_from_topk(a2a, tokens, {ids, weights}, my_experts);  // or from ids and weights
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "ferry/backend.h"
#include "ferry/dispatcher.h"
#include "ferry/expert_rows.h"
#include "ferry/export.h"
#include "ferry/function_ref.h"
#include "ferry/placement.h"
#include "ferry/router.h"
#include "ferry/threads.h"
#include "ferry/transport.h"
#include "ferry/types.h"

namespace ferry {

/// The caller's kernel, borrowed for one call: a lambda, or a plain function (const ExpertRows&,
/// void* context) and its context. It reads rows.in and writes rows.out for the rows.counts[l] rows
/// of each local slot l (expert_rows.h says where they lie). It is called once per exchange (fused
/// backends: once per tile), also when no row arrived, on the thread that called moe_forward, with
/// denormals flushed. An exception from it reaches that caller; the group must then be aborted.
using ExpertFn = FunctionRef<void(const ExpertRows& rows)>;

/// Rows of K ids each, of any integer type that engines use. Does not own. A negative id, and a u32
/// above 2^31 - 1 (a -1 that was cast), means none.
struct IndexView {
  enum class Type : std::uint8_t { i32, u32, i64 };

  const void* base = nullptr;
  Type type = Type::i32;
  std::ptrdiff_t stride = 0;  ///< bytes from one token's ids to the next's

  std::int64_t at(std::int64_t row, int k) const;
};

/// Tokens of this rank and where their results go. Borrowed for the call.
struct MoeTokens {
  MemoryPlace place = {};  ///< of `hidden` and `out`; this is the host's call, and takes no other
  RowsView hidden = {};    ///< [tokens, H] of `type`; with hidden_partition [tokens, H / R]
  DType type = DType::f32;
  bool encoded = false;  ///< `hidden` is in the dispatch wire's type (RoutedTokens::encoded)
  int tokens = 0;        ///< 0 is legal, and so is more than max_tokens
  /// [tokens, H] (or H / R) of `out_type`; may be the memory of `hidden`, if type and stride are
  /// the same.
  MutableRowsView out = {};
  DType out_type = DType::f32;
  bool accumulate = false;               ///< add to what `out` holds
  const Placement* placement = nullptr;  ///< null: experts in order over the ranks
  int layer = -1;                        ///< for diagnosis only
  /// Of each wait of this call, where it differs from the options'.
  std::optional<std::chrono::nanoseconds> timeout = {};
};

/// What the router computed. The top-k is taken in f32.
struct RouterLogits {
  RowsView rows = {};  ///< [tokens, E] of `type`
  DType type = DType::f32;
  std::span<const float> selection_bias = {};  ///< [E], or empty; moves the choice, not the weights
};

/// Routing that is done already.
struct TopK {
  enum class Ids : std::uint8_t {
    logical,  ///< expert ids; the placement says which slots hold them
    physical  ///< slot ids; placed by the caller, who balances by itself
  };

  IndexView ids = {};
  RowsView weights = {};  ///< f32 [tokens, K]; what stands beside an id of none is not read
  Ids kind = Ids::logical;
};

/// What a call needs and the next one can use again: a lane and scratch. Construction is collective
/// (same options on all ranks). Threads: one call at a time. Allocates only in the constructor.
/// Errors: ConfigError for ids out of range, TransportError as the Dispatcher's. After any error
/// the ranks may be out of step: abort() the transport, destroy this, start over.
class FERRY_API MoeAllToAll {
 public:
  struct Options {
    RouterOptions router;  ///< experts and topk count always, the formula for logits
    int redundant = 0;     ///< replicas beyond one slot an expert
    ExchangeOptions exchange = exchange_options(MoeA2ABackend::pplx);
    ExpertsContract experts = {};  ///< what the caller's kernel can read; checked
    int hidden = 0;                ///< H
    int max_tokens = 0;            ///< per rank and exchange; more tokens run as several
    /// As in DispatcherOptions, these four.
    int tp = 1;
    WireType dispatch_wire = WireType::f32;
    WireType expert_type = WireType::f32;
    WireType combine_wire = WireType::f32;
    /// Weights go to the experts with the rows (ExpertRows::weights), and results are added up as
    /// they are. A token may then have no slot twice.
    bool row_weights = false;
    std::int64_t row_alignment = 16;  ///< ragged: 1 leaves no gaps between slots
    std::chrono::nanoseconds timeout = std::chrono::seconds(30);
  };

  MoeAllToAll(const Options& options, Transport& transport, ThreadPool& pool);
  ~MoeAllToAll();
  MoeAllToAll(const MoeAllToAll&) = delete;
  MoeAllToAll& operator=(const MoeAllToAll&) = delete;

  /// Bytes of memory that one with these options reserves on each of `ranks` ranks, whose transport
  /// has these capabilities.
  static std::size_t mem_size(const Options& options, int ranks, const Capabilities& transport);

  /// Of its exchanges on these ranks.
  static DispatcherOptions dispatcher_options(const Options& options,
                                              int ranks,
                                              const Capabilities& transport);

  int slots_per_rank() const;

  /// Tokens of the last call that needed a rank which is masked (on_dead_rank = mask), rising:
  /// their results lack its experts' parts.
  std::span<const int> lost_tokens() const;

  /// Goes on without `rank`, of which the caller knows that it is gone. Needs on_dead_rank = mask.
  void mask(Rank rank);

  const Dispatcher& dispatcher() const;
  /// For who runs the four phases by himself between two calls of moe_forward.
  Dispatcher& dispatcher();

 private:
  friend void moe_forward(MoeAllToAll& a2a,
                          const MoeTokens& tokens,
                          const RouterLogits& logits,
                          ExpertFn experts);
  friend void moe_forward_from_topk(MoeAllToAll& a2a,
                                    const MoeTokens& tokens,
                                    const TopK& topk,
                                    ExpertFn experts);

  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// tokens.out = weighted sum over each token's experts. Collective over the ranks of `a2a`; ranks
/// without tokens pass 0 and their experts work for the others. The router's formula is that of the
/// options.
FERRY_API void moe_forward(MoeAllToAll& a2a,
                           const MoeTokens& tokens,
                           const RouterLogits& logits,
                           ExpertFn experts);

/// The same with the routing done by the caller.
FERRY_API void moe_forward_from_topk(MoeAllToAll& a2a,
                                     const MoeTokens& tokens,
                                     const TopK& topk,
                                     ExpertFn experts);

}  // namespace ferry
