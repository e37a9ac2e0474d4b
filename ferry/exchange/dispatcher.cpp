#include "ferry/dispatcher.h"

#include <exception>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/exchange/compatibility.h"
#include "ferry/exchange/cpu_plane.h"
#include "ferry/exchange/home_sums.h"
#include "ferry/exchange/tile_pipeline.h"
#include "ferry/exchange/token_sender.h"

namespace ferry {

namespace {

/// With the format that memory of these kinds asks for. Throws ConfigError as check_options.
DispatcherOptions resolved(DispatcherOptions options,
                           int ranks,
                           const Capabilities& transport,
                           MemoryKind rows) {
  check_options(options, ranks);
  const bool reserved_costs = transport.pins_memory || rows != MemoryKind::host;
  options.exchange.format = format_for(options.exchange, reserved_costs);
  return options;
}

}  // namespace

/// The protocol: phases in their order on the caller's thread, their steps on the plane.
class Dispatcher::Impl {
 public:
  Impl(const DispatcherOptions& options,
       Transport& transport,
       std::unique_ptr<DataPlane> own_plane,
       DataPlane& plane);
  ~Impl();

  void dispatch_send(const RoutedTokens& tokens);
  ExpertRows dispatch_recv();
  void dispatch_recv(FunctionRef<void(const ExpertRows&)> experts);
  void combine_send();
  void combine_recv(const CombineTarget& target);
  bool poll();
  std::unique_ptr<CachedRouting> keep_routing();
  void mask(Rank peer);

  void synchronise() { plane_.synchronise(); }

  bool is_masked(Rank peer) const { return synchronised("is_masked()").link_.is_masked(peer); }

  std::span<const int> lost_tokens() const {
    return synchronised("lost_tokens()").sums_.lost_tokens();
  }

  int chunks_of_all() const { return synchronised("chunks_of_all()").lane_.chunks_of_all; }

  const ExchangeStats& stats() const { return synchronised("stats()").lane_.stats; }

  std::span<const SourceStats> source_stats() const {
    return synchronised("source_stats()").lane_.sources;
  }

  MutableRowsView registered_input() const { return sender_.stage(); }

  const DispatcherOptions& options() const { return lane_.options; }

  int ranks() const { return lane_.ranks; }

 private:
  enum class Phase : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent };

  void enter(Phase expected, Phase next, std::string_view name);
  const Impl& synchronised(std::string_view what) const;
  ExpertRows rows() const;

  // Steps.
  void begin_phase(std::string_view name);
  void send_tokens(const RoutedTokens& tokens);
  void receive_tokens();
  void send_results();
  void receive_results(const CombineTarget& target);

  std::unique_ptr<DataPlane> own_plane_;
  DataPlane& plane_;

  // The caller's side.
  Phase phase_ = Phase::idle;
  std::string_view phase_name_ = "idle";
  int tokens_ = 0;

  // The steps' side.
  LaneState lane_;
  PeerLink link_;
  DispatchMessages messages_;
  TokenSender sender_;
  RowReceiver receiver_;
  CombineMessages combined_;
  ResultSender results_;
  TilePipeline tiles_;
  HomeSums sums_;
};

Dispatcher::Impl::Impl(const DispatcherOptions& options,
                       Transport& transport,
                       std::unique_ptr<DataPlane> own_plane,
                       DataPlane& plane)
    : own_plane_(std::move(own_plane)),
      plane_(plane),
      lane_(resolved(options, transport.size(), transport.capabilities(), plane.place().kind),
            transport),
      link_(lane_, transport, plane),
      messages_(lane_, link_),
      sender_(lane_, link_, plane),
      receiver_(lane_, link_, messages_, plane),
      combined_(lane_, link_, messages_),
      results_(lane_, link_, messages_, combined_, plane),
      tiles_(lane_, messages_, receiver_, results_),
      sums_(lane_, link_, combined_, plane) {}

/// Steps that have not run yet use this lane.
Dispatcher::Impl::~Impl() {
  try {
    plane_.synchronise();
  } catch (const std::exception&) {
    // Nobody is left to hear what went wrong in an exchange that nobody waited for.
  }
}

const Dispatcher::Impl& Dispatcher::Impl::synchronised(std::string_view what) const {
  FERRY_CHECK(plane_.synchronised(), "{} of a {} plane before synchronise()", what, plane_.name());
  return *this;
}

void Dispatcher::Impl::enter(Phase expected, Phase next, std::string_view name) {
  FERRY_CHECK(phase_ == expected, "{} called out of turn, after {}", name, phase_name_);
  phase_ = next;
  phase_name_ = name;
}

void Dispatcher::Impl::begin_phase(std::string_view name) {
  lane_.phase = name;
  lane_.deadline = deadline_in(lane_.timeout);
  if (lane_.masks()) link_.throw_if_masked_by_others();
}

void Dispatcher::Impl::dispatch_send(const RoutedTokens& tokens) {
  enter(Phase::idle, Phase::dispatch_sent, "dispatch_send");
  plane_.check(tokens.place, "dispatch_send");
  tokens_ = tokens.tokens;
  plane_.submit([this, tokens] { send_tokens(tokens); });
}

void Dispatcher::Impl::send_tokens(const RoutedTokens& tokens) {
  lane_.timeout = tokens.timeout.value_or(lane_.options.timeout);
  begin_phase("dispatch_send");
  lane_.layer = tokens.layer;
  lane_.tokens = tokens.tokens;
  lane_.kept = tokens.cached != nullptr ? &tokens.cached->kept() : nullptr;
  ++lane_.epoch;
  const int tp = lane_.options.tp;
  for (int member = 0; lane_.kept == nullptr && member < tp; ++member) {
    lane_.built_send_plans[static_cast<std::size_t>(member)].build(
        tokens.slots, tokens.tokens, {.member = member, .tp = tp});
  }
  const SendPlan& plan = lane_.own_plan();
  FERRY_CHECK(plan.tokens() == tokens.tokens,
              "{} tokens with the kept routing of {}",
              tokens.tokens,
              plan.tokens());
  sender_.stage_rows(tokens);
  for (const Rank peer : lane_.relays.send_order()) {
    if (link_.is_masked(peer)) continue;
    messages_.send(peer, tokens, sender_.num_row_puts(peer));
    sender_.push_rows(peer);  // behind it: who has read the message plans while they travel
    lane_.stats.bytes_logical += plan.records(peer).size() * (lane_.layout.dispatch_row_bytes +
                                                              lane_.layout.combine_slice_bytes);
  }
  ++lane_.stats.exchanges;
}

ExpertRows Dispatcher::Impl::dispatch_recv() {
  enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  plane_.submit([this] { receive_tokens(); });
  return rows();
}

void Dispatcher::Impl::receive_tokens() {
  begin_phase("dispatch_recv");
  results_.begin();
  receiver_.receive_messages();
  for (const Rank home : lane_.relays.receive_order()) receiver_.take(home);
  receiver_.publish();
}

ExpertRows Dispatcher::Impl::rows() const {
  ExpertRows rows = receiver_.rows();
  rows.out = results_.output();
  return rows;
}

void Dispatcher::Impl::dispatch_recv(FunctionRef<void(const ExpertRows&)> experts) {
  // Tiles are cut by counts, which a caller with a queue does not have.
  if (lane_.options.exchange.pipeline == ExchangeOptions::Pipeline::phases || plane_.runs_later()) {
    experts(dispatch_recv());
    return;
  }
  enter(Phase::dispatch_sent, Phase::dispatched, "dispatch_recv");
  begin_phase("dispatch_recv");
  results_.begin();
  receiver_.receive_messages();
  tiles_.run(experts);
}

void Dispatcher::Impl::combine_send() {
  enter(Phase::dispatched, Phase::combine_sent, "combine_send");
  plane_.submit([this] { send_results(); });
}

void Dispatcher::Impl::send_results() {
  begin_phase("combine_send");
  const FlushDenormals flush;
  results_.send();
}

void Dispatcher::Impl::combine_recv(const CombineTarget& target) {
  enter(Phase::combine_sent, Phase::idle, "combine_recv");
  plane_.check(target.place, "combine_recv");
  const auto entries =
      static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(lane_.options.topk);
  FERRY_CHECK(target.weights.size() == entries,
              "{} weights for {} (token, k)",
              target.weights.size(),
              entries);
  plane_.submit([this, target] { receive_results(target); });
}

void Dispatcher::Impl::receive_results(const CombineTarget& target) {
  begin_phase("combine_recv");
  for (const Rank peer : lane_.relays.receive_order()) combined_.receive(peer);
  sums_.write(target);
  // Who goes on without this rank says so before it overwrites what this rank may still have read.
  if (lane_.masks()) link_.throw_if_masked_by_others();
  sums_.collect_lost_tokens();
}

bool Dispatcher::Impl::poll() {
  const bool dispatching = phase_ == Phase::dispatch_sent;
  FERRY_CHECK(dispatching || phase_ == Phase::combine_sent, "poll() called after {}", phase_name_);
  if (plane_.runs_later()) return true;
  link_.progress();
  if (dispatching) return receiver_.arrived();
  for (Rank peer = 0; peer < lane_.ranks; ++peer)
    if (!combined_.arrived(peer)) return false;
  return true;
}

std::unique_ptr<CachedRouting> Dispatcher::Impl::keep_routing() {
  FERRY_CHECK(phase_ == Phase::dispatched, "keep_routing() called after {}", phase_name_);
  plane_.synchronise();
  auto kept =
      std::make_unique<KeptRouting>(KeptRouting{lane_.send_plans(), lane_.receive_plan(), {}});
  for (Rank home = 0; home < lane_.ranks; ++home) {
    const DispatchMessage& m = messages_.of(home);
    kept->messages.push_back({{m.counts.begin(), m.counts.end()},
                              {m.records.begin(), m.records.end()},
                              {m.entries.begin(), m.entries.end()},
                              {m.row_weights.begin(), m.row_weights.end()}});
  }
  return std::make_unique<CachedRouting>(std::move(kept));
}

void Dispatcher::Impl::mask(Rank peer) {
  FERRY_CHECK(lane_.masks(), "mask() of a dispatcher that fails when a rank dies");
  plane_.submit([this, peer] { link_.mask(peer); });
}

// --- The public face
// ------------------------------------------------------------------------------

CachedRouting::CachedRouting(std::unique_ptr<const KeptRouting> kept) : kept_(std::move(kept)) {}

CachedRouting::~CachedRouting() = default;

std::size_t Dispatcher::mem_size(const DispatcherOptions& options,
                                 int ranks,
                                 const Capabilities& transport) {
  const DispatcherOptions o = resolved(options, ranks, transport, MemoryKind::host);
  const ExchangeLayout layout(o, ranks, transport.load_store);
  return layout.bytes + RowReceiver::memory_bytes(o, layout) +
         ResultSender::memory_bytes(o, layout);
}

Dispatcher::Dispatcher(const DispatcherOptions& options, Transport& transport, ThreadPool& pool) {
  auto plane = std::make_unique<CpuPlane>(pool);
  DataPlane& borrowed = *plane;
  impl_ = std::make_unique<Impl>(options, transport, std::move(plane), borrowed);
}

Dispatcher::Dispatcher(const DispatcherOptions& options, Transport& transport, DataPlane& plane)
    : impl_(std::make_unique<Impl>(options, transport, nullptr, plane)) {}

Dispatcher::~Dispatcher() = default;

void Dispatcher::dispatch_send(const RoutedTokens& tokens) { impl_->dispatch_send(tokens); }

ExpertRows Dispatcher::dispatch_recv() { return impl_->dispatch_recv(); }

void Dispatcher::dispatch_recv(FunctionRef<void(const ExpertRows&)> experts) {
  impl_->dispatch_recv(experts);
}

void Dispatcher::combine_send() { impl_->combine_send(); }

void Dispatcher::combine_recv(const CombineTarget& target) { impl_->combine_recv(target); }

bool Dispatcher::poll() { return impl_->poll(); }

std::unique_ptr<CachedRouting> Dispatcher::keep_routing() const { return impl_->keep_routing(); }

void Dispatcher::synchronise() { impl_->synchronise(); }

void Dispatcher::mask(Rank peer) { impl_->mask(peer); }

int Dispatcher::ranks() const { return impl_->ranks(); }

bool Dispatcher::is_masked(Rank peer) const { return impl_->is_masked(peer); }

std::span<const int> Dispatcher::lost_tokens() const { return impl_->lost_tokens(); }

int Dispatcher::chunks_of_all() const { return impl_->chunks_of_all(); }

MutableRowsView Dispatcher::registered_input() const { return impl_->registered_input(); }

const DispatcherOptions& Dispatcher::options() const { return impl_->options(); }

const ExchangeStats& Dispatcher::stats() const { return impl_->stats(); }

std::span<const SourceStats> Dispatcher::source_stats() const { return impl_->source_stats(); }

}  // namespace ferry
