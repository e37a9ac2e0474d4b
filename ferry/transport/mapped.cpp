#include "ferry/transport/mapped.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/transport/contract.h"
#include "ferry/transport/mapped_region.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "processes share these atomics");

constexpr int kPollsPerClockRead = 16;
/// Longest sleep, so that nobody can miss an abort or a death for long.
constexpr std::chrono::milliseconds kSleepSlice{20};
/// The same while a peer's mailbox is full.
constexpr std::chrono::milliseconds kHeldSlice{1};
/// A rank that has left goes unnoticed at least this long: another may be the one that signals.
constexpr std::chrono::seconds kLeftGrace{1};

MappedRegion& mapped(Region& region, const MappedTransport* owner) {
  auto& r = static_cast<MappedRegion&>(region);
  FERRY_CHECK(r.owner() == owner, "the region belongs to another transport or rank");
  return r;
}

/// Between what the kernel says of a process and a look at what it wrote before: else a processor
/// that reads out of order may have looked earlier.
void look_again() noexcept {
#if !defined(__SANITIZE_THREAD__)  // it knows no fences, and its machines read in order
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace

MappedTransport::MappedTransport(Options options)
    : name_(options.name),
      control_(std::move(options.control)),
      join_(std::move(options.join)),
      rank_(join_.rank),
      size_(join_.size),
      shared_(options.shared),
      start_timeout_(join_.start_timeout),
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
    if (ended) look_again();
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
                                       Reached has_reached,
                                       Missing missing) {
  const auto reached = [&] {
    if (!mailboxes_.empty()) deliver();
    return has_reached();
  };
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
    // Nobody rings when a full mailbox has room again.
    const bool held = std::ranges::any_of(mailboxes_, &MappedRegion::has_backlog);
    const std::chrono::nanoseconds at_most = held ? kHeldSlice : kSleepSlice;
    doze(reached, std::min<std::chrono::nanoseconds>(at_most, deadline - now));
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
  if (!mailboxes_.empty()) deliver();
  return r.signal(rank_, signal).load(std::memory_order_acquire);
}

bool MappedTransport::progress() {
  throw_if_aborted("progress");
  if (!mailboxes_.empty()) deliver();
  // Who polls instead of waiting must hear of deaths too, though not at the price of a system call
  // in every round.
  const Deadline now = Clock::now();
  if (now < next_look_for_deaths_) return false;
  next_look_for_deaths_ = now + kSleepSlice;
  Rank died;
  Rank left;
  find_gone([](Rank) { return false; }, died, left);
  if (died >= 0) throw_gone("progress", died, left);
  return false;
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

// --- Putting -----------------------------------------------------------------------------------

void MappedTransport::put(const Put& put) {
  FERRY_CHECK(put.region != nullptr, "put without a region");
  MappedRegion& region = mapped(*put.region, this);
  check_put(put, size_);
  throw_if_aborted("put");
  if (masked_.test(static_cast<std::size_t>(put.peer))) return;
  if (region.is_shadowed() && !put.source.empty()) {
    if (put.peer != rank_) return region.post(put);
    std::memcpy(region.local().data() + put.offset, put.source.data(), put.source.size());
  } else if (!put.source.empty()) {
    std::memcpy(region.peer(put.peer) + put.offset, put.source.data(), put.source.size());
  }
  region.signal(put.peer, put.signal).fetch_add(put.add);  // also releases the bytes
  if (put.peer != rank_) ring(put.peer);
}

std::span<std::byte> MappedTransport::peer_window(Region& region, Rank peer) {
  const MappedRegion& r = mapped(region, this);
  FERRY_CHECK(peer >= 0 && peer < size_, "peer {} of {}", peer, size_);
  if (r.is_shadowed()) return peer == rank_ ? region.local() : std::span<std::byte>();
  return {r.peer(peer), region.local().size()};
}

}  // namespace ferry
