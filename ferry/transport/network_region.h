// What a NetworkTransport knows of a region. For its own .cpp files.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/transport/network.h"

namespace ferry {

/// A region from allocate_region() until nothing can arrive for it any more: until every rank has
/// dropped its part and all that they put here before has come.
struct NetworkTransport::RegionState {
  int id = 0;
  std::size_t bytes = 0;              // of a part
  bool registered = false;            // parts are the callers' memory
  std::span<std::byte> callers = {};  // registered: the own part
  int num_signals = 0;
  /// [size] parts, and behind each its signals; empty for ranks of other hosts. Registered: the own
  /// signals alone.
  std::vector<HostMemory> memory;
  std::unique_ptr<Registration> registration;  // of the own part
  std::vector<Bytes> access;                   // to each rank's part
  std::vector<std::uint64_t> puts_to;          // each rank of another host
  std::uint64_t arrived = 0;                   // puts of all ranks
  std::uint64_t announced = 0;                 // puts of the ranks that have dropped it
  int drops = 0;                               // ranks, this one included
  int queued = 0;                              // entries of backlogs

  /// Signals lie in lines of their own, as far as they are raised by different processors.
  static constexpr std::size_t kSignalStride = 64;

  static std::size_t signals_at(std::size_t bytes) {
    return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), 4096));
  }

  /// Of a part with its signals; never 0, since networks register no empty memory.
  static std::size_t memory_bytes(std::size_t bytes, int num_signals) {
    return signals_at(std::max<std::size_t>(bytes, 1)) +
           static_cast<std::size_t>(num_signals) * kSignalStride;
  }

  std::size_t mapped_bytes() const { return registered ? 0 : bytes; }

  std::span<std::byte> own_part(Rank own) const { return registered ? callers : part(own); }

  std::span<std::byte> part(Rank rank) const {
    return memory[static_cast<std::size_t>(rank)].bytes().first(bytes);
  }

  std::atomic_ref<std::uint64_t> signal(Rank rank, int index) const {
    const std::span<std::byte> all = memory[static_cast<std::size_t>(rank)].bytes();
    const std::size_t at = signals_at(std::max<std::size_t>(mapped_bytes(), 1)) +
                           static_cast<std::size_t>(index) * kSignalStride;
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(all.data() + at));
  }
};

class NetworkTransport::NetworkRegion final : public Region {
 public:
  NetworkRegion(NetworkTransport* owner, RegionState* state)
      : Region(state->own_part(owner->rank()), state->num_signals), owner_(owner), state_(state) {}

  ~NetworkRegion() override { owner_->drop(*state_); }

  NetworkRegion(const NetworkRegion&) = delete;
  NetworkRegion& operator=(const NetworkRegion&) = delete;

  const NetworkTransport* owner() const { return owner_; }

  RegionState& state() const { return *state_; }

 private:
  NetworkTransport* owner_;
  RegionState* state_;  // the transport's
};

}  // namespace ferry
