#include "ferry/transport/network.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/transport/network_region.h"
#include "ferry/transport/network_wait.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

constexpr std::size_t kReasonBytes = 500;
/// Control messages are rare, and asking for them is a system call.
constexpr std::chrono::microseconds kControlInterval{100};
/// How long after a failed write the peer's end may take to show.
constexpr std::chrono::seconds kSuspicion{1};
/// How long a rank that leaves waits for peers that are busy elsewhere.
constexpr std::chrono::seconds kLinger{10};
constexpr std::chrono::seconds kAbortLinger{1};

/// Numbers for texts, from 0 in the order in which they first appear.
std::vector<int> numbered(const std::vector<std::string>& texts) {
  std::vector<std::string> known;
  std::vector<int> numbers;
  for (const std::string& text : texts) {
    const auto at = std::find(known.begin(), known.end(), text);
    numbers.push_back(static_cast<int>(at - known.begin()));
    if (at == known.end()) known.push_back(text);
  }
  return numbers;
}

}  // namespace

NetworkTransport::NetworkTransport(const Options& options)
    : name_(options.name),
      join_(options.join),
      rank_(join_.rank),
      size_(join_.size),
      hosts_(numbered(options.hosts)),
      start_timeout_(join_.start_timeout),
      unwinding_(std::uncaught_exceptions()),
      peers_(static_cast<std::size_t>(join_.size)) {
  FERRY_CHECK(size_ >= 1 && size_ <= kMaxNetworkRanks && rank_ >= 0 && rank_ < size_,
              "rank {} of {}, at most {}",
              rank_,
              size_,
              kMaxNetworkRanks);
  FERRY_CHECK(hosts_.size() == peers_.size(), "{} hosts of {} ranks", hosts_.size(), size_);
}

NetworkTransport::~NetworkTransport() = default;

NetworkTransport::RegionState& NetworkTransport::state_of(const Region& region) const {
  const auto& r = static_cast<const NetworkRegion&>(region);
  FERRY_CHECK(r.owner() == this, "the region belongs to another transport or rank");
  return r.state();
}

// --- Moving --------------------------------------------------------------------------------------

void NetworkTransport::poll_all(bool control) {
  poll_writes();
  for (Rank r = 0; r < size_; ++r) {
    if (!peer(r).backlog.empty()) push_backlog(r);
  }
  const Deadline now = Clock::now();
  if (control || now >= next_control_) {
    poll_control();
    next_control_ = now + kControlInterval;
  }
  if (leaving_ > 0) settle_leaving();
}

void NetworkTransport::push_backlog(Rank to) {
  Backlog& backlog = peer(to).backlog;
  while (!backlog.empty()) {
    Backlog::Entry& entry = backlog.entries[backlog.first];
    Write write = entry.write;
    if (write.memory == nullptr) write.source = {entry.copy.data(), write.source.size()};
    if (!start_write(write)) return;
    --entry.region->queued;
    ++backlog.first;
  }
  backlog.entries.clear();
  backlog.first = 0;
}

void NetworkTransport::arrived(std::uint32_t immediate) {
  moved();
  RegionState* state = regions_[immediate >> 24].get();
  if (state == nullptr) {
    early_.push_back(immediate);
    return;
  }
  const auto signal = static_cast<int>(immediate >> 8 & 0xffff);
  if (signal < state->num_signals) state->signal(rank_, signal).fetch_add(immediate & 0xff);
  ++state->arrived;
  if (state->drops == size_) free_unused_regions();
}

bool NetworkTransport::has_region(int id) const {
  return id >= 0 && id < kMaxRegions && regions_[static_cast<std::size_t>(id)] != nullptr;
}

std::span<std::byte> NetworkTransport::region_memory(int id) const {
  return regions_[static_cast<std::size_t>(id)]->own_part(rank_);
}

/// `likely`: most puts go from a region to itself.
const Registration* NetworkTransport::memory_of(std::span<const std::byte> source,
                                                const RegionState& likely) const {
  const auto holds = [&](const RegionState& state) {
    const std::span<const std::byte> own = state.own_part(rank_);
    return source.data() >= own.data() && source.data() + source.size() <= own.data() + own.size();
  };
  if (holds(likely)) return likely.registration.get();
  const Registration* found = nullptr;
  for (const auto& state : regions_)
    if (state != nullptr && holds(*state)) found = state->registration.get();
  FERRY_CHECK(found != nullptr, "a put of {} bytes from outside all regions", source.size());
  return found;
}

void NetworkTransport::put(const Put& put) {
  FERRY_CHECK(put.region != nullptr, "put without a region");
  check_put(put, size_);
  FERRY_CHECK(put.source.size() <= capabilities().max_put_bytes,
              "a put of {} bytes, at most {}",
              put.source.size(),
              capabilities().max_put_bytes);
  const Lock lock(lock_);
  RegionState& state = state_of(*put.region);
  throw_if_aborted("put");
  if (is_masked(put.peer)) return;
  Peer& to = peer(put.peer);
  if (to.life == Life::died) throw gone_error({name_, "put", rank_}, put.peer, to.how);
  if (to.life == Life::left) return;
  const bool is_own = put.peer == rank_;
  if (is_own || (shares_host(put.peer) && !state.registered)) {
    const std::span<std::byte> part = is_own ? state.own_part(rank_) : state.part(put.peer);
    if (!put.source.empty())
      std::memcpy(part.data() + put.offset, put.source.data(), put.source.size());
    state.signal(put.peer, put.signal).fetch_add(put.add);  // also releases the bytes
    return;
  }
  const bool copies = put.source.size() <= kInlineBytes;
  const Write write{.peer = put.peer,
                    .peer_access = state.access[static_cast<std::size_t>(put.peer)],
                    .region = state.id,
                    .offset = put.offset,
                    .source = put.source,
                    .memory = copies ? nullptr : memory_of(put.source, state),
                    .immediate = immediate_of(state.id, put.signal, put.add)};
  ++state.puts_to[static_cast<std::size_t>(put.peer)];
  to.written_to = true;
  if (to.backlog.empty() && start_write(write)) return;
  Backlog::Entry& entry = to.backlog.entries.emplace_back(Backlog::Entry{write, &state, {}});
  if (copies && !put.source.empty())
    std::memcpy(entry.copy.data(), put.source.data(), put.source.size());
  ++state.queued;
  // Two ranks that only put must not wait for each other.
  poll_writes();
  push_backlog(put.peer);
}

// --- Waiting -------------------------------------------------------------------------------------

Rank NetworkTransport::aborter() const {
  for (const Rank r : aborts_) {
    if (!is_masked(r)) return r;
  }
  return -1;
}

void NetworkTransport::throw_if_aborted(std::string_view call) {
  if (aborts_.empty()) return;
  if (const Rank who = aborter(); who >= 0)
    throw aborted_error({name_, call, rank_}, who, peer(who).abort_reason);
}

WaitResult NetworkTransport::wait(Region& region,
                                  int signal,
                                  std::uint64_t count,
                                  Deadline deadline) {
  check_signal(region, signal);
  Lock lock(lock_);
  const RegionState& state = state_of(region);
  return wait_until(
      lock,
      "wait",
      deadline,
      [&] { return state.signal(rank_, signal).load() >= count; },
      [](Rank) { return false; });
}

std::uint64_t NetworkTransport::signal_value(Region& region, int signal) {
  check_signal(region, signal);
  const Lock lock(lock_);
  return state_of(region).signal(rank_, signal).load();
}

bool NetworkTransport::progress() {
  const Lock lock(lock_);
  throw_if_aborted("progress");
  poll_all(false);
  throw_if_aborted("progress");
  throw_if_gone("progress", [](Rank) { return false; });
  return std::exchange(moves_told_, moves_) != moves_;
}

WaitResult NetworkTransport::barrier(Deadline deadline) {
  Lock lock(lock_);
  throw_if_aborted("barrier");
  return meet(lock, "barrier", deadline);
}

WaitResult NetworkTransport::meet(Lock& lock, std::string_view call, Deadline deadline) {
  const std::uint64_t entered = ++barriers_;
  tell_all(ByteWriter().number(Message::barrier));
  const auto missing = [&](Rank r) {
    return r != rank_ && !is_masked(r) && peer(r).barriers < entered;
  };
  const auto reached = [&] {
    next_control_ = Clock::now();  // what this wait is for comes there
    for (Rank r = 0; r < size_; ++r) {
      if (missing(r)) return false;
    }
    return true;
  };
  return wait_until(lock, call, deadline, reached, missing);
}

void NetworkTransport::send_abort(std::string_view reason) {
  if (aborter() >= 0) return;  // leave() passes that one on
  peer(rank_).abort_reason = reason.substr(0, kReasonBytes);
  aborts_.push_back(rank_);
  tell_abort(rank_);
}

void NetworkTransport::tell_abort(Rank who) {
  tell_all(ByteWriter().number(Message::abort).number(who).text(peer(who).abort_reason));
}

void NetworkTransport::abort(std::string_view reason) noexcept {
  try {
    const Lock lock(lock_);
    send_abort(reason);
  } catch (const std::exception&) {
    // Without memory or network the others will see this rank end.
  }
}

void NetworkTransport::mask(Rank who) {
  FERRY_CHECK(
      who >= 0 && who < size_ && who != rank_, "mask rank {} of {} on {}", who, size_, rank_);
  FERRY_CHECK(capabilities().survives_peer_death, "{} cannot go on without a rank", name_);
  const Lock lock(lock_);
  masked_.set(static_cast<std::size_t>(who));
  peer(who).backlog = {};
}

std::span<std::byte> NetworkTransport::peer_window(Region& region, Rank who) {
  FERRY_CHECK(who >= 0 && who < size_, "peer {} of {}", who, size_);
  const RegionState& state = state_of(region);
  if (who == rank_) return state.own_part(rank_);
  return shares_host(who) && !state.registered ? state.part(who) : std::span<std::byte>();
}

// --- Control messages ----------------------------------------------------------------------------

void NetworkTransport::tell(Rank to, const ByteWriter& message) {
  if (to != rank_ && peer(to).life != Life::died) send_control(to, message.bytes());
}

void NetworkTransport::tell_all(const ByteWriter& message) {
  for (Rank r = 0; r < size_; ++r) tell(r, message);
}

void NetworkTransport::heard(Rank from, std::span<const std::byte> message) {
  ByteReader reader(message);
  Peer& p = peer(from);
  switch (reader.number<Message>()) {
    case Message::offer: {
      Offer offer;
      offer.request = reader.number<RegionRequest>();
      offer.used = reader.number<std::bitset<kMaxRegions>>();
      offer.memory = reader.number<HostMemory::Name>();
      const auto access = reader.blob();
      offer.access.assign(access.begin(), access.end());
      p.offers.push_back(std::move(offer));
      break;
    }
    case Message::drop:
      hear_drop(reader.number<Dropped>());
      break;
    case Message::barrier:
      ++p.barriers;
      break;
    case Message::abort: {
      const auto who = reader.number<Rank>();
      hear_abort(who, reader.text());
      break;
    }
    case Message::leave:
      p.leaving = true;
      p.farewell_due = reader.number<std::uint8_t>() != 0;
      ++leaving_;
      break;
    case Message::leave_received:
      p.goodbye_known = true;
      break;
  }
}

void NetworkTransport::hear_abort(Rank who, std::string reason) {
  FERRY_CHECK(who >= 0 && who < size_, "a peer says that rank {} of {} gave up", who, size_);
  if (std::find(aborts_.begin(), aborts_.end(), who) != aborts_.end()) return;
  peer(who).abort_reason = std::move(reason);
  aborts_.push_back(who);
}

void NetworkTransport::ended(Rank who, std::string_view how) {
  Peer& p = peer(who);
  if (p.life != Life::alive) return;
  const bool gave_up = std::find(aborts_.begin(), aborts_.end(), who) != aborts_.end();
  if (p.leaving) --leaving_;
  p.life = p.leaving || gave_up ? Life::left : Life::died;
  p.how = how;
  for (std::size_t i = p.backlog.first; i < p.backlog.entries.size(); ++i)
    --p.backlog.entries[i].region->queued;
  p.backlog = {};
}

void NetworkTransport::write_failed(Rank to, std::string_view why) {
  if (suspect_ >= 0 || is_masked(to) || peer(to).life != Life::alive) return;
  suspect_ = to;
  suspicion_ = why;
  suspect_until_ = Clock::now() + kSuspicion;
}

// --- Leaving -------------------------------------------------------------------------------------

void NetworkTransport::settle_leaving() {
  for (Rank r = 0; r < size_; ++r) {
    Peer& p = peer(r);
    if (!p.leaving || p.life != Life::alive || (p.farewell_due && !all_from(r))) continue;
    p.life = Life::left;
    --leaving_;
    tell(r, ByteWriter().number(Message::leave_received));
  }
}

/// Whether the peer may still take what this rank has put.
bool NetworkTransport::expects_us(Rank r) {
  return r != rank_ && !is_masked(r) && peer(r).life != Life::died && peer(r).written_to;
}

template <class Done>
bool NetworkTransport::poll_until(Lock& lock, Deadline deadline, Done done) {
  Backoff backoff;
  while (!done()) {
    if (Clock::now() >= deadline) return false;
    lock.unlock();
    if (backoff.idle()) {
      std::this_thread::sleep_for(kShortNap);
    } else {
      backoff.pause();
    }
    lock.lock();
    poll_all(true);
  }
  return true;
}

void NetworkTransport::leave() noexcept {
  try {
    Lock lock(lock_);
    if (std::uncaught_exceptions() > unwinding_) send_abort("it left by an exception");
    const Deadline give_up = Clock::now() + (aborts_.empty() ? kLinger : kAbortLinger);
    const auto all = [&](auto done) {
      return [this, done] {
        for (Rank r = 0; r < size_; ++r) {
          if (expects_us(r) && !done(r)) return aborter() >= 0;
        }
        return true;
      };
    };
    if (aborter() < 0) {
      poll_until(lock, give_up, all([&](Rank r) {
                   return peer(r).life == Life::left || (peer(r).backlog.empty() && writes_done(r));
                 }));
      for (Rank r = 0; r < size_; ++r) {
        const bool written = expects_us(r) && peer(r).life == Life::alive;
        if (written) say_farewell(r);
        tell(
            r,
            ByteWriter().number(Message::leave).number(static_cast<std::uint8_t>(written ? 1 : 0)));
      }
      poll_until(lock, give_up, all([&](Rank r) {
                   return peer(r).life == Life::left || peer(r).goodbye_known;
                 }));
    }
    // Who has not heard of an abort yet would take this rank's end for a death.
    if (const Rank who = aborter(); who >= 0 && who != rank_) tell_abort(who);
    poll_until(lock, Clock::now() + kAbortLinger, [&] { return control_done(); });
  } catch (const std::exception&) {
    // The others will see this rank end.
  }
  for (auto& state : regions_) state.reset();  // their memory is registered with the network
}

}  // namespace ferry
