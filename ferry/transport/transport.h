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

#include "ferry/core/types.h"

namespace ferry {

using Deadline = std::chrono::steady_clock::time_point;

/// Waits for as long as the peers live.
inline constexpr Deadline kNoDeadline = Deadline::max();

inline Deadline deadline_in(std::chrono::nanoseconds timeout) {
  return std::chrono::steady_clock::now() + timeout;
}

/// What a transport can do; a caller asks instead of finding out.
struct Capabilities {
  bool load_store = false;           ///< peer_window() gives pointers to peers' memory
  bool survives_peer_death = false;  ///< the others can go on after a rank died
  std::size_t max_put_bytes = SIZE_MAX;
};

enum class [[nodiscard]] WaitResult{reached, timed_out};

/// This rank's part of a symmetric allocation: memory that peers may write, and counted signals.
/// Owned by the caller; must be destroyed before its transport. After a rank destroys its part,
/// peers must not put into it.
class Region {
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
/// part of `region`.
struct Put {
  Region* region = nullptr;
  Rank peer = 0;                      ///< may be this rank
  std::size_t offset = 0;             ///< bytes into the peer's part
  std::span<const std::byte> source;  ///< may be empty: then only the signal travels.
                                      ///< REQUIRES: lies in some region of this transport, or is
                                      ///< at most kInlineBytes long (networks need registration)
  int signal = 0;
  std::uint32_t add = 1;
};

inline constexpr std::size_t kInlineBytes = 64;

/// One rank's end. Threads: one thread of the rank at a time, except abort(), which any may call.
/// Errors: TransportError; after one the object may only be asked to abort() and destroyed.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual Rank rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;
  virtual Capabilities capabilities() const = 0;

  /// Collective: every rank calls it with the same arguments in the same order. Memory is zeroed,
  /// page aligned, and costs nothing until touched; signals start at 0.
  virtual std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) = 0;

  /// Starts a put. `source` may be reused at once: the transport has taken the bytes. Throws when
  /// the peer is known to be dead or the range lies outside its part.
  virtual void put(const Put& put) = 0;

  /// Waits until `signal` of the own part is at least `count`. Throws TransportError when a rank
  /// aborted (its reason in the message) or died.
  virtual WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) = 0;

  /// Current value of a signal of the own part; never blocks.
  virtual std::uint64_t signal_value(Region& region, int signal) = 0;

  /// Moves whatever the transport has in flight; never blocks. Waiting does it too.
  virtual void progress() = 0;

  /// Collective: returns when all ranks have called it.
  virtual WaitResult barrier(Deadline deadline) = 0;

  /// Tells all ranks that this one gives up, and why; their waits throw. Idempotent.
  virtual void abort(std::string_view reason) noexcept = 0;

  /// A peer's part as memory of this process; empty where capabilities().load_store is false.
  /// Written bytes are visible to the peer once a signal put afterwards is.
  virtual std::span<std::byte> peer_window(Region& region, Rank peer) = 0;
};

}  // namespace ferry
