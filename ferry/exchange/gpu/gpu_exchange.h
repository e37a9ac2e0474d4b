// Dispatch and combine on GPUs: the phases of a Dispatcher whose steps are kernels on a queue. The
// host plans nothing and waits for nothing between the phases; they can be captured in a graph
// (GpuQueue::capture) and launched again with other tokens, ids, rows and numbers of tokens.
// gpu_layout.h says how the ranks' memory is laid out and why it is right.
#pragma once

#include <memory>
#include <vector>

#include "ferry/dispatcher.h"
#include "ferry/exchange/gpu/gpu_network.h"
#include "ferry/exchange/gpu/gpu_queue.h"

namespace ferry {

/// Throws ConfigError that says what of these options a GPU exchange cannot do.
void check_gpu_options(const DispatcherOptions& options, int ranks);

/// Tokens of this rank, all in memory that the queue's kernels reach, until the exchange is over.
struct GpuTokens {
  RowsView rows = {};  ///< as RoutedTokens'; or registered_input(), which is not copied
  DType type = DType::f32;
  bool encoded = false;
  int count = 0;                       ///< their number, at most max_tokens;
  const int* tokens = nullptr;         ///< or how many of these there are, read when kernels run
  const SlotId* slots = nullptr;       ///< [tokens, K], -1 = none
  const float* weights = nullptr;      ///< [tokens, K], where ranks sum before home does
  const float* row_weights = nullptr;  ///< [tokens, K], with the option row_weights
};

/// Where the sums go; as CombineTarget.
struct GpuTarget {
  const float* weights = nullptr;  ///< [tokens, K]; not read where ranks have summed by them
  MutableRowsView rows = {};
  DType type = DType::f32;
  bool accumulate = false;
};

/// One lane: one exchange in flight. Construction is collective over `transport`: it carries the
/// addresses of memory among ranks of a host, and nothing afterwards. Between hosts a GpuNetwork
/// carries what kernels write, by a transport split off and a thread of its own. Phases in order on
/// every rank, as a Dispatcher's; each puts a kernel on the queue, or two where ranks are on
/// several hosts, and returns.
///
/// Under capture the phases have an order of their own, which goes on from one capture to the next
/// or, with dispatch_send, begins anew: a graph may hold whole exchanges, or a part of one and the
/// next graph the rest. Each launch is as if the phases were called then, so graphs and calls may
/// alternate from one whole exchange to the next, on each rank as it likes. What a graph keeps:
/// addresses, types, GpuTokens::count, the timeout; masks it reads when it runs.
///
/// With on_dead_rank = mask, as a Dispatcher's: a rank that does not come within the timeout is
/// masked, on the device, and the exchange goes on as if it had sent nothing. The host learns of it
/// in synchronise(), and then masks it in the transport too, which must outlive this. A rank that
/// was masked while it lived gets a TransportError from synchronise(). A death that the transport
/// knows of is waited for all the same, unless the caller calls mask(). Memory of a rank that died
/// must stay: CUDA keeps an ended process's until the others have closed it.
///
/// All ranks leave() before they destroy it. Threads: one at a time. Errors: ConfigError for
/// options; what goes wrong on the device (a rank that does not come within options.timeout, an id
/// that is no slot's) is thrown by synchronise(), a TransportError or BrokenContract, and the
/// exchange may then only be destroyed. A rank of another host that died or gave up, as far as the
/// transport knows, ends the waits for it at once.
class GpuExchange {
 public:
  /// `ranks_per_host` > 0: as if so many consecutive ranks shared a host, alike on all ranks; 0: as
  /// the transport has it.
  GpuExchange(const DispatcherOptions& options,
              Transport& transport,
              GpuQueue& queue,
              int ranks_per_host = 0);

  /// Device memory of one such exchange. Ranks on several hosts have some words more for each slot
  /// of all, and boxes in the host's memory (gpu_boxes.h).
  static std::size_t mem_size(const DispatcherOptions& options, int ranks);

  ~GpuExchange();
  GpuExchange(const GpuExchange&) = delete;
  GpuExchange& operator=(const GpuExchange&) = delete;

  void dispatch_send(const GpuTokens& tokens);
  /// Rows, counts and offsets in device memory, valid for work on the queue; the same memory in
  /// every exchange.
  ExpertRows dispatch_recv();
  void combine_send();
  void combine_recv(const GpuTarget& target);

  /// Returns when everything on the queue is done; throws what an exchange ran into.
  void synchronise();

  /// Collective: the last thing that is done with an exchange that has not failed. Waits until
  /// nobody reads from this rank's memory, lets go of the peers', and waits until all have: only
  /// then may memory be freed that another process has open. Throws as synchronise(), and where a
  /// rank does not come within the timeout.
  void leave();

  /// Goes on without `peer`, of which the caller knows that it is gone, from what is put on the
  /// queue next. Needs on_dead_rank = mask; not in a capture.
  void mask(Rank peer);

  /// As of the last synchronise() or mask().
  bool is_masked(Rank peer) const { return masked_now_[static_cast<std::size_t>(peer)] != 0; }

  /// As Dispatcher::lost_tokens(), of the exchange last combined at the last synchronise().
  std::span<const int> lost_tokens() const { return lost_tokens_; }

  MutableRowsView registered_input() const;

  const DispatcherOptions& options() const { return options_; }

  int ranks() const { return args_.layout.ranks; }

  /// Rows that the memory of ExpertRows has room for.
  std::int64_t expert_rows() const { return args_.layout.expert_rows; }

 private:
  enum class Phase : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent };

  /// Exchanges one after the other: those that run when they are called, or those in captures.
  struct Course {
    std::uint64_t capture = 0;  ///< GpuQueue::capturing() of the last call
    Phase phase = Phase::idle;
    std::string_view phase_name = "idle";
    gpu::GpuExchangeArgs args;  ///< of the exchange in progress
  };

  Course& enter(Phase expected, Phase next, std::string_view name);
  void launch(const GpuKernel& kernel, std::size_t shared_bytes);
  void meet();
  void link_up(const std::vector<std::byte*>& parts);
  void learn_masks();
  [[noreturn]] void throw_fault(const gpu::GpuFaultRecord& fault) const;

  DispatcherOptions options_;
  Transport& transport_;
  GpuQueue& queue_;
  gpu::GpuExchangeArgs args_;  ///< what all exchanges have
  GpuGrid grid_;
  Course called_, captured_;

  std::unique_ptr<GpuMemory> part_;
  std::vector<std::unique_ptr<GpuMemory>> peers_;  // the near ones' parts, opened
  std::unique_ptr<GpuNetwork> network_;            // null: all ranks are near
  std::unique_ptr<GpuMemory> to_, from_;           // [ranks] links and sources
  std::unique_ptr<GpuMemory> far_results_;         // [ranks] addresses
  std::unique_ptr<GpuMemory> home_rows_, box_rows_;
  std::unique_ptr<GpuMemory> state_;
  std::unique_ptr<GpuMemory> in_slot_;
  std::unique_ptr<GpuMemory> input_;
  std::unique_ptr<GpuMemory> output_;   // of experts, unless they write results themselves
  std::unique_ptr<GpuMemory> weights_;  // with row_weights
  std::unique_ptr<GpuMemory> counts_;
  std::unique_ptr<GpuMemory> offsets_;
  std::unique_ptr<GpuMemory> begins_;  // where ranks sum

  // On the device and, as of the last synchronise(), here.
  std::unique_ptr<GpuMemory> masked_, lost_;
  std::vector<std::uint32_t> masked_now_, lost_now_;
  std::vector<int> lost_tokens_;
};

}  // namespace ferry
