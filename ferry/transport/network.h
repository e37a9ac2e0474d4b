// What fabric and mpi share: ranks that reach each other only by messages. Signals, waits, who is
// alive, leaving and giving up are here; a network adds how a write with 32 bits beside it travels,
// and a channel for small control messages. Ranks of one host do not need it for their puts: they
// map each other's memory, so that a group has two levels, memory inside hosts and the network
// across.
#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/join.h"
#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/contract.h"
#include "ferry/transport/host_memory.h"

namespace ferry {

inline constexpr int kMaxNetworkRanks = 1024;

/// Memory as the network knows it; ends with the object.
class Registration {
 public:
  virtual ~Registration() = default;

  /// What peers need to write there; travels to all of them.
  virtual Bytes access() const { return {}; }
};

/// One write on its way. Raises `immediate` at the peer once its bytes are there.
struct Write {
  Rank peer = 0;
  std::span<const std::byte> peer_access;  ///< Registration::access() of the target
  int region = 0;                          ///< id of the target
  std::size_t offset = 0;
  std::span<const std::byte> source;
  const Registration* memory = nullptr;  ///< that `source` lies in; null: copy it now (it is short)
  std::uint32_t immediate = 0;
};

/// Threads: as Transport; one lock inside makes abort() legal from any.
class NetworkTransport : public Transport {
 public:
  struct Options {
    std::string_view name;  // static storage
    /// [size] the host of each rank, as any text; ranks with equal texts share one.
    std::vector<std::string> hosts;
    JoinOptions join;  // rank, size, and what groups split off have alike
  };

  ~NetworkTransport() override;

  Rank rank() const final { return rank_; }

  int size() const final { return size_; }

  std::string_view name() const final { return name_; }

  int host_of(Rank rank) const final { return hosts_[static_cast<std::size_t>(rank)]; }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) final;
  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) final;
  std::unique_ptr<Transport> split(int color, int key) final;
  void put(const Put& put) final;
  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) final;
  std::uint64_t signal_value(Region& region, int signal) final;
  bool progress() final;
  WaitResult barrier(Deadline deadline) final;
  void abort(std::string_view reason) noexcept final;
  void mask(Rank peer) final;

  std::span<std::byte> peer_window(Region& region, Rank peer) final;

 protected:
  explicit NetworkTransport(const Options& options);

  // --- What a network adds. All are called with the lock held. ---
  virtual std::unique_ptr<Registration> register_memory(std::span<std::byte> memory) = 0;
  /// False: no room now; it is tried again after poll_writes().
  virtual bool start_write(const Write& write) = 0;
  /// Moves data, and calls arrived() for every write that has landed here.
  virtual void poll_writes() = 0;
  /// Whether all writes to the peer that were started have left this rank.
  virtual bool writes_done(Rank peer) = 0;
  virtual void send_control(Rank peer, std::span<const std::byte> message) = 0;
  /// Moves control messages, and calls heard() and ended().
  virtual void poll_control() = 0;

  /// Whether something is under way that stands still between polls. What an operating system
  /// moves by itself is no such thing.
  virtual bool needs_polling() { return false; }

  /// Whether all control messages have left this rank.
  virtual bool control_done() = 0;

  /// The last word to a peer that has been written to: it follows all writes, so that all_from() is
  /// true there once they have arrived.
  virtual void say_farewell(Rank peer) = 0;
  virtual bool all_from(Rank peer) = 0;

  // --- What a network calls, with the lock held. ---
  void arrived(std::uint32_t immediate);

  /// A write has left, or part of one: waits stay awake.
  void moved() { ++moves_; }

  void heard(Rank peer, std::span<const std::byte> message);
  /// Nothing will be heard of the peer any more; `how` ends a sentence that begins with its rank.
  void ended(Rank peer, std::string_view how);
  /// A write to the peer failed. An error unless the peer turns out to be gone.
  void write_failed(Rank peer, std::string_view why);

  /// False when this rank has not made the region yet.
  bool has_region(int id) const;
  /// The own part of a region that it has; some have no bytes, only signals.
  std::span<std::byte> region_memory(int id) const;

  /// No put adds 0, so what ends in a 0 is the network's own.
  static constexpr std::uint32_t immediate_of(int region, int signal, std::uint32_t add) {
    return static_cast<std::uint32_t>(region) << 24 | static_cast<std::uint32_t>(signal) << 8 | add;
  }

  /// Where this rank's host can be reached, as far as the network knows; groups split off need it.
  virtual std::string reached_at() const { return {}; }

  /// Says goodbye in good order and waits until the peers have what was put. First thing in the
  /// destructor of the network, whose functions it calls.
  void leave() noexcept;

  /// Whether every rank's memory can be mapped.
  bool is_one_host() const {
    return std::all_of(hosts_.begin(), hosts_.end(), [](int host) { return host == 0; });
  }

  bool has_died(Rank who) { return peer(who).life == Life::died; }

  bool is_masked(Rank peer) const { return masked_.test(static_cast<std::size_t>(peer)); }

  std::mutex lock_;

 private:
  enum class Message : std::uint8_t { offer, drop, barrier, abort, leave, leave_received };
  enum class Life : std::uint8_t { alive, left, died };

  struct RegionState;
  class NetworkRegion;

  /// Writes that found no room, oldest first.
  struct Backlog {
    struct Entry {
      Write write;
      RegionState* region;
      std::array<std::byte, kInlineBytes> copy;
    };

    std::vector<Entry> entries;
    std::size_t first = 0;

    bool empty() const { return first == entries.size(); }
  };

  struct Offer {
    RegionRequest request;
    std::bitset<kMaxRegions> used;
    HostMemory::Name memory;
    Bytes access;
  };

  struct Peer {
    Life life = Life::alive;
    std::string how;             // it ended
    std::uint64_t barriers = 0;  // entered
    bool leaving = false;        // its leave has been heard
    bool farewell_due = false;   // and it has written to us, so that its last word counts
    bool goodbye_known = false;  // it has received ours
    bool written_to = false;
    std::vector<Offer> offers;  // not yet used
    std::string abort_reason;
    Backlog backlog;
  };

  struct Dropped {
    int region = 0;
    std::uint64_t puts = 0;  // that its sender has made here
  };

  using Lock = std::unique_lock<std::mutex>;

  Peer& peer(Rank r) { return peers_[static_cast<std::size_t>(r)]; }

  bool shares_host(Rank r) const { return host_of(r) == host_of(rank_); }

  RegionState& state_of(const Region& region) const;
  void poll_all(bool control);
  void push_backlog(Rank to);
  const Registration* memory_of(std::span<const std::byte> source, const RegionState& likely) const;
  template <class Reached, class Missing>
  WaitResult wait_until(
      Lock& lock, std::string_view call, Deadline deadline, Reached reached, Missing missing);
  template <class Missing>
  void throw_if_gone(std::string_view call, Missing missing);
  WaitResult meet(Lock& lock, std::string_view call, Deadline deadline);
  void throw_if_aborted(std::string_view call);
  Rank aborter() const;
  void send_abort(std::string_view reason);
  void tell_abort(Rank who);
  void hear_abort(Rank who, std::string reason);
  void tell(Rank to, const ByteWriter& message);
  void tell_all(const ByteWriter& message);
  std::unique_ptr<Region> make_together(std::string_view call, std::unique_ptr<RegionState> state);
  std::unique_ptr<Region> make_region(Lock& lock,
                                      std::string_view call,
                                      std::unique_ptr<RegionState> state);
  void map_neighbours(Lock& lock,
                      std::string_view call,
                      RegionState& state,
                      const std::vector<Offer>& offers);
  std::vector<Offer> collect_offers(Lock& lock, std::string_view call, const Offer& own);
  void hear_drop(const Dropped& dropped);
  void drop(RegionState& state) noexcept;
  void free_unused_regions();
  void settle_leaving();
  bool expects_us(Rank r);
  template <class Done>
  bool poll_until(Lock& lock, Deadline deadline, Done done);

  const std::string_view name_;
  const JoinOptions join_;
  const Rank rank_;
  const int size_;
  const std::vector<int> hosts_;  // of each rank
  const std::chrono::nanoseconds start_timeout_;
  const int unwinding_;  // exceptions in flight when this was made
  std::vector<Peer> peers_;
  std::array<std::unique_ptr<RegionState>, kMaxRegions> regions_;
  int last_region_ = -1;  // id given last
  // About regions that this rank has not made yet: peers may be ahead.
  std::vector<std::uint32_t> early_;
  std::vector<Dropped> early_drops_;
  std::vector<Rank> aborts_;  // in the order they were heard
  Rank suspect_ = -1;         // a write to it failed
  std::string suspicion_;
  Deadline suspect_until_{};
  Deadline next_control_{};
  std::uint64_t barriers_ = 0;    // entered so far
  std::uint64_t moves_ = 0;       // writes that have arrived or left
  std::uint64_t moves_told_ = 0;  // by progress()
  int leaving_ = 0;  // peers whose leave has been heard but whose writes may still come
  std::bitset<kMaxNetworkRanks> masked_;
};

}  // namespace ferry
