// A transport that misbehaves within what the contract allows (late, out of order, like a network),
// or beyond it (lost puts, wrong bytes, a rank that ends itself). Wraps any transport; seeded.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport.h"

namespace ferry {

struct Faults {
  std::uint64_t seed = 1;  ///< the rank is mixed in
  /// Every put is held back for a random time up to this, and until its sender calls the transport
  /// again.
  std::chrono::microseconds max_delay{0};
  bool reorder = false;  ///< held puts may overtake each other; else they stay in order
  /// As on a network: each rank a host of its own, and `source` must obey the contract of Put; a
  /// put whose source is not in a region, or has changed before it was delivered, is a
  /// BrokenContract.
  bool network = false;
  bool pins_memory = false;  ///< says so, as a network that registers what it reserves
  double drop = 0;           ///< probability that a put is lost
  /// Probability that one 32-bit word of a put is another one: over mapped memory only.
  double corrupt = 0;
  int ends_at_put = -1;         ///< the rank ends itself when it starts this put, counted from 0
  bool ends_by_signal = false;  ///< with SIGKILL (processes); else by throwing RankEnded
};

/// What a rank throws that Faults::ends_at_put ends.
class RankEnded : public Error {
 public:
  using Error::Error;
};

class FaultyTransport final : public Transport {
 public:
  /// `inner` must outlive it.
  FaultyTransport(Transport& inner, const Faults& faults);
  FaultyTransport(std::unique_ptr<Transport> inner, const Faults& faults);
  /// Delivers what is held back.
  ~FaultyTransport() override;

  Rank rank() const override { return inner_.rank(); }

  int size() const override { return inner_.size(); }

  std::string_view name() const override { return inner_.name(); }

  Capabilities capabilities() const override;

  int host_of(Rank rank) const override { return faults_.network ? rank : inner_.host_of(rank); }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) override;
  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) override;
  std::unique_ptr<Transport> split(int color, int key) override;
  void put(const Put& put) override;
  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override;
  std::uint64_t signal_value(Region& region, int signal) override;
  bool progress() override;
  WaitResult barrier(Deadline deadline) override;

  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

  void mask(Rank peer) override;

  std::span<std::byte> peer_window(Region& region, Rank peer) override;

  /// Puts held back right now.
  std::size_t held() const { return held_.size(); }

 private:
  class FaultyRegion;

  struct Held {
    Put put;                             // source empty: `bytes` has it
    std::vector<std::byte> bytes;        // as it was when the put started
    std::span<const std::byte> watched;  // where it lay, if it must not change
    Deadline due;
  };

  void check_source(const Put& put) const;
  void change_a_word(Held& held);
  void deliver_due(Deadline now);

  void deliver_all() { deliver_due(kNoDeadline); }

  Deadline next_due() const;

  double chance() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  const std::unique_ptr<Transport> owned_;  // what it splits off is its own
  Transport& inner_;
  const Faults faults_;
  std::mt19937_64 random_;
  std::vector<Held> held_;
  std::vector<const FaultyRegion*> regions_;
  Deadline last_due_{};
  int puts_ = 0;
};

}  // namespace ferry
