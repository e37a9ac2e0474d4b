// What a NetworkTransport knows of a region. For its own .cpp files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/transport/network.h"

namespace ferry {

/// A region from allocate_region() until nothing can arrive for it any more: until every rank has
/// dropped its part and all that they put here before has come.
struct NetworkTransport::RegionState {
  int id = 0;
  Buffer memory;
  Buffer signals;
  int num_signals = 0;
  std::unique_ptr<Registration> registration;  // of `memory`
  std::vector<Bytes> access;                   // to each rank's part
  std::vector<std::uint64_t> puts_to;          // each rank
  std::uint64_t arrived = 0;                   // puts of all ranks
  std::uint64_t announced = 0;                 // puts of the ranks that have dropped it
  int drops = 0;                               // ranks, this one included
  int queued = 0;                              // entries of backlogs

  std::uint64_t& signal(int index) const { return signals.as<std::uint64_t>()[index]; }
};

class NetworkTransport::NetworkRegion final : public Region {
 public:
  NetworkRegion(NetworkTransport* owner, RegionState* state, std::size_t bytes)
      : Region({state->memory.data(), bytes}, state->num_signals), owner_(owner), state_(state) {}

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
