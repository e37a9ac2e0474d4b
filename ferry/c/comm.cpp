// Comms: made through a store, split, aborted, masked, destroyed.
#include "ferry/c/comm.h"

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "ferry/c/caller_store.h"
#include "ferry/c/comm_state.h"
#include "ferry/join.h"
#include "ferry/tcp_store.h"
#include "ferry/world.h"

namespace ferry::c {

FERRY_C_STRUCT(ferry_comm_options, FERRY_COMM_OPTIONS);
FERRY_C_STRUCT(ferry_comm_info, FERRY_COMM_INFO);

namespace {

constexpr int kMostThreads = 4096;

/// The options without rank, size and node.
JoinOptions join_options(const ferry_comm_options& o) {
  place(o.place, "ferry_comm_options");
  if (o.threads < 1 || o.threads > kMostThreads)
    fail<ConfigError>("{} threads of a rank; 1 to {} are possible", o.threads, kMostThreads);
  if (o.rails < 0) fail<ConfigError>("{} rails; at least 0 is possible", o.rails);
  JoinOptions join{.transport = text_or(o.transport, "shm"),
                   .group = text_or(o.group, "world"),
                   .epoch = o.epoch,
                   .join_timeout = duration(o.join_timeout_s, "join_timeout_s"),
                   .start_timeout = duration(o.start_timeout_s, "start_timeout_s"),
                   .node = text_or(o.node, ""),
                   .ranks_per_host = o.ranks_per_host,
                   .host = text_or(o.host, ""),
                   .fabric_provider = text_or(o.provider, ""),
                   .fabric_rails = o.rails,
                   .fabric_progress_thread = o.progress_thread != 0};
  for (const ferry_pair& pair : array(o.agreement, o.num_agreement, "agreement"))
    join.agreement.emplace_back(need(pair.name, "a name of the agreement"),
                                need(pair.value, "a value of the agreement"));
  return join;
}

/// A rank that no launcher knows.
JoinOptions own_join_options(const ferry_comm_options& o) {
  JoinOptions join = join_options(o);
  join.rank = o.rank;
  join.size = o.num_ranks;
  return join;
}

ferry_comm* make_comm(const JoinOptions& options, int threads, Store& store) {
  auto comm = std::make_unique<Comm>(join(options, store), threads);
  return reinterpret_cast<ferry_comm*>(comm.release());
}

void check_launchers(const char* what, int given, int none, int launchers) {
  if (given == none || given == launchers) return;
  fail<ConfigError>("{} is {} in the options and {} in the launcher's variables; leave it at {}",
                    what,
                    given,
                    launchers,
                    none);
}

ferry_comm* create_from_launcher(const ferry_comm_options& o) {
  JoinOptions join = join_options(o);
  const std::optional<World> world = find_world();
  if (!world) {
    fail<ConfigError>(
        "no launcher's variables: set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start this "
        "with torchrun, mpirun or srun");
  }
  const JoinOptions launched = join_options(*world, join.transport);
  check_launchers("rank", o.rank, -1, launched.rank);
  check_launchers("num_ranks", o.num_ranks, 0, launched.size);
  join.rank = launched.rank;
  join.size = launched.size;
  if (join.node.empty()) join.node = launched.node;
  if (join.host.empty()) join.host = launched.host;
  TcpStoreOptions at = store_options(*world);
  at.timeout = join.join_timeout;
  TcpStore store(at);
  return make_comm(join, o.threads, store);
}

ferry_comm* create_from_address(const ferry_comm_options& o,
                                const char* host,
                                int port,
                                const char* secret) {
  const JoinOptions join = own_join_options(o);
  constexpr int kMostPort = std::numeric_limits<std::uint16_t>::max();
  if (port < 1 || port > kMostPort)
    fail<ConfigError>("port {}; 1 to {} are possible", port, kMostPort);
  if (join.rank < 0) fail<ConfigError>("rank is {}; give the rank and num_ranks", join.rank);
  TcpStore store({.host = need(host, "host"),
                  .port = port,
                  .serve = join.rank == 0,
                  .secret = text_or(secret, ""),
                  .timeout = join.join_timeout,
                  .server = 0});
  return make_comm(join, o.threads, store);
}

/// Runs a creation; *out is NULL unless it succeeds.
template <class Create>
ferry_status create(const ferry_comm_options* options, ferry_comm** out, Create&& make) {
  return guarded([&] {
    *need(out, "comm") = nullptr;
    *out = make(read_struct(options));
  });
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace): what follows is in no namespace

ferry_status ferry_comm_create_from_launcher(const ferry_comm_options* options, ferry_comm** comm) {
  return create(options, comm, create_from_launcher);
}

ferry_status ferry_comm_create_from_address(const ferry_comm_options* options,
                                            const char* host,
                                            int32_t port,
                                            const char* secret,
                                            ferry_comm** comm) {
  return create(options, comm, [&](const ferry_comm_options& o) {
    return create_from_address(o, host, port, secret);
  });
}

ferry_status ferry_comm_create_from_store(const ferry_comm_options* options,
                                          const ferry_store* store,
                                          ferry_comm** comm) {
  return create(options, comm, [&](const ferry_comm_options& o) {
    ferry::CallbackStore callers = caller_store(store);
    return make_comm(own_join_options(o), o.threads, callers);
  });
}

ferry_status ferry_comm_split(ferry_comm* comm, int32_t color, int32_t key, ferry_comm** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    Comm& parent = comm_of(comm);
    parent.call([&] {
      auto transport = parent.transport().split(color, key);
      if (!transport) return;
      auto part = std::make_unique<Comm>(std::move(transport), parent.pool().size());
      *out = reinterpret_cast<ferry_comm*>(part.release());
    });
  });
}

ferry_status ferry_comm_destroy(ferry_comm* comm) {
  return guarded([&] {
    if (comm == nullptr) return;
    Comm& leaving = comm_of(comm);
    leaving.call_anyway([&] {
      if (leaving.has_children()) {
        ferry::fail<OutOfOrder>(
            "rank {}: something that was made on this comm is still there; destroy that first",
            leaving.transport().rank());
      }
    });
    delete &leaving;
  });
}

ferry_status ferry_comm_abort(ferry_comm* comm, const char* reason) {
  return guarded([&] { comm_of(comm).abort(text_or(reason, "no reason given")); });
}

ferry_status ferry_comm_async_error(ferry_comm* comm, ferry_status* failure) {
  return guarded([&] {
    const auto failed = comm_of(comm).failure();
    *need(failure, "failure") = failed ? report(*failed) : FERRY_OK;
  });
}

ferry_status ferry_comm_progress(ferry_comm* comm) {
  return guarded([&] {
    Comm& c = comm_of(comm);
    c.call([&] { c.transport().progress(); });
  });
}

ferry_status ferry_comm_barrier(ferry_comm* comm, double timeout_s) {
  return guarded([&] {
    Comm& c = comm_of(comm);
    const auto timeout = duration(timeout_s, "timeout_s");
    c.call([&] {
      if (c.transport().barrier(ferry::deadline_in(timeout)) == ferry::WaitResult::reached) return;
      throw ferry::TransportError(
          ferry::TransportError::Kind::timeout,
          -1,
          fmt::format("barrier: the other ranks did not come within {} s", timeout_s));
    });
  });
}

ferry_status ferry_comm_mask(ferry_comm* comm, int32_t rank) {
  return guarded([&] {
    Comm& c = comm_of(comm);
    c.call_anyway([&] { c.mask(rank); });
  });
}

ferry_status ferry_comm_masked(ferry_comm* comm, uint8_t* masked, int32_t num_ranks) {
  return guarded([&] {
    Comm& c = comm_of(comm);
    const auto out = array(masked, num_ranks, "masked");
    if (num_ranks != c.transport().size())
      ferry::fail<ferry::ConfigError>(
          "masked has room for {} ranks; there are {}", num_ranks, c.transport().size());
    c.call_anyway([&] {
      for (int r = 0; r < num_ranks; ++r) out[static_cast<std::size_t>(r)] = c.is_masked(r) ? 1 : 0;
    });
  });
}

ferry_status ferry_comm_info_get(ferry_comm* comm, ferry_comm_info* info) {
  return guarded([&] {
    Comm& c = comm_of(comm);
    check_head(info);
    const ferry::Transport& t = c.transport();
    const ferry::Capabilities can = t.capabilities();
    ferry_comm_info filled = FERRY_COMM_INFO_INIT;
    filled.rank = t.rank();
    filled.num_ranks = t.size();
    filled.host = t.host_of(t.rank());
    filled.reads_peers = can.load_store ? 1 : 0;
    filled.masks = can.survives_peer_death ? 1 : 0;
    filled.one_process = can.one_process ? 1 : 0;
    filled.pins_memory = can.pins_memory ? 1 : 0;
    filled.threads = c.pool().size();
    filled.transport = t.name().data();
    fill_struct(info, filled);
  });
}
