#include "ferry/exchange/gpu/gpu_network.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/dispatcher.h"

namespace ferry {

using gpu::GpuHeader;
using gpu::GpuSignal;

namespace {

/// Runs that lie closer together travel as one: a put costs about as much as so many bytes.
constexpr std::size_t kGap = 512;

/// Of a put, so that something is seen to move while a long run travels.
constexpr std::size_t kMostPutBytes = std::size_t{256} << 10;

constexpr std::chrono::milliseconds kLongestNap(1);

std::size_t word_at(std::size_t letter, GpuSignal signal) {
  return letter + static_cast<std::size_t>(signal) * sizeof(std::uint64_t);
}

std::size_t header_at(std::size_t letter, GpuSignal step) {
  return letter + static_cast<std::size_t>(step) * sizeof(GpuHeader);
}

}  // namespace

std::vector<int> hosts_of_ranks(const Transport& transport, int ranks_per_host) {
  std::vector<int> hosts;
  for (Rank rank = 0; rank < transport.size(); ++rank)
    hosts.push_back(ranks_per_host > 0 ? rank / ranks_per_host : transport.host_of(rank));
  return hosts;
}

bool spans_hosts(const std::vector<int>& hosts) {
  return std::ranges::any_of(hosts, [&](int host) { return host != hosts.front(); });
}

void check_gpu_hosts(const std::vector<int>& hosts,
                     const DispatcherOptions& options,
                     const Transport& transport) {
  if (!spans_hosts(hosts)) return;
  if (options.exchange.hidden_partition)
    fail<ConfigError>("a GPU exchange over several hosts has no hidden_partition");
  if (options.exchange.reduce_at != ExchangeOptions::ReduceAt::home) {
    fail<ConfigError>(
        "a GPU exchange over several hosts has no sums by rank: choose a backend that combines per "
        "expert");
  }
  if (transport.capabilities().one_thread) {
    fail<ConfigError>(
        "a GPU exchange over several hosts needs a transport that a thread beside the caller's can "
        "use, which {} is not: choose fabric",
        transport.name());
  }
}

GpuNetwork::GpuNetwork(const gpu::GpuLayout& layout,
                       const std::vector<int>& hosts,
                       Transport& transport,
                       GpuQueue& queue)
    : layout_(layout),
      boxes_(layout, hosts, transport.rank()),
      transport_(transport.split(0, transport.rank())),
      region_(transport_->allocate_region(boxes_.part_bytes(),
                                          (2 * gpu::kGpuSteps + 1) * transport.size())),
      mapped_(queue.map(region_->local())),
      tokens_sent_(static_cast<std::size_t>(layout.max_tokens)) {
  for (Rank rank = 0; rank < layout.ranks; ++rank)
    if (is_far(rank)) peers_.push_back({.rank = rank});
  thread_ = std::thread([this] { carry(); });
}

GpuNetwork::~GpuNetwork() {
  stops_ = true;
  thread_.join();
}

gpu::GpuLink GpuNetwork::to(Rank peer) const {
  return boxes_.link(mapped_->data(), boxes_.outbox(peer));
}

gpu::GpuSource GpuNetwork::from(Rank peer) const {
  std::byte* inbox = mapped_->data() + boxes_.inbox(peer);
  return {.told = boxes_.link(mapped_->data(), boxes_.inbox(peer)),
          .stage = inbox + boxes_.inbox_stage(),
          .results = inbox + boxes_.inbox_results(),
          .num_results = static_cast<std::uint32_t>(layout_.tp * layout_.share_results)};
}

gpu::GpuFar GpuNetwork::far() const {
  return {
      .stage = mapped_->data() + gpu::GpuBoxes::stage(),
      .result_counts = reinterpret_cast<std::uint32_t*>(mapped_->data() + boxes_.result_counts())};
}

std::byte* GpuNetwork::results(Rank home) const {
  return boxes_.has_results(home) ? mapped_->data() + boxes_.results(home) : nullptr;
}

void GpuNetwork::rethrow() const {
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(error_);
}

// --- The thread that carries letters -------------------------------------------------------------

void GpuNetwork::carry() {
  try {
    auto moved = std::chrono::steady_clock::now();
    Backoff backoff;
    while (!stops_) {
      if (move_or_mask()) {
        moved = std::chrono::steady_clock::now();
        backoff = {};
      } else if (!backoff.idle()) {
        backoff.pause();
      } else {
        std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(
            kLongestNap, (std::chrono::steady_clock::now() - moved) / 8));
      }
    }
  } catch (const std::exception& e) {
    // Also where a peer is gone: who has not seen it yet shall read why rather than that we left.
    transport_->abort(e.what());
    fail_links();
  }
}

/// As move(); where dead ranks are masked, the transport goes on without a rank that it misses.
bool GpuNetwork::move_or_mask() {
  try {
    return move();
  } catch (const TransportError& e) {
    go_on_without(e);
    return true;
  }
}

/// In the handler of an error: throws it again, or masks the rank that it is about.
void GpuNetwork::go_on_without(const TransportError& e) {
  if (!layout_.masks || e.peer() < 0 || e.peer() == transport_->rank()) throw;
  transport_->mask(e.peer());
  for (Peer& peer : peers_) peer.is_gone = peer.is_gone || peer.rank == e.peer();
}

/// A put may throw for a third rank's sake, and the letter that it is of must go on all the same.
void GpuNetwork::put(const Put& put) {
  for (;;) {
    try {
      transport_->put(put);
      return;
    } catch (const TransportError& e) {
      go_on_without(e);
      if (e.peer() == put.peer) return;
    }
  }
}

/// Once over all letters. Whether one went or came, or a part of one.
bool GpuNetwork::move() {
  bool moved = false;
  for (Peer& peer : peers_) {
    if (peer.is_gone) continue;
    for (const GpuSignal step : {GpuSignal::tokens, GpuSignal::results}) {
      moved = send(peer, step) || moved;
      moved = receive(peer, step) || moved;
    }
    if (layout_.masks) moved = pass_masks(peer) || moved;
  }
  return transport_->progress() || moved;
}

/// In the handler of what ended the thread.
void GpuNetwork::fail_links() noexcept {
  {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  for (const Peer& peer : peers_) {
    const std::size_t signals = boxes_.inbox(peer.rank) + boxes_.letter().signals;
    for (const GpuSignal step : {GpuSignal::tokens, GpuSignal::results})
      mapped_->release(word_at(signals, step), gpu::kLinkFailed);
  }
}

int GpuNetwork::signal(GpuSignal step, bool header, Rank source) const {
  return (static_cast<int>(step) * 2 + (header ? 1 : 0)) * layout_.ranks + source;
}

/// Exchanges come one at a time: nobody rings for the next before the peer has answered this one.
bool GpuNetwork::send(Peer& peer, GpuSignal step) {
  std::uint64_t& sent = peer.sent[static_cast<int>(step)];
  const std::size_t signals = boxes_.outbox(peer.rank) + boxes_.letter().signals;
  if (!mapped_->acquire(word_at(signals, step), sent + 1)) return false;
  ++sent;
  runs_.clear();
  if (step == GpuSignal::tokens)
    add_tokens(peer.rank);
  else
    add_results(peer.rank);
  put_runs(peer, step);
  return true;
}

void GpuNetwork::put_runs(Peer& peer, GpuSignal step) {
  const std::span<const std::byte> own = region_->local();
  const std::size_t most = std::min(kMostPutBytes, transport_->capabilities().max_put_bytes);
  const int signal_of_runs = signal(step, /*header=*/false, transport_->rank());
  GpuHeader header{.exchange = peer.sent[static_cast<int>(step)]};
  for (const Run& run : runs_) {
    mapped_->reads(run.from, run.bytes);
    for (std::size_t done = 0; done < run.bytes; ++header.puts) {
      const std::size_t bytes = std::min(most, run.bytes - done);
      put({.region = region_.get(),
           .peer = peer.rank,
           .offset = run.to + done,
           .source = own.subspan(run.from + done, bytes),
           .signal = signal_of_runs});
      done += bytes;
    }
  }
  put({.region = region_.get(),
       .peer = peer.rank,
       .offset = header_at(boxes_.inbox_there(peer.rank) + boxes_.letter().headers, step),
       .source = std::as_bytes(std::span(&header, 1)),
       .signal = signal(step, /*header=*/true, transport_->rank())});
}

/// Runs come in order of where they lie, and both ends of two that are joined lie alike.
void GpuNetwork::add_run(const Run& run) {
  if (run.bytes == 0) return;
  if (!runs_.empty()) {
    Run& last = runs_.back();
    const std::size_t end = last.from + last.bytes;
    if (run.from >= end && run.from - end <= kGap && run.from - last.from == run.to - last.to) {
      last.bytes = run.from - last.from + run.bytes;
      return;
    }
  }
  runs_.push_back(run);
}

/// Either side's word that it goes on without the other, once.
bool GpuNetwork::pass_masks(Peer& peer) {
  const std::size_t signals = boxes_.letter().signals;
  const int word = signal(GpuSignal::masked, /*header=*/false, peer.rank);
  bool moved = false;
  if (!peer.is_masked &&
      mapped_->acquire(word_at(boxes_.outbox(peer.rank) + signals, GpuSignal::masked), 1)) {
    put({.region = region_.get(),
         .peer = peer.rank,
         .signal = signal(GpuSignal::masked, false, transport_->rank())});
    peer.is_masked = moved = true;
  }
  if (!peer.has_masked && transport_->signal_value(*region_, word) > 0) {
    mapped_->release(word_at(boxes_.inbox(peer.rank) + signals, GpuSignal::masked), 1);
    peer.has_masked = moved = true;
  }
  return moved;
}

/// The lists, and every row that one of them names.
void GpuNetwork::add_tokens(Rank peer) {
  const gpu::GpuBoxes::Letter& letter = boxes_.letter();
  const std::size_t from = boxes_.outbox(peer);
  const std::size_t to = boxes_.inbox_there(peer);
  const auto slots = static_cast<std::size_t>(layout_.slots);
  const auto add = [&](std::size_t offset, std::size_t bytes) {
    add_run({.from = from + offset, .to = to + offset, .bytes = bytes});
  };
  mapped_->reads(from + letter.counts, slots * sizeof(std::uint32_t));
  const auto* counts = here<std::uint32_t>(from + letter.counts);
  const auto* tokens = here<std::uint32_t>(from + letter.tokens);
  const auto add_lists = [&](std::size_t lists) {
    for (int slot = 0; slot < layout_.slots; ++slot)
      add(lists + layout_.list(slot) * sizeof(std::uint32_t), counts[slot] * sizeof(std::uint32_t));
  };
  add(letter.counts, slots * sizeof(std::uint32_t));
  add_lists(letter.tokens);
  if (layout_.row_weights) add_lists(letter.weights);
  std::ranges::fill(tokens_sent_, 0);
  for (int slot = 0; slot < layout_.slots; ++slot) {
    const std::span list(tokens + layout_.list(slot), counts[slot]);
    mapped_->reads(from + letter.tokens + layout_.list(slot) * sizeof(std::uint32_t),
                   list.size_bytes());
    for (const std::uint32_t token : list) tokens_sent_[token] = 1;
  }
  const auto row_bytes = static_cast<std::size_t>(layout_.dispatch_row_bytes);
  for (std::size_t token = 0; token < tokens_sent_.size(); ++token) {
    if (tokens_sent_[token] == 0) continue;
    add_run({.from = gpu::GpuBoxes::stage() + token * row_bytes,
             .to = to + boxes_.inbox_stage() + token * row_bytes,
             .bytes = row_bytes});
  }
}

/// Of every share of the peer's group: where its results begin, and they.
void GpuNetwork::add_results(Rank peer) {
  const std::size_t to = boxes_.inbox_there(peer);
  const std::size_t rows = boxes_.letter().result_rows;
  add_run({.from = boxes_.outbox(peer) + rows,
           .to = to + rows,
           .bytes = static_cast<std::size_t>(layout_.tp * layout_.slots) * sizeof(std::uint32_t)});
  const Rank first = peer / layout_.tp * layout_.tp;
  const auto row_bytes = static_cast<std::size_t>(layout_.combine_row_bytes);
  for (Rank home = first; home < first + layout_.tp; ++home) {
    const std::size_t count =
        boxes_.result_counts() + static_cast<std::size_t>(home) * sizeof(std::uint32_t);
    mapped_->reads(count, sizeof(std::uint32_t));
    add_run({.from = boxes_.results(home),
             .to = to + boxes_.inbox_results() +
                   static_cast<std::size_t>((home - first) * layout_.share_results) * row_bytes,
             .bytes = *here<std::uint32_t>(count) * row_bytes});
  }
}

bool GpuNetwork::receive(Peer& peer, GpuSignal step) {
  const auto i = static_cast<int>(step);
  const std::uint64_t exchange = peer.received[i] + 1;
  const int header_signal = signal(step, /*header=*/true, peer.rank);
  if (transport_->signal_value(*region_, header_signal) < exchange) return false;
  const gpu::GpuBoxes::Letter& letter = boxes_.letter();
  const std::size_t inbox = boxes_.inbox(peer.rank);
  const auto header = *here<GpuHeader>(header_at(inbox + letter.headers, step));
  if (header.exchange != exchange) {
    throw TransportError(TransportError::Kind::io,
                         peer.rank,
                         fmt::format("rank {} sent exchange {} of a GPU exchange where {} is due",
                                     peer.rank,
                                     header.exchange,
                                     exchange));
  }
  const int signal_of_runs = signal(step, /*header=*/false, peer.rank);
  if (transport_->signal_value(*region_, signal_of_runs) - peer.puts[i] < header.puts) return false;
  peer.received[i] = exchange;
  peer.puts[i] += header.puts;
  // Whatever of these has come: kernels must be done with all of it.
  if (step == GpuSignal::tokens) {
    mapped_->writes(inbox + letter.counts, letter.result_rows - letter.counts);
    mapped_->writes(inbox + boxes_.inbox_stage(), boxes_.inbox_results() - boxes_.inbox_stage());
    check_tokens(peer.rank);
  } else {
    mapped_->writes(inbox + letter.result_rows, letter.bytes - letter.result_rows);
    mapped_->writes(
        inbox + boxes_.inbox_results(),
        static_cast<std::size_t>(layout_.tp * layout_.share_results * layout_.combine_row_bytes));
  }
  mapped_->release(word_at(inbox + letter.signals, step), exchange);
  return true;
}

/// Kernels check each list; together they must fit, too.
void GpuNetwork::check_tokens(Rank peer) const {
  const auto* counts = here<std::uint32_t>(boxes_.inbox(peer) + boxes_.letter().counts);
  std::int64_t all = 0;
  for (int slot = 0; slot < layout_.slots; ++slot) all += counts[slot];
  if (all <= layout_.share_results) return;
  throw TransportError(TransportError::Kind::io,
                       peer,
                       fmt::format("rank {} sent {} tokens' rows to rank {}, where {} can be",
                                   peer,
                                   all,
                                   transport_->rank(),
                                   layout_.share_results));
}

}  // namespace ferry
