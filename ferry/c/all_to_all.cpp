// An exchange in four phases: the order of the calls, and what is checked before the others wait.
#include "ferry/c/all_to_all.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "ferry/c/comm_state.h"
#include "ferry/c/exchange_arguments.h"
#include "ferry/c/exchange_lane.h"
#include "ferry/c/status.h"

struct ferry_routing {  // NOLINT(readability-identifier-naming): as C has it
  // Also owned by the exchange that uses it.
  std::shared_ptr<const ferry::CachedRouting> cached;
  int tokens;
};

namespace ferry::c {

FERRY_C_STRUCT_GROWN(ferry_dispatch_input, FERRY_DISPATCH_INPUT, num_tokens);
FERRY_C_STRUCT(ferry_expert_rows, FERRY_EXPERT_ROWS);
FERRY_C_STRUCT(ferry_combine_output, FERRY_COMBINE_OUTPUT);
FERRY_C_STRUCT(ferry_exchange_stats, FERRY_EXCHANGE_STATS);

namespace {

class AllToAll : public OnComm {
 public:
  enum class Phase : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent };

  AllToAll(Comm& comm, const MemoryPlace& place, const DispatcherOptions& options)
      : OnComm(comm), lane_(make_exchange_lane(place, options, comm.transport(), comm.pool())) {}

  ExchangeLane& lane() { return *lane_; }

  /// For `what` is asked. Throws ConfigError on a device.
  Dispatcher& dispatcher(const char* what) {
    if (lane_->dispatcher() == nullptr)
      fail<ConfigError>("{}: not there for an exchange in device memory", what);
    return *lane_->dispatcher();
  }

  void mask(Rank rank) override {
    if (options().exchange.on_dead_rank == ExchangeOptions::OnDeadRank::mask) lane_->mask(rank);
  }

  bool is_masked(Rank rank) const override { return lane_->is_masked(rank); }

  /// Runs a phase that follows `expected`: `check` first, which reads what it is handed and changes
  /// nothing. What `body` throws leaves the exchange as it is, and the comm has failed.
  template <class Check, class Body>
  void run(const char* name, Phase expected, Phase next, Check&& check, Body&& body) {
    comm().exchange(
        [&] {
          check_phase(name, expected);
          check();
        },
        [&] {
          body(*lane_);
          course().phase = next;
        });
  }

  /// The same between a send and its receive, or within dispatch_recv and combine_send.
  template <class Body>
  void run_between(const char* name, Phase either, Phase or_else, Body&& body) {
    comm().exchange(
        [&] {
          dispatcher(name);
          if (course().phase != either) check_phase(name, or_else);
        },
        [&] { body(dispatcher(name)); });
  }

  RoutedTokens tokens_of(const ferry_dispatch_input& in) const;
  CombineTarget target_of(const ferry_combine_output& out) const;

  void sent(const ferry_dispatch_input& in) {
    course().tokens = in.tokens;
    course().routing = in.routing != nullptr ? in.routing->cached : nullptr;
  }

  int tokens() const { return course().tokens; }

  void check_not_captured(const char* name) const {
    if (lane_->capturing() != 0)
      fail<OutOfOrder>("{} while its stream is captured, where nothing runs; end the capture first",
                       name);
  }

 private:
  /// Exchanges one after the other: those that run, or those that are captured (GpuExchange).
  struct Course {
    std::uint64_t capture = 0;
    Phase phase = Phase::idle;
    int tokens = 0;                                // of the exchange in progress
    std::shared_ptr<const CachedRouting> routing;  // that it uses
  };

  const Course& course() const { return lane_->capturing() != 0 ? captured_ : called_; }

  Course& course() { return const_cast<Course&>(std::as_const(*this).course()); }

  void check_phase(const char* name, Phase expected) {
    Course& now = course();
    const std::uint64_t capture = lane_->capturing();
    // A capture that begins an exchange owes nothing to an earlier one, which was given up.
    if (capture != now.capture && expected == Phase::idle) now.phase = Phase::idle;
    if (now.phase != expected)
      fail<OutOfOrder>("{} called out of turn, after {}", name, name_of(now.phase));
    now.capture = capture;
  }

  const DispatcherOptions& options() const { return lane_->options(); }

  int ranks() const { return comm().transport().size(); }

  MemoryPlace place_of(const ferry_place& given, const char* name) const;

  static const char* name_of(Phase phase) {
    switch (phase) {
      case Phase::idle:
        return "combine_recv, or nothing";
      case Phase::dispatch_sent:
        return "dispatch_send";
      case Phase::dispatched:
        return "dispatch_recv";
      case Phase::combine_sent:
        return "combine_send";
    }
    return "?";
  }

  void check_slots(std::span<const SlotId> slots) const;

  std::unique_ptr<ExchangeLane> lane_;
  Course called_, captured_;
};

using Phase = AllToAll::Phase;

AllToAll& of(ferry_all_to_all* handle) {
  return *reinterpret_cast<AllToAll*>(need(handle, "the all-to-all"));
}

/// Throws unless what is handed over lies where the exchange is, on its queue.
MemoryPlace AllToAll::place_of(const ferry_place& given, const char* name) const {
  const MemoryPlace own = lane_->place();
  if (own.kind == MemoryKind::host) return place(given, name);
  const MemoryPlace theirs = any_place(given);
  if (theirs != own) {
    fail<ConfigError>(
        "{}: {} memory; this exchange works in memory of device {}, on the queue that "
        "it was made with",
        name,
        memory_kind_name(theirs.kind),
        own.device);
  }
  return own;
}

/// Whether all can be computed, and, with row weights, no token names a slot twice.
void AllToAll::check_slots(std::span<const SlotId> slots) const {
  const int num_slots = options().slots_per_rank * ranks();
  const auto topk = static_cast<std::size_t>(options().topk);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < -1 || slots[i] >= num_slots) {
      fail<ConfigError>("token {}: choice {} is slot {}, outside 0..{}; use -1 for none",
                        i / topk,
                        i % topk,
                        slots[i],
                        num_slots - 1);
    }
    if (!options().row_weights || slots[i] < 0) continue;
    const auto own = slots.subspan(i / topk * topk, i % topk);
    if (std::find(own.begin(), own.end(), slots[i]) != own.end())
      fail<ConfigError>("token {} names slot {} twice, and has row weights", i / topk, slots[i]);
  }
}

RoutedTokens AllToAll::tokens_of(const ferry_dispatch_input& in) const {
  const DispatcherOptions& o = options();
  if (in.tokens < 0 || in.tokens > o.max_tokens)
    fail<ConfigError>("{} tokens; 0 to {} are possible", in.tokens, o.max_tokens);
  if (in.chunks < 1) fail<ConfigError>("{} chunks; at least 1 is possible", in.chunks);
  RoutedTokens tokens{.place = place_of(in.place, "ferry_dispatch_input"),
                      .rows = rows(in.rows, in.stride, in.tokens, "rows"),
                      .type = dtype(in.type, "type"),
                      .encoded = in.encoded != 0,
                      .tokens = in.tokens,
                      .chunks = in.chunks,
                      .layer = in.layer,
                      .timeout = timeout_of_call(in.timeout_s)};
  check_row_type(o, tokens.type, tokens.encoded);
  const MutableRowsView registered = lane_->registered_input();
  if (tokens.rows.base == registered.base && in.tokens > 0 &&
      (tokens.rows.stride != registered.stride ||
       (!tokens.encoded &&
        (tokens.type == DType::f16 || wire_type(tokens.type) != o.dispatch_wire))))
    fail<ConfigError>("rows in the registered input must have its type and its stride of {} bytes",
                      registered.stride);
  const bool on_host = tokens.place.kind == MemoryKind::host;
  if (!on_host && (in.routing != nullptr || in.chunks > 1 || in.timeout_s >= 0))
    fail<ConfigError>(
        "an exchange in device memory has no kept routing, chunks or timeout of its own");
  if (on_host && in.num_tokens != nullptr)
    fail<ConfigError>("num_tokens is for device memory; in host memory say in `tokens` how many");
  if (in.routing != nullptr) {
    if (in.routing->tokens != in.tokens)
      fail<ConfigError>("{} tokens with the kept routing of {}", in.tokens, in.routing->tokens);
    tokens.cached = in.routing->cached.get();
    return tokens;
  }
  const std::int64_t entries = std::int64_t{in.tokens} * o.topk;
  tokens.slots = array(in.slots, entries, "slots");
  if (on_host) check_slots(tokens.slots);  // on a device the kernels look
  if (o.exchange.reduce_at == ExchangeOptions::ReduceAt::rank_then_home)
    tokens.weights = array(in.weights, entries, "weights, which ranks sum by,");
  if (o.row_weights) tokens.row_weights = array(in.row_weights, entries, "row_weights");
  return tokens;
}

CombineTarget AllToAll::target_of(const ferry_combine_output& out) const {
  const DType type = dtype(out.type, "type");
  const std::int64_t entries = std::int64_t{tokens()} * options().topk;
  return {.place = place_of(out.place, "ferry_combine_output"),
          .weights = array(out.weights, entries, "weights"),
          .rows = rows(out.rows, out.stride, tokens(), row_bytes(options(), ranks(), type), "rows"),
          .type = type,
          .accumulate = out.accumulate != 0};
}

/// Host memory without a queue, or a device's with one.
MemoryPlace place_of_options(const ferry_place& given) {
  const MemoryPlace there = any_place(given);
  return there.kind == MemoryKind::host ? place(given, "ferry_all_to_all_options") : there;
}

/// Runs what changes nothing for the others.
template <class Body>
ferry_status look(ferry_all_to_all* handle, Body&& body) {
  return guarded([&] {
    AllToAll& a2a = of(handle);
    a2a.comm().call([&] { body(a2a); });
  });
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_all_to_all_mem_size(ferry_comm* comm,
                                       const ferry_all_to_all_options* options,
                                       uint64_t* bytes) {
  return guarded([&] {
    const ferry::Transport& t = comm_of(comm).transport();
    need(bytes, "bytes");
    const auto o = exchange_options(*need(options, "options"), t.size(), t.capabilities());
    check_sizes(o);
    *bytes = exchange_lane_bytes(place_of_options(options->place), o, t);
  });
}

ferry_status ferry_all_to_all_create(ferry_comm* comm,
                                     const ferry_all_to_all_options* options,
                                     ferry_all_to_all** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    Comm& c = comm_of(comm);
    const ferry::Transport& t = c.transport();
    const auto o = exchange_options(*need(options, "options"), t.size(), t.capabilities());
    check_sizes(o);
    const ferry::MemoryPlace there = place_of_options(options->place);
    c.call([&] {
      *out = reinterpret_cast<ferry_all_to_all*>(std::make_unique<AllToAll>(c, there, o).release());
    });
  });
}

ferry_status ferry_all_to_all_destroy(ferry_all_to_all* a2a) {
  return guarded([&] {
    if (a2a == nullptr) return;
    AllToAll& leaving = of(a2a);
    leaving.comm().call_anyway([&] { delete &leaving; });
  });
}

ferry_status ferry_all_to_all_dispatch_send(ferry_all_to_all* a2a,
                                            const ferry_dispatch_input* input) {
  return guarded([&] {
    AllToAll& x = of(a2a);
    const ferry_dispatch_input in = read_struct(input);
    ferry::RoutedTokens tokens;
    x.run(
        "dispatch_send",
        Phase::idle,
        Phase::dispatch_sent,
        [&] { tokens = x.tokens_of(in); },
        [&](ExchangeLane& lane) {
          x.sent(in);
          lane.dispatch_send(tokens, in.num_tokens);
        });
  });
}

ferry_status ferry_all_to_all_dispatch_recv(ferry_all_to_all* a2a, ferry_expert_rows* rows) {
  return guarded([&] {
    of(a2a).run(
        "dispatch_recv",
        Phase::dispatch_sent,
        Phase::dispatched,
        [&] { check_head(rows); },
        [&](ExchangeLane& lane) { fill_struct(rows, expert_rows(lane.dispatch_recv())); });
  });
}

ferry_status ferry_all_to_all_dispatch_recv_with(ferry_all_to_all* a2a,
                                                 ferry_experts_fn experts,
                                                 void* context) {
  return guarded([&] {
    of(a2a).run(
        "dispatch_recv_with",
        Phase::dispatch_sent,
        Phase::dispatched,
        [&] {
          need(experts, "experts");
          of(a2a).dispatcher("dispatch_recv_with");
        },
        [&](ExchangeLane& lane) {
          lane.dispatcher()->dispatch_recv(
              [&](const ferry::ExpertRows& rows) { call_experts(experts, context, rows); });
        });
  });
}

ferry_status ferry_all_to_all_combine_send(ferry_all_to_all* a2a) {
  return guarded([&] {
    of(a2a).run(
        "combine_send",
        Phase::dispatched,
        Phase::combine_sent,
        [] {},
        [](ExchangeLane& lane) { lane.combine_send(); });
  });
}

ferry_status ferry_all_to_all_combine_recv(ferry_all_to_all* a2a,
                                           const ferry_combine_output* output) {
  return guarded([&] {
    AllToAll& x = of(a2a);
    const ferry_combine_output out = read_struct(output);
    ferry::CombineTarget target;
    x.run(
        "combine_recv",
        Phase::combine_sent,
        Phase::idle,
        [&] { target = x.target_of(out); },
        [&](ExchangeLane& lane) { lane.combine_recv(target); });
  });
}

ferry_status ferry_all_to_all_synchronise(ferry_all_to_all* a2a) {
  return guarded([&] {
    AllToAll& x = of(a2a);
    x.comm().exchange([&] { x.check_not_captured("synchronise"); },
                      [&] { x.lane().synchronise(); });
  });
}

ferry_status ferry_all_to_all_poll(ferry_all_to_all* a2a, int32_t* ready) {
  return guarded([&] {
    need(ready, "ready");
    of(a2a).run_between(
        "poll", Phase::dispatch_sent, Phase::combine_sent, [&](ferry::Dispatcher& d) {
          *ready = d.poll() ? 1 : 0;
        });
  });
}

ferry_status ferry_all_to_all_keep_routing(ferry_all_to_all* a2a, ferry_routing** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    AllToAll& x = of(a2a);
    x.run_between("keep_routing", Phase::dispatched, Phase::dispatched, [&](ferry::Dispatcher& d) {
      *out = std::make_unique<ferry_routing>(ferry_routing{d.keep_routing(), x.tokens()}).release();
    });
  });
}

ferry_status ferry_routing_destroy(ferry_routing* routing) {
  return guarded([&] { delete routing; });
}

ferry_status ferry_all_to_all_registered_input(ferry_all_to_all* a2a,
                                               void** rows,
                                               int64_t* stride) {
  return look(a2a, [&](AllToAll& x) {
    const ferry::MutableRowsView view = x.lane().registered_input();
    *need(rows, "rows") = view.base;
    *need(stride, "stride") = view.stride;
  });
}

ferry_status ferry_all_to_all_lost_tokens(ferry_all_to_all* a2a,
                                          const int32_t** tokens,
                                          int32_t* count) {
  return look(a2a, [&](AllToAll& x) {
    const auto lost = x.lane().lost_tokens();
    *need(tokens, "tokens") = lost.data();
    *need(count, "count") = static_cast<int32_t>(lost.size());
  });
}

ferry_status ferry_all_to_all_chunks_of_all(ferry_all_to_all* a2a, int32_t* chunks) {
  return look(a2a, [&](AllToAll& x) {
    *need(chunks, "chunks") = x.dispatcher("chunks_of_all").chunks_of_all();
  });
}

ferry_status ferry_all_to_all_stats(ferry_all_to_all* a2a, ferry_exchange_stats* stats) {
  return look(a2a, [&](AllToAll& x) {
    check_head(stats);
    fill_struct(stats, exchange_stats(x.dispatcher("stats").stats()));
  });
}

ferry_status ferry_all_to_all_source_stats(ferry_all_to_all* a2a,
                                           int32_t ranks,
                                           uint64_t* dispatch_wait_ns,
                                           uint64_t* combine_wait_ns,
                                           uint64_t* rows_received) {
  return look(a2a, [&](AllToAll& x) {
    const std::span<const ferry::SourceStats> sources = x.dispatcher("source_stats").source_stats();
    if (static_cast<std::size_t>(ranks) != sources.size())
      ferry::fail<ferry::ConfigError>(
          "arrays of {} ranks, but the group has {}", ranks, sources.size());
    for (std::size_t source = 0; source < sources.size(); ++source) {
      if (dispatch_wait_ns) dispatch_wait_ns[source] = sources[source].dispatch_wait_ns;
      if (combine_wait_ns) combine_wait_ns[source] = sources[source].combine_wait_ns;
      if (rows_received) rows_received[source] = sources[source].rows_received;
    }
  });
}
