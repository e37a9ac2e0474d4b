#include "ferry/transport/mapped.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/transport/contract.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "processes share these atomics");

constexpr std::size_t kSignalBytes = 64;  // a cache line each: several ranks raise them at once
constexpr int kPollsPerClockRead = 16;
/// Longest sleep, so that nobody can miss an abort or a death for long.
constexpr std::chrono::milliseconds kSleepSlice{20};
/// A rank that has left goes unnoticed at least this long: another may be the one that signals.
constexpr std::chrono::seconds kLeftGrace{1};

/// Part of a rank in a region: data, then signals, each from a page boundary on.
struct PartLayout {
  PartLayout(std::size_t bytes, int num_signals) {
    const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
    signals_at = static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), page));
    const auto signals = static_cast<std::int64_t>(num_signals * kSignalBytes);
    stride = signals_at + static_cast<std::size_t>(round_up(signals, page));
  }

  std::size_t signals_at;
  std::size_t stride;
};

class MappedRegion final : public Region {
 public:
  MappedRegion(const MappedTransport* owner,
               std::shared_ptr<RegionMemory> memory,
               std::size_t bytes,
               int num_signals)
      : Region({part(*memory, PartLayout(bytes, num_signals), owner->rank()), bytes}, num_signals),
        owner_(owner),
        memory_(std::move(memory)),
        layout_(bytes, num_signals) {}

  std::byte* peer(Rank rank) const { return part(*memory_, layout_, rank); }

  std::atomic_ref<std::uint64_t> signal(Rank rank, int index) const {
    std::byte* p = peer(rank) + layout_.signals_at + static_cast<std::size_t>(index) * kSignalBytes;
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(p));
  }

  const MappedTransport* owner() const { return owner_; }

 private:
  static std::byte* part(const RegionMemory& memory, const PartLayout& layout, Rank rank) {
    return memory.base() + static_cast<std::size_t>(rank) * layout.stride;
  }

  const MappedTransport* owner_;
  std::shared_ptr<RegionMemory> memory_;  // inproc: one owner per rank; shm: this alone
  PartLayout layout_;
};

const MappedRegion& mapped(const Region& region, const MappedTransport* owner) {
  const auto& r = static_cast<const MappedRegion&>(region);
  FERRY_CHECK(r.owner() == owner, "the region belongs to another transport or rank");
  return r;
}

}  // namespace

MappedTransport::MappedTransport(Options options)
    : name_(options.name),
      control_(std::move(options.control)),
      rank_(options.rank),
      size_(options.size),
      shared_(options.shared),
      start_timeout_(options.start_timeout),
      unwinding_(std::uncaught_exceptions()) {
  FERRY_CHECK(size_ >= 1 && size_ <= kMaxMappedRanks && rank_ >= 0 && rank_ < size_,
              "rank {} of {}, at most {}",
              rank_,
              size_,
              kMaxMappedRanks);
}

MappedTransport::~MappedTransport() {
  if (std::uncaught_exceptions() > unwinding_) MappedTransport::abort("it left by an exception");
  control_->ranks[rank_].left.store(1);
  for (Rank r = 0; r < size_; ++r) ring(r);
}

// --- Waiting -----------------------------------------------------------------------------------

/// No wake may be lost: the ringer first changes what is awaited, then looks for sleepers; the
/// sleeper first says that it sleeps, then looks at what it awaits. All four are sequentially
/// consistent, so at least one of the two sees the other.
void MappedTransport::ring(Rank peer) noexcept {
  RankBlock& block = control_->ranks[peer];
  if (block.sleepers.load() == 0) return;
  block.doorbell.fetch_add(1);
  futex_wake_all(block.doorbell, shared_);
}

template <class Reached>
void MappedTransport::doze(Reached reached, std::chrono::nanoseconds at_most) {
  RankBlock& own = control_->ranks[rank_];
  const std::uint32_t seen = own.doorbell.load();
  own.sleepers.store(1);
  if (!reached() && aborter() < 0) {
    futex_wait(own.doorbell, seen, at_most, shared_);
  }
  own.sleepers.store(0);
}

/// The rank whose abort matters to this one: the first, unless it is masked; -1: none.
Rank MappedTransport::aborter() const {
  if (control_->aborts.load() == 0) return -1;
  const Rank first = control_->first_to_abort.load() - 1;
  if (!masked_.test(static_cast<std::size_t>(first))) return first;
  for (Rank r = 0; r < size_; ++r) {
    if (!masked_.test(static_cast<std::size_t>(r)) &&
        control_->ranks[r].abort_state.load() == RankBlock::AbortState::set)
      return r;
  }
  return -1;
}

void MappedTransport::throw_if_aborted(const char* call) {
  const Rank who = aborter();
  if (who < 0) return;
  throw aborted_error({name_, call, rank_}, who, control_->ranks[who].abort_reason);
}

/// `left`: the first peer that left in good order although the wait still needs it.
template <class Missing>
void MappedTransport::find_gone(Missing missing, Rank& died, Rank& left) {
  died = left = -1;
  for (Rank r = size_ - 1; r >= 0; --r) {
    if (r == rank_ || masked_.test(static_cast<std::size_t>(r))) continue;
    // The order matters: a rank says that it leaves before it ends.
    const bool ended = has_ended(r);
    if (control_->ranks[r].left.load()) {
      if (missing(r)) left = r;
    } else if (ended) {
      died = r;
    }
  }
}

void MappedTransport::throw_gone(const char* call, Rank died, Rank left) {
  if (died < 0) throw gone_error({name_, call, rank_}, left, kHasLeft);
  throw gone_error({name_, call, rank_}, died, "died; the launcher or the kernel log says of what");
}

/// `missing(r)`: without rank r this wait cannot succeed (asked of ranks that have left).
template <class Reached, class Missing>
WaitResult MappedTransport::wait_until(const char* call,
                                       Deadline deadline,
                                       Reached reached,
                                       Missing missing) {
  throw_if_aborted(call);  // even where all is there: nobody shall go on for long after an abort
  Backoff backoff;
  int polls = 0;
  while (!backoff.idle()) {
    if (reached()) return WaitResult::reached;
    throw_if_aborted(call);
    if (polls++ % kPollsPerClockRead == 0 && Clock::now() >= deadline) {
      return reached() ? WaitResult::reached : WaitResult::timed_out;
    }
    backoff.pause();
  }
  const Deadline grace_over = Clock::now() + kLeftGrace;
  const Deadline left_matters =
      deadline == kNoDeadline ? grace_over : std::max(deadline, grace_over);
  for (;;) {
    throw_if_aborted(call);
    const Deadline now = Clock::now();
    Rank died;
    Rank left;
    find_gone([&](Rank r) { return now >= left_matters || missing(r); }, died, left);
    if (reached()) return WaitResult::reached;  // a rank may have put its last before it went
    if (died >= 0 || left >= 0) throw_gone(call, died, left);
    if (now >= deadline) return WaitResult::timed_out;
    doze(reached, std::min<std::chrono::nanoseconds>(kSleepSlice, deadline - now));
  }
}

WaitResult MappedTransport::wait(Region& region,
                                 int signal,
                                 std::uint64_t count,
                                 Deadline deadline) {
  const MappedRegion& r = mapped(region, this);
  check_signal(r, signal);
  const std::atomic_ref<std::uint64_t> value = r.signal(rank_, signal);
  return wait_until(
      "wait", deadline, [&] { return value.load() >= count; }, [](Rank) { return false; });
}

std::uint64_t MappedTransport::signal_value(Region& region, int signal) {
  const MappedRegion& r = mapped(region, this);
  check_signal(r, signal);
  return r.signal(rank_, signal).load(std::memory_order_acquire);
}

void MappedTransport::progress() {
  throw_if_aborted("progress");
  // Who polls instead of waiting must hear of deaths too, though not at the price of a system call
  // in every round.
  const Deadline now = Clock::now();
  if (now < next_look_for_deaths_) return;
  next_look_for_deaths_ = now + kSleepSlice;
  Rank died;
  Rank left;
  find_gone([](Rank) { return false; }, died, left);
  if (died >= 0) throw_gone("progress", died, left);
}

WaitResult MappedTransport::barrier(Deadline deadline) {
  throw_if_aborted("barrier");
  const std::uint64_t entered = ++barriers_;
  control_->ranks[rank_].arrived.store(entered);
  for (Rank r = 0; r < size_; ++r) ring(r);
  const auto missing = [&](Rank r) {
    return !masked_.test(static_cast<std::size_t>(r)) &&
           control_->ranks[r].arrived.load() < entered;
  };
  const auto reached = [&] {
    for (Rank r = 0; r < size_; ++r) {
      if (missing(r)) return false;
    }
    return true;
  };
  return wait_until("barrier", deadline, reached, missing);
}

void MappedTransport::abort(std::string_view reason) noexcept {
  RankBlock& own = control_->ranks[rank_];
  auto expected = RankBlock::AbortState::none;
  if (!own.abort_state.compare_exchange_strong(expected, RankBlock::AbortState::being_written)) {
    return;
  }
  const std::size_t length = std::min(reason.size(), RankBlock::kReasonBytes - 1);
  std::memcpy(own.abort_reason, reason.data(), length);
  own.abort_reason[length] = '\0';
  own.abort_state.store(RankBlock::AbortState::set);
  std::int32_t nobody = 0;
  control_->first_to_abort.compare_exchange_strong(nobody, rank_ + 1);
  control_->aborts.fetch_add(1);
  for (Rank r = 0; r < size_; ++r) ring(r);
}

void MappedTransport::mask(Rank peer) {
  FERRY_CHECK(
      peer >= 0 && peer < size_ && peer != rank_, "mask rank {} of {} on {}", peer, size_, rank_);
  masked_.set(static_cast<std::size_t>(peer));
}

// --- Memory ------------------------------------------------------------------------------------

void MappedTransport::enter_together(const char* call) {
  if (barrier(deadline_in(start_timeout_)) == WaitResult::reached) return;
  Rank missing = 0;
  while (missing < size_ - 1 && control_->ranks[missing].arrived.load() >= barriers_) ++missing;
  throw late_error({name_, call, rank_}, missing, start_timeout_);
}

void MappedTransport::compare_requests() {
  std::vector<RegionRequest> requests;
  for (Rank r = 0; r < size_; ++r) requests.push_back(control_->ranks[r].request);
  check_requests(name_, rank_, requests);
}

std::unique_ptr<Region> MappedTransport::allocate_region(std::size_t bytes, int num_signals) {
  constexpr const char* kCall = "allocate_region";
  check_allocation(bytes, num_signals, size_);
  FERRY_CHECK(masked_.none(), "{}: allocate_region in a group with masked ranks", name_);
  RankBlock& own = control_->ranks[rank_];
  // The barrier below publishes it.
  own.request = {.bytes = bytes, .signals = static_cast<std::uint64_t>(num_signals)};
  const std::size_t total = PartLayout(bytes, num_signals).stride * static_cast<std::size_t>(size_);
  std::shared_ptr<RegionMemory> memory;
  try {
    if (rank_ == 0) memory = create_memory(total);
    enter_together(kCall);
    compare_requests();
    if (rank_ != 0) memory = attach_memory(total);
    // Until all have it, rank 0 keeps what it made, and nobody changes its request.
    enter_together(kCall);
  } catch (const BrokenContract&) {
    throw;  // every rank finds the same difference
  } catch (const std::exception& e) {
    abort(e.what());
    throw;
  }
  return std::make_unique<MappedRegion>(this, std::move(memory), bytes, num_signals);
}

// --- Putting -----------------------------------------------------------------------------------

void MappedTransport::put(const Put& put) {
  FERRY_CHECK(put.region != nullptr, "put without a region");
  const MappedRegion& region = mapped(*put.region, this);
  check_put(put, size_);
  throw_if_aborted("put");
  if (masked_.test(static_cast<std::size_t>(put.peer))) return;
  if (!put.source.empty()) {
    std::memcpy(region.peer(put.peer) + put.offset, put.source.data(), put.source.size());
  }
  region.signal(put.peer, put.signal).fetch_add(put.add);  // also releases the bytes
  if (put.peer != rank_) ring(put.peer);
}

std::span<std::byte> MappedTransport::peer_window(Region& region, Rank peer) {
  const MappedRegion& r = mapped(region, this);
  FERRY_CHECK(peer >= 0 && peer < size_, "peer {} of {}", peer, size_);
  return {r.peer(peer), region.local().size()};
}

}  // namespace ferry
