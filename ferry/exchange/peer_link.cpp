#include "ferry/exchange/peer_link.h"

#include <algorithm>

#include "ferry/exchange/compatibility.h"

namespace ferry {

PeerLink::PeerLink(LaneState& lane, Transport& transport, DataPlane& plane)
    : lane_(lane),
      transport_(transport),
      plane_(plane),
      masked_(static_cast<std::size_t>(lane.ranks)) {
  check_survives_deaths(lane.options, transport);
  region_ = transport.allocate_region(lane.layout.bytes, lane.ranks * kExchangeSignals);
  for (Rank r = 0; r < lane.ranks; ++r)
    reads_.push_back(transport.peer_window(*region_, r).empty() ? 0 : 1);
}

const std::byte* PeerLink::part_of(Rank rank) const {
  return transport_.peer_window(*region_, rank).data();
}

const std::byte* PeerLink::rows_of(Rank home) const {
  const ExchangeLayout& layout = lane_.layout;
  if (reads(home)) return part_of(home) + layout.stage;
  return part_of(lane_.relays.taker(home, lane_.rank)) + layout.dispatch_slab +
         static_cast<std::size_t>(home) * layout.dispatch_slab_rows * layout.dispatch_row_bytes;
}

const std::byte* PeerLink::results_of(Rank peer) const {
  const ExchangeLayout& layout = lane_.layout;
  if (reads(peer)) return part_of(peer) + layout.results;
  return at<std::byte>(layout.combine_slab) +
         static_cast<std::size_t>(peer) * static_cast<std::size_t>(lane_.options.tp) *
             layout.combine_slab_rows * layout.combine_slice_bytes;
}

int PeerLink::signal_index(Rank source, ExchangeSignal signal) {
  return source * kExchangeSignals + static_cast<int>(signal);
}

/// Runs a call of the transport; what it throws says what this rank was doing. Where dead ranks are
/// masked, the call is made again without them.
template <class Call>
auto PeerLink::in_context(Call call) {
  for (;;) {
    try {
      return call();
    } catch (const TransportError& e) {
      if (!mask_after(e))
        throw TransportError(e.kind(), e.peer(), fmt::format("{}: {}", lane_.where(), e.what()));
    }
  }
}

void PeerLink::put_all(std::span<const Put> puts) {
  std::size_t done = 0;
  in_context([&] { plane_.put(transport_, puts, done); });
}

void PeerLink::put(Rank peer,
                   std::size_t offset,
                   std::span<const std::byte> source,
                   ExchangeSignal signal) {
  const Put one{.region = region_.get(),
                .peer = peer,
                .offset = offset,
                .source = source,
                .signal = signal_index(lane_.rank, signal)};
  put_all({&one, 1});
}

void PeerLink::raise(Rank peer, Rank source, ExchangeSignal signal) {
  const Put one{.region = region_.get(), .peer = peer, .signal = signal_index(source, signal)};
  put_all({&one, 1});
}

std::size_t PeerLink::rows_per_put(std::size_t row_bytes) const {
  return std::max<std::size_t>(1, transport_.capabilities().max_put_bytes / row_bytes);
}

/// Waits until the signal has come, the deadline has passed or the peer is masked, and notes for
/// how long. What is there already costs no look at the clock.
WaitResult PeerLink::timed_wait(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  const int index = signal_index(peer, signal);
  const auto wait = [&] {
    return in_context([&] {
      return is_masked(peer) ? WaitResult::timed_out
                             : plane_.wait(transport_, *region_, index, count, lane_.deadline);
    });
  };
  if (peer == lane_.rank || is_masked(peer) ||
      plane_.signal_value(transport_, *region_, index) >= count)
    return wait();
  const auto began = std::chrono::steady_clock::now();
  const WaitResult result = wait();
  const std::chrono::nanoseconds waited = std::chrono::steady_clock::now() - began;
  SourceStats& source = lane_.sources[static_cast<std::size_t>(peer)];
  const bool dispatching =
      signal == ExchangeSignal::dispatch_message || signal == ExchangeSignal::dispatch_rows;
  (dispatching ? source.dispatch_wait_ns : source.combine_wait_ns) +=
      static_cast<std::uint64_t>(waited.count());
  return result;
}

bool PeerLink::await(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  const WaitResult result = timed_wait(peer, signal, count);
  if (result == WaitResult::reached) return true;
  if (is_masked(peer)) return false;
  if (lane_.masks() && peer != lane_.rank) {
    mask_and_tell(peer);
    return false;
  }
  throw TransportError(
      TransportError::Kind::timeout,
      known_as(peer),
      fmt::format("{} waited {} s for rank {}: expected {} messages, saw {}; that rank hangs or is "
                  "slow (raise --timeout)",
                  lane_.where(),
                  std::chrono::duration<double>(lane_.timeout).count(),
                  known_as(peer),
                  count,
                  plane_.signal_value(transport_, *region_, signal_index(peer, signal))));
}

bool PeerLink::arrived(Rank peer, ExchangeSignal signal, std::uint64_t count) {
  if (is_masked(peer)) return true;
  if (plane_.signal_value(transport_, *region_, signal_index(peer, signal)) >= count) return true;
  // Who polls for ever hears of the deadline like who waits.
  return std::chrono::steady_clock::now() >= lane_.deadline && !await(peer, signal, count);
}

void PeerLink::progress() {
  in_context([&] { transport_.progress(); });
}

// --- Ranks that are gone ------------------------------------------------------------------------

void PeerLink::mask(Rank peer) {
  if (is_masked(peer)) return;
  masked_[static_cast<std::size_t>(peer)] = 1;
  transport_.mask(peer);
}

/// Whether the error was the end of a peer that can be masked, and now is.
bool PeerLink::mask_after(const TransportError& error) {
  const bool ended = error.kind() == TransportError::Kind::peer_died ||
                     error.kind() == TransportError::Kind::aborted;
  const Rank peer = error.peer();
  if (!lane_.masks() || !ended || peer < 0 || peer == lane_.rank || is_masked(peer)) return false;
  mask(peer);
  return true;
}

void PeerLink::mask_as_others(Rank peer) {
  if (!is_masked(peer)) mask_and_tell(peer);
}

/// A rank that may still live must learn that the others have gone on.
void PeerLink::mask_and_tell(Rank peer) {
  throw_if_masked_by_others();
  put(peer, 0, {}, ExchangeSignal::masked);
  mask(peer);
}

void PeerLink::throw_if_masked_by_others() {
  for (Rank peer = 0; peer < lane_.ranks; ++peer) {
    const int index = signal_index(peer, ExchangeSignal::masked);
    if (is_masked(peer) || plane_.signal_value(transport_, *region_, index) == 0) continue;
    throw TransportError(TransportError::Kind::aborted,
                         known_as(peer),
                         fmt::format("{}: rank {} waited too long for this rank and went on "
                                     "without it; start it again with the next group",
                                     lane_.where(),
                                     known_as(peer)));
  }
}

// --- Rows ---------------------------------------------------------------------------------------

RowPushes::RowPushes(PeerLink& link, Rank peer, std::size_t row_bytes, ExchangeSignal signal)
    : link_(link),
      peer_(peer),
      row_bytes_(row_bytes),
      most_(link.rows_per_put(row_bytes)),
      signal_(PeerLink::signal_index(link.lane_.rank, signal)) {}

void RowPushes::add(std::size_t to, std::size_t from, std::size_t rows) {
  for (std::size_t done = 0; done < rows; done += most_) {
    const std::size_t bytes = std::min(most_, rows - done) * row_bytes_;
    if (waiting_ == puts_.size()) start();
    puts_[waiting_++] = {.region = link_.region_.get(),
                         .peer = peer_,
                         .offset = to + done * row_bytes_,
                         .source = {link_.at<const std::byte>(from + done * row_bytes_), bytes},
                         .signal = signal_};
  }
  rows_ += rows;
}

void RowPushes::start() {
  link_.put_all(std::span(puts_).first(waiting_));
  started_ += static_cast<std::uint32_t>(waiting_);
  waiting_ = 0;
}

std::uint32_t RowPushes::finish() {
  start();
  LaneState& lane = link_.lane_;
  if (peer_ != lane.rank) lane.stats.bytes_wire += rows_ * row_bytes_;
  if (!lane.relays.is_near(peer_)) lane.stats.bytes_network += rows_ * row_bytes_;
  return started_;
}

}  // namespace ferry
