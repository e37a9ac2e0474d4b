// Regions of a NetworkTransport: made together, and kept until nothing can arrive for them any
// more.
#include "ferry/transport/network_region.h"

#include <algorithm>
#include <exception>
#include <set>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/network_wait.h"
#include "ferry/transport/split.h"

namespace ferry {

std::unique_ptr<Region> NetworkTransport::allocate_region(std::size_t bytes, int num_signals) {
  auto state = std::make_unique<RegionState>();
  state->bytes = bytes;
  state->num_signals = num_signals;
  return make_together("allocate_region", std::move(state));
}

std::unique_ptr<Region> NetworkTransport::register_region(std::span<std::byte> memory,
                                                          int num_signals) {
  auto state = std::make_unique<RegionState>();
  state->bytes = memory.size();
  state->num_signals = num_signals;
  state->registered = true;
  state->callers = memory;
  return make_together("register_region", std::move(state));
}

std::unique_ptr<Region> NetworkTransport::make_together(std::string_view call,
                                                        std::unique_ptr<RegionState> state) {
  check_allocation(state->bytes, state->num_signals, size_);
  FERRY_CHECK(masked_.none(), "{}: {} in a group with masked ranks", name_, call);
  Lock lock(lock_);
  throw_if_aborted(call);
  try {
    return make_region(lock, call, std::move(state));
  } catch (const BrokenContract&) {
    throw;  // every rank finds the same difference
  } catch (const std::exception& e) {
    send_abort(e.what());
    throw;
  }
}

std::unique_ptr<Transport> NetworkTransport::split(int color, int key) {
  JoinOptions own = join_;
  own.node = fmt::format("host {}", host_of(rank_));
  own.ranks_per_host = 0;
  own.host = reached_at();
  return split_group(*this, own, color, key);
}

/// Tells all what this rank offers, and waits for theirs.
std::vector<NetworkTransport::Offer> NetworkTransport::collect_offers(Lock& lock,
                                                                      std::string_view call,
                                                                      const Offer& own) {
  tell_all(ByteWriter()
               .number(Message::offer)
               .number(own.request)
               .number(own.used)
               .number(own.memory)
               .blob(own.access));
  const auto missing = [&](Rank r) { return r != rank_ && peer(r).offers.empty(); };
  const auto first_missing = [&] {
    Rank r = 0;
    while (r < size_ && !missing(r)) ++r;
    return r;
  };
  const auto reached = [&] {
    next_control_ = std::chrono::steady_clock::now();
    return first_missing() == size_;
  };
  if (wait_until(lock, call, deadline_in(start_timeout_), reached, missing) ==
      WaitResult::timed_out) {
    throw late_error({name_, call, rank_}, first_missing(), start_timeout_);
  }
  std::vector<Offer> offers;
  for (Rank r = 0; r < size_; ++r) {
    if (r == rank_) {
      offers.push_back(own);
    } else {
      offers.push_back(std::move(peer(r).offers.front()));
      peer(r).offers.erase(peer(r).offers.begin());
    }
  }
  return offers;
}

/// Maps the parts of the ranks that share this rank's host.
void NetworkTransport::map_neighbours(Lock& lock,
                                      std::string_view call,
                                      RegionState& state,
                                      const std::vector<Offer>& offers) {
  const bool each_alone = std::set(hosts_.begin(), hosts_.end()).size() == hosts_.size();
  if (each_alone || state.registered) return;
  const std::size_t bytes = RegionState::memory_bytes(state.bytes, state.num_signals);
  for (Rank r = 0; r < size_; ++r) {
    const auto index = static_cast<std::size_t>(r);
    if (r != rank_ && shares_host(r)) state.memory[index] = HostMemory(offers[index].memory, bytes);
  }
  // Nobody goes, and takes his memory along, before all have it.
  if (meet(lock, call, deadline_in(start_timeout_)) == WaitResult::reached) return;
  Rank late = 0;
  while (late < size_ - 1 && (late == rank_ || peer(late).barriers >= barriers_)) ++late;
  throw late_error({name_, call, rank_}, late, start_timeout_);
}

std::unique_ptr<Region> NetworkTransport::make_region(Lock& lock,
                                                      std::string_view call,
                                                      std::unique_ptr<RegionState> state) {
  const std::size_t memory_bytes =
      RegionState::memory_bytes(state->mapped_bytes(), state->num_signals);
  state->memory.resize(static_cast<std::size_t>(size_));
  HostMemory& memory = state->memory[static_cast<std::size_t>(rank_)] = HostMemory(memory_bytes);
  // Never empty: networks register no empty memory.
  state->registration = register_memory(
      state->callers.empty() ? memory.bytes().first(std::max<std::size_t>(state->mapped_bytes(), 1))
                             : state->callers);
  state->puts_to.assign(static_cast<std::size_t>(size_), 0);

  Offer own{.request = {.bytes = state->bytes,
                        .signals = static_cast<std::uint64_t>(state->num_signals),
                        .registered = state->registered ? 1U : 0U},
            .used = {},
            .memory = memory.name(),
            .access = state->registration->access()};
  for (std::size_t id = 0; id < regions_.size(); ++id) own.used.set(id, regions_[id] != nullptr);
  std::vector<Offer> offers = collect_offers(lock, call, own);
  std::vector<RegionRequest> requests;
  std::bitset<kMaxRegions> used;
  for (Offer& offer : offers) {
    requests.push_back(offer.request);
    used |= offer.used;
    state->access.push_back(std::move(offer.access));
  }
  check_requests(name_, rank_, requests);
  map_neighbours(lock, call, *state, offers);

  // All ranks find the same: the next id that is free on all of them.
  FERRY_CHECK(!used.all(), "{}: more than {} regions at a time", name_, kMaxRegions);
  do {
    last_region_ = (last_region_ + 1) % kMaxRegions;
  } while (used.test(static_cast<std::size_t>(last_region_)));
  state->id = last_region_;
  RegionState* made = state.get();
  regions_[static_cast<std::size_t>(last_region_)] = std::move(state);
  for (const std::uint32_t immediate : std::exchange(early_, {})) arrived(immediate);
  for (const Dropped& dropped : std::exchange(early_drops_, {})) hear_drop(dropped);
  return std::make_unique<NetworkRegion>(this, made);
}

void NetworkTransport::hear_drop(const Dropped& dropped) {
  RegionState* state = regions_[static_cast<std::size_t>(dropped.region)].get();
  if (state == nullptr) {
    early_drops_.push_back(dropped);
    return;
  }
  ++state->drops;
  state->announced += dropped.puts;
  free_unused_regions();
}

void NetworkTransport::drop(RegionState& state) noexcept {
  try {
    const Lock lock(lock_);
    for (Rank r = 0; r < size_; ++r) {
      const Dropped dropped{.region = state.id, .puts = state.puts_to[static_cast<std::size_t>(r)]};
      if (r == rank_) {
        ++state.drops;
        state.announced += dropped.puts;
      } else {
        tell(r, ByteWriter().number(Message::drop).number(dropped));
      }
    }
    if (state.registered) {
      // It is the caller's again, and nobody puts there any more.
      state.registration.reset();
      state.callers = {};
    }
    free_unused_regions();
  } catch (const std::exception&) {
    // The memory lives as long as the transport.
  }
}

void NetworkTransport::free_unused_regions() {
  for (auto& state : regions_) {
    if (state != nullptr && state->drops == size_ && state->arrived >= state->announced &&
        state->queued == 0)
      state.reset();
  }
}

}  // namespace ferry
