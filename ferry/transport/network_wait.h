// How a NetworkTransport waits: it drives the network until the caller's condition holds, and looks
// who is gone meanwhile. For its own .cpp files.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/transport/network.h"

namespace ferry {

inline constexpr int kPollsPerClockRead = 16;
/// Naps of an idle wait grow from the first to the second. While data moves there are none, or
/// short ones: a nap of more than what the network buffers would stop it.
inline constexpr std::chrono::microseconds kShortNap{50};
inline constexpr std::chrono::microseconds kLongNap{1000};
/// A rank that has left goes unnoticed at least this long: another may be the one that signals.
inline constexpr std::chrono::seconds kLeftGrace{1};

/// `missing(r)`: rank r has left, and without it this wait cannot succeed.
template <class Missing>
void NetworkTransport::throw_if_gone(std::string_view call, Missing missing) {
  Rank died = -1;
  Rank left = -1;
  for (Rank r = size_ - 1; r >= 0; --r) {
    if (r == rank_ || is_masked(r)) continue;
    if (peer(r).life == Life::died) died = r;
    if (peer(r).life == Life::left && missing(r)) left = r;
  }
  const CallSite at{name_, call, rank_};
  if (died >= 0) throw gone_error(at, died, peer(died).how);
  if (left >= 0) throw gone_error(at, left, kHasLeft);
  if (suspect_ < 0) return;
  if (is_masked(suspect_) || peer(suspect_).life == Life::left) {
    suspect_ = -1;
  } else if (std::chrono::steady_clock::now() >= suspect_until_) {
    throw TransportError(TransportError::Kind::io,
                         suspect_,
                         fmt::format("{}: {} on rank {}: a put to rank {} failed: {}",
                                     name_,
                                     call,
                                     rank_,
                                     suspect_,
                                     suspicion_));
  }
}

template <class Reached, class Missing>
WaitResult NetworkTransport::wait_until(
    Lock& lock, std::string_view call, Deadline deadline, Reached reached, Missing missing) {
  throw_if_aborted(call);  // even where all is there: nobody shall go on for long after an abort
  Backoff backoff;
  std::uint64_t moves = moves_;
  const auto has_moved = [&] { return std::exchange(moves, moves_) != moves_; };
  for (int polls = 0; !backoff.idle(); ++polls) {
    poll_all(false);
    if (reached()) return WaitResult::reached;
    throw_if_aborted(call);
    if (has_moved()) backoff = {};
    if (polls % kPollsPerClockRead == 0 && std::chrono::steady_clock::now() >= deadline)
      return WaitResult::timed_out;
    lock.unlock();
    backoff.pause();
    lock.lock();
  }
  const Deadline grace_over = std::chrono::steady_clock::now() + kLeftGrace;
  const Deadline left_matters =
      deadline == kNoDeadline ? grace_over : std::max(deadline, grace_over);
  std::chrono::nanoseconds nap = kShortNap;
  for (;;) {
    poll_all(true);
    if (reached()) return WaitResult::reached;
    throw_if_aborted(call);
    const Deadline now = std::chrono::steady_clock::now();
    throw_if_gone(call, [&](Rank r) { return now >= left_matters || missing(r); });
    if (now >= deadline) return WaitResult::timed_out;
    lock.unlock();
    if (needs_polling()) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(nap, deadline - now));
    }
    nap = has_moved() ? kShortNap : std::min<std::chrono::nanoseconds>(nap + nap / 16, kLongNap);
    lock.lock();
  }
}

}  // namespace ferry
