// Ranks of an exchange on GPUs that are on other hosts: boxes in memory that kernels and the
// network both reach (gpu_boxes.h), and a thread of the host that carries letters between them.
//
// Kernels know of no network: they write into an outbox as into a peer's part, and ring its signal.
// The thread looks at those signals, puts what there is into the peer's inbox, and where everything
// of a letter has come in, rings for the kernels that wait. Nothing is put on the queue for it, so
// captured graphs work as they are.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ferry/error.h"
#include "ferry/exchange/gpu/gpu_boxes.h"
#include "ferry/exchange/gpu/gpu_queue.h"
#include "ferry/transport.h"

namespace ferry {

/// The number of each rank's host, [ranks]. `ranks_per_host` > 0: as if so many consecutive ranks
/// shared one, else as the transport knows it.
std::vector<int> hosts_of_ranks(const Transport& transport, int ranks_per_host);

/// Whether these are more hosts than one.
bool spans_hosts(const std::vector<int>& hosts);

/// Throws ConfigError for options that there are on one host alone, and where the transport cannot
/// carry for kernels on these hosts.
void check_gpu_hosts(const std::vector<int>& hosts,
                     const DispatcherOptions& options,
                     const Transport& transport);

/// One rank's. Construction and destruction are for one thread; the transport that letters go by is
/// its own, split off the caller's, and used by its thread alone from then on. That thread yields
/// its core for a millisecond in which nothing moves, then sleeps an eighth of the time for which
/// nothing has moved, a millisecond at most. Destroyed while an exception unwinds the stack, it
/// tells the others that this rank gives up.
/// Errors: what ends the thread is thrown by rethrow(); kernels that wait for a far rank are told
/// (kLinkFailed), those of the others too. Where dead ranks are masked, one that the transport
/// misses does not end it, and kernels mask that rank when its time is over.
class GpuNetwork {
 public:
  /// Collective. REQUIRES: spans_hosts(hosts), and what check_gpu_hosts() takes.
  GpuNetwork(const gpu::GpuLayout& layout,
             const std::vector<int>& hosts,
             Transport& transport,
             GpuQueue& queue);
  ~GpuNetwork();
  GpuNetwork(const GpuNetwork&) = delete;
  GpuNetwork& operator=(const GpuNetwork&) = delete;

  bool is_far(Rank peer) const { return boxes_.is_far(peer); }

  // For kernels; REQUIRES: is_far(peer).
  gpu::GpuLink to(Rank peer) const;
  gpu::GpuSource from(Rank peer) const;

  /// For kernels, but for its tables, which are the caller's: `results` are as of results().
  gpu::GpuFar far() const;
  std::byte* results(Rank home) const;  ///< null: no far rank reads them

  /// Throws what ended the thread. REQUIRES: a kernel has seen kLinkFailed.
  [[noreturn]] void rethrow() const;

 private:
  struct Peer {
    Rank rank = 0;
    std::uint64_t sent[gpu::kGpuSteps] = {};      // exchanges
    std::uint64_t received[gpu::kGpuSteps] = {};  // likewise
    std::uint64_t puts[gpu::kGpuSteps] = {};      // of all exchanges received
    bool is_masked = false, has_masked = false;   // and either has been told
    bool is_gone = false;
  };

  /// Bytes of our part and where they go in a peer's.
  struct Run {
    std::size_t from, to, bytes;
  };

  void carry();
  bool move_or_mask();
  void go_on_without(const TransportError& e);
  bool move();
  bool send(Peer& peer, gpu::GpuSignal step);
  bool receive(Peer& peer, gpu::GpuSignal step);
  bool pass_masks(Peer& peer);
  void put(const Put& put);
  void put_runs(Peer& peer, gpu::GpuSignal step);
  void add_run(const Run& run);
  void add_tokens(Rank peer);
  void add_results(Rank peer);
  void check_tokens(Rank peer) const;
  void fail_links() noexcept;
  int signal(gpu::GpuSignal step, bool header, Rank source) const;

  template <class T>
  const T* here(std::size_t offset) const {
    return reinterpret_cast<const T*>(region_->local().data() + offset);
  }

  const gpu::GpuLayout layout_;
  const gpu::GpuBoxes boxes_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Region> region_;
  std::unique_ptr<GpuMapped> mapped_;
  std::vector<Peer> peers_;
  std::vector<Run> runs_;          // of the letter that is being sent
  std::vector<char> tokens_sent_;  // [max_tokens] likewise
  mutable std::mutex mutex_;
  std::exception_ptr error_;  // under mutex_
  std::atomic<bool> stops_ = false;
  std::thread thread_;
};

}  // namespace ferry
