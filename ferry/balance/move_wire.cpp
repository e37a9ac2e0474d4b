#include "ferry/balance/move_wire.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/core/timed.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

constexpr int kPlanSignal = 0;
constexpr std::int64_t kAlignment = 64;
constexpr std::size_t kSmallestPage = 4096;

int weights_signal(Rank from) { return 1 + from; }

std::size_t aligned(std::size_t bytes) {
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), kAlignment));
}

}  // namespace

MoveWire::MoveWire(const Sizes& sizes, std::chrono::nanoseconds timeout, Transport& transport)
    : transport_(transport),
      timeout_(timeout),
      direct_(transport.capabilities().load_store),
      plan_words_(sizes.plan_words),
      plan_bytes_(aligned(sizes.plan_words * sizeof(std::int32_t))),
      buffer_bytes_(aligned(sizes.step_bytes)),
      buffers_at_(2 * plan_bytes_),
      buffers_(direct_ ? 2 : 4),
      region_(
          transport.allocate_region(buffers_at_ + buffers_ * buffer_bytes_, 1 + transport.size())),
      puts_expected_(static_cast<std::size_t>(transport.size()), 0) {}

/// The kernel clears new pages, which takes longer than the copies.
void MoveWire::touch_buffers() {
  std::memset(region_->local().data() + buffers_at_, 0, buffers_ * buffer_bytes_);
  const bool maps_peers = direct_ && !transport_.capabilities().one_process;
  for (Rank peer = 0; maps_peers && peer < transport_.size(); ++peer) {
    const auto in = transport_.peer_window(*region_, peer).subspan(buffers_at_, 2 * buffer_bytes_);
    for (std::size_t i = 0; i < in.size(); i += kSmallestPage)
      static_cast<void>(*static_cast<volatile std::byte*>(in.data() + i));
  }
  // A peer that went on could write where this rank still clears.
  if (transport_.barrier(deadline_in(timeout_)) == WaitResult::timed_out) {
    throw TransportError(TransportError::Kind::timeout,
                         -1,
                         "moving experts: some rank did not get its memory ready in time");
  }
}

// --- Plans ---------------------------------------------------------------------------------------

std::span<std::int32_t> MoveWire::next_plan() {
  return {reinterpret_cast<std::int32_t*>(region_->local().data() + plan_bytes_), plan_words_};
}

void MoveWire::put_plan() {
  for (Rank peer = 0; peer < transport_.size(); ++peer)
    put(peer, 0, plan_bytes_, plan_words_ * sizeof(std::int32_t), kPlanSignal);
}

std::span<const std::int32_t> MoveWire::plan(std::uint64_t number) {
  await(kPlanSignal, number * puts_for(plan_words_ * sizeof(std::int32_t)), "plan", 0);
  return {reinterpret_cast<const std::int32_t*>(region_->local().data()), plan_words_};
}

// --- Weights -------------------------------------------------------------------------------------

void MoveWire::send(Rank to, std::span<const std::byte> bytes, std::size_t at, std::size_t own_at) {
  const Timed timed(copy_time_);
  const int signal = weights_signal(transport_.rank());
  const std::size_t there = in_offset() + at;
  if (direct_) {
    std::memcpy(transport_.peer_window(*region_, to).data() + there, bytes.data(), bytes.size());
    transport_.put({.region = region_.get(), .peer = to, .signal = signal});
  } else {
    // Free again two steps later: the peer has taken these bytes in before it answers the next one.
    const std::size_t here = out_offset() + own_at;
    std::memcpy(region_->local().data() + here, bytes.data(), bytes.size());
    put(to, there, here, bytes.size(), signal);
  }
  bytes_sent_ += bytes.size();
}

void MoveWire::expect(Rank from, std::span<std::byte> target, std::size_t at) {
  // Over mapped memory the bytes are written in place, and one empty put says so.
  puts_expected_[static_cast<std::size_t>(from)] += direct_ ? 1 : puts_for(target.size());
  arrivals_.push_back({from, target, at});
}

void MoveWire::begin_step() {
  for (const Arrival& arrival : arrivals_) {
    await(weights_signal(arrival.from),
          puts_expected_[static_cast<std::size_t>(arrival.from)],
          "weights",
          arrival.from);
    const Timed timed(copy_time_);
    std::memcpy(arrival.target.data(),
                region_->local().data() + in_offset() + arrival.at,
                arrival.target.size());
    bytes_received_ += arrival.target.size();
  }
  arrivals_.clear();
  ++step_;
}

// --- Puts ----------------------------------------------------------------------------------------

std::uint64_t MoveWire::puts_for(std::size_t bytes) const {
  const std::size_t most = transport_.capabilities().max_put_bytes;
  return bytes / most + (bytes % most != 0 ? 1 : 0);
}

void MoveWire::put(Rank peer, std::size_t to, std::size_t from, std::size_t bytes, int signal) {
  const std::size_t most = transport_.capabilities().max_put_bytes;
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t n = std::min(bytes - done, most);
    transport_.put({.region = region_.get(),
                    .peer = peer,
                    .offset = to + done,
                    .source = region_->local().subspan(from + done, n),
                    .signal = signal});
    done += n;
  }
}

void MoveWire::await(int signal, std::uint64_t count, const char* what, Rank peer) {
  if (transport_.wait(*region_, signal, count, deadline_in(timeout_)) == WaitResult::reached)
    return;
  throw TransportError(TransportError::Kind::timeout,
                       peer,
                       fmt::format("moving experts: rank {} sent no {} (expected {} puts, saw {})",
                                   peer,
                                   what,
                                   count,
                                   transport_.signal_value(*region_, signal)));
}

}  // namespace ferry
