// Bytes between ranks: the one interface that every transport implements.
//
// The primitive is "put bytes into a peer's region and add to a counted signal there"; a receiver
// waits until a signal has reached a count it knows beforehand. Completion is a count, never an
// order, so transports over unordered networks are right by construction.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

using Deadline = std::chrono::steady_clock::time_point;

/// Waits for as long as the peers live.
inline constexpr Deadline kNoDeadline = Deadline::max();

/// Now plus `timeout`; a timeout too long to be counted means kNoDeadline.
inline Deadline deadline_in(std::chrono::nanoseconds timeout) {
  const Deadline now = std::chrono::steady_clock::now();
  return timeout < kNoDeadline - now ? now + timeout : kNoDeadline;
}

/// What a transport can do; a caller asks instead of finding out.
struct Capabilities {
  bool load_store = false;           ///< peer_window() gives pointers to every peer's memory
  bool survives_peer_death = false;  ///< the others can mask() a rank that died and go on
  bool one_process = false;          ///< ranks are threads: regions are memory like any other
  bool one_thread = false;           ///< two threads of a process never call it at a time, whatever
                                     ///< groups they have
  bool pins_memory = false;          ///< regions cost their whole size, touched or not
  std::size_t max_put_bytes = SIZE_MAX;
};

enum class [[nodiscard]] WaitResult{reached, timed_out};

// Limits that every transport keeps: a region, a signal and an addend must fit together into the
// 32 bits of immediate data that a network carries beside a put.
inline constexpr std::size_t kInlineBytes = 64;  ///< puts up to here are copied when they start
inline constexpr int kMaxSignals = 1 << 16;      ///< of one region
inline constexpr int kMaxRegions = 1 << 8;       ///< alive at a time in one transport
inline constexpr std::uint32_t kMaxAdd = 255;    ///< of one put

/// This rank's part of a symmetric allocation: memory that peers may write, and counted signals.
/// Owned by the caller; must be destroyed before its transport. After a rank destroys its part,
/// peers must not put into it; what they read through peer_window() stays until they destroy
/// theirs.
class FERRY_API Region {
 public:
  virtual ~Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::span<std::byte> local() const { return local_; }

  int num_signals() const { return num_signals_; }

 protected:
  Region(std::span<std::byte> local, int num_signals) : local_(local), num_signals_(num_signals) {}

 private:
  std::span<std::byte> local_;
  int num_signals_;
};

/// One put. After the peer sees `signal` grow by `add`, it also sees `source` at `offset` of its
/// part of `region`. Two puts may arrive in any order.
struct Put {
  Region* region = nullptr;
  Rank peer = 0;           ///< may be this rank
  std::size_t offset = 0;  ///< bytes into the peer's part

  /// May be empty: then only the signal travels. Up to kInlineBytes it may lie anywhere and is
  /// copied by put(). A longer one must lie in the own part of a region of this transport (networks
  /// need registered memory), must not overlap its target, and must stay as it is until the peer is
  /// known to have it: until a signal has arrived that the peer put after it saw this one.
  std::span<const std::byte> source;

  int signal = 0;
  std::uint32_t add = 1;  ///< 1..kMaxAdd
};

/// One rank's end. Destroying it means to leave the group in good order; ranks that still wait for
/// this one get an error that says so. While an exception unwinds the stack, it means abort().
/// Threads: one thread of the rank at a time, except abort(), which any may call.
/// Errors: TransportError; after one the object may only be asked to abort() and destroyed, unless
/// it is about a rank that is gone and that this rank then masks: nothing of the others is lost.
/// BrokenContract for arguments outside their range.
class FERRY_API Transport {
 public:
  virtual ~Transport() = default;

  virtual Rank rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;
  virtual Capabilities capabilities() const = 0;

  /// Number of the host that a rank runs on, from 0 in order of the hosts' first ranks. Ranks of
  /// one host have windows to each other's memory; between hosts there is a network.
  virtual int host_of(Rank) const { return 0; }

  /// The number by which errors name a rank: its own here, unless this group is a part of another
  /// that its errors come from.
  virtual Rank known_as(Rank rank) const { return rank; }

  /// Collective: every rank calls it with the same arguments in the same order, else it throws on
  /// every rank. Memory is zeroed, page aligned, and costs nothing until touched; signals start
  /// at 0.
  virtual std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) = 0;

  /// Collective, as allocate_region: a region over memory that the caller owns, all ranks' parts of
  /// the same size, at any alignment. The bytes stay as they are; signals start at 0. The memory
  /// must stay until the own part is destroyed, and a rank destroys its part only once no peer puts
  /// into it any more (a barrier says so). Windows to it exist only where the ranks are threads;
  /// ask peer_window(), which is empty elsewhere. Puts may need a wait or progress() of the
  /// receiver to arrive.
  virtual std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) = 0;

  /// Collective: returns the end of a new group of the ranks that gave the same color, in the order
  /// of their keys and, where those are equal, of their ranks here. A negative color: in no group,
  /// null. The new group and this one live on independently of each other. Throws TransportError,
  /// whose peer() is a rank of the new group where it came up while that was made.
  virtual std::unique_ptr<Transport> split(int color, int key) = 0;

  /// Starts a put; never blocks for long. It may need progress() or waits of both sides to arrive
  /// (see Put for when `source` is free again). Throws when a rank has aborted, when the peer is
  /// known to be dead, or when the range lies outside its part.
  virtual void put(const Put& put) = 0;

  /// Waits until `signal` of the own part is at least `count`. A deadline in the past makes this a
  /// test. Throws TransportError when a rank has aborted (its reason in the message) or, in waits
  /// that last more than a millisecond, has died. A rank that has left is an error after a second,
  /// at the deadline where there is one: another may be the one that signals.
  virtual WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) = 0;

  /// Current value of a signal of the own part; never blocks.
  virtual std::uint64_t signal_value(Region& region, int signal) = 0;

  /// Moves whatever the transport has in flight; never blocks. Waiting does it too. Returns whether
  /// puts have left or arrived over a network since the last call: who polls must not rest long
  /// while they do, since what a network buffers is gone soon. Throws TransportError when a rank
  /// has aborted or died, so loops that poll signal_value() must call it.
  virtual bool progress() = 0;

  /// Collective: returns when all ranks have called it. Says nothing about puts. After timed_out
  /// the ranks are out of step: abort().
  virtual WaitResult barrier(Deadline deadline) = 0;

  /// Tells all ranks that this one gives up, and why; their waits, and its own, throw. The first
  /// rank to abort is the one that all name.
  virtual void abort(std::string_view reason) noexcept = 0;

  /// From now on this rank does without `peer`: its death, its absence from barriers and its abort
  /// are no errors here any more, and puts to it go nowhere. Only this rank's view changes: each
  /// survivor masks for itself. A group with masked ranks makes no new regions. Throws
  /// BrokenContract where capabilities().survives_peer_death is false.
  virtual void mask(Rank peer) = 0;

  /// A rank's part as memory of this process; empty for ranks of other hosts.
  /// Written bytes are visible to the peer once a signal put afterwards is (after a store fence, if
  /// they were written with non-temporal stores).
  virtual std::span<std::byte> peer_window(Region& region, Rank peer) = 0;
};

/// Hosts that the ranks are on, where each has an equal run of consecutive ranks; else 1.
FERRY_API int equal_hosts(const Transport& transport);

}  // namespace ferry
