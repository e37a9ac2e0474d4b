// Dispatch and combine: tokens out to the ranks that hold their experts, results back.
//
// One exchange engine; a backend is a named row of its options table (exchange_options). The
// protocol, and why it is right, stands in docs/wire_format.md.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/moe/experts.h"
#include "ferry/transport/transport.h"

namespace ferry {

enum class MoeA2ABackend : std::uint8_t { none, pplx };

/// What an exchange does; each backend is one row of these.
struct ExchangeOptions {
  enum class SendPer : std::uint8_t {
    rank,        ///< every token once to every rank (all-gather)
    token_rank,  ///< a token once to each rank that holds one of its experts
  };
  enum class ReduceAt : std::uint8_t {
    home,           ///< one row per (token, expert) comes home; weighted sum there, in top-k order
    rank_then_home  ///< each rank sums its experts' rows in f32, home sums ranks in order
  };

  SendPer send_per = SendPer::token_rank;
  DispatchFormat format = DispatchFormat::padded;
  ReduceAt reduce_at = ReduceAt::home;
};

/// The row of a backend.
ExchangeOptions exchange_options(MoeA2ABackend backend);
std::string_view backend_name(MoeA2ABackend backend);
/// Throws ConfigError that lists the known names.
MoeA2ABackend parse_backend(std::string_view name);

struct DispatcherOptions {
  ExchangeOptions exchange;
  int slots_per_rank = 0;            ///< L
  int hidden = 0;                    ///< H
  int topk = 0;                      ///< K
  int max_tokens = 0;                ///< per rank and exchange; callers chunk what is more
  DType dispatch_wire = DType::f32;  ///< what experts receive: f32 or bf16
  DType combine_wire = DType::f32;   ///< what comes back: f32 or bf16
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
};

/// Tokens of this rank. slots: [tokens, K], -1 = none. rows: [tokens, H] of `type`.
struct RoutedTokens {
  RowsView rows;
  DType type = DType::f32;
  int tokens = 0;
  std::span<const SlotId> slots;
  int chunks = 1;  ///< exchanges that this rank still needs for its tokens, this one included
  int layer = -1;  ///< for diagnosis only
};

/// Where combine puts the tokens' results.
struct CombineTarget {
  std::span<const float> weights;  ///< [tokens, K]
  MutableRowsView rows;            ///< [tokens, H] of `type`
  DType type = DType::f32;
  bool accumulate = false;  ///< add to what the rows hold
};

struct ExchangeStats {
  std::uint64_t exchanges = 0;
  std::uint64_t bytes_logical = 0;  ///< payload if every (token, expert) travelled by itself
  std::uint64_t bytes_wire = 0;     ///< payload that left or entered this rank's memory
};

/// One lane: one exchange in flight, two alternating buffers. Every exchange runs its four phases
/// in order on every rank of the group; two exchanges in flight are two Dispatchers. Construction
/// is collective. Threads: one at a time. Allocates only in the constructor.
/// Errors: TransportError names phase, peer, layer, epoch, expected and seen; the dispatcher may
/// then only be destroyed.
class Dispatcher {
 public:
  Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  /// Bytes of memory that a dispatcher with these options reserves on each of `ranks` ranks.
  static std::size_t mem_size(const DispatcherOptions& options, int ranks, bool load_store);

  /// Plans and sends; returns when the rows are taken. `tokens.slots` and the weights are needed
  /// again in combine_send (pre-reducing rows of the table send them) and must live until then.
  void dispatch_send(const RoutedTokens& tokens, std::span<const float> weights);
  /// Waits for all peers' tokens. The rows stay valid until combine_send.
  ExpertRows dispatch_recv();
  /// Tells peers that the rows of ExpertRows::out are written.
  void combine_send();
  /// Waits for all results and writes the sums.
  void combine_recv(const CombineTarget& target);

  /// Whether the next receive phase would find everything there; never blocks.
  bool poll();

  /// Greatest `chunks` that any rank announced in the exchange last received.
  int chunks_of_all() const;

  const ExchangeStats& stats() const;

 private:
  class Lane;
  std::unique_ptr<Lane> lane_;
};

}  // namespace ferry
