#include "comm.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/inproc.h"
#include "ferry/join.h"
#include "ferry/world.h"
#include "interrupt.h"
#include "settings.h"
#include "stores.h"

namespace ferry::python {

CommState::CommState(std::unique_ptr<Transport> transport, int threads)
    : transport_(interruptible(std::move(transport))) {
  if (threads < 1) fail<ConfigError>("threads is {}; a rank computes with at least one", threads);
  pool_ = std::make_unique<ThreadPool>(threads);
}

CommState::~CommState() {
  std::optional<nb::gil_scoped_release> released;
  if (PyGILState_Check() != 0) released.emplace();
  pool_.reset();
  transport_.reset();
}

CommState::Call::Call(CommState& comm, std::string_view what) : comm_(comm) {
  if (comm.busy_.exchange(true)) {
    fail<BrokenContract>(
        "{} was called while another call on this comm is running; a rank makes "
        "one at a time",
        what);
  }
  released_.emplace();
}

CommState::Call::~Call() { comm_.busy_.store(false); }

/// Within the handler of what was thrown.
void CommState::tell_others(std::string_view what, bool sent) {
  try {
    throw;
  } catch (const TransportError& error) {
    // They see by themselves who has died or given up, and shall name that rank.
    const bool theirs = error.kind() == TransportError::Kind::peer_died ||
                        error.kind() == TransportError::Kind::aborted;
    if (!theirs) transport_->abort(error.what());
  } catch (const ConfigError& error) {
    if (sent) transport_->abort(error.what());
  } catch (const BrokenContract& error) {
    if (sent) transport_->abort(error.what());
  } catch (const nb::python_error& error) {
    const nb::gil_scoped_acquire gil;
    const auto text = nb::cast<std::string>(nb::repr(error.value()));
    transport_->abort(fmt::format("{} ended with {}", what, text));
  } catch (const std::exception& error) {
    transport_->abort(fmt::format("{} ended with {}", what, error.what()));
  }
}

const std::shared_ptr<CommState>& Comm::state() const {
  if (!state_) fail<BrokenContract>("this comm is closed");
  return state_;
}

namespace {

/// Of what does not wait and may be called at any time.
Transport& transport_of(const Comm& comm) { return comm.state()->transport(); }

/// `options` as Comm's __init__ makes them (comm.py).
std::shared_ptr<Comm> make_comm(nb::handle store, const nb::dict& options) {
  Settings settings("Comm", options);
  JoinOptions join_options{
      .transport = settings.get<std::string>("transport", "shm"),
      .rank = settings.get("rank", 0),
      .size = settings.get("size", 1),
      .group = settings.get<std::string>("group", "world"),
      .epoch = settings.get<std::uint64_t>("epoch", 0),
      .join_timeout = settings.seconds("join_timeout").value_or(std::chrono::seconds(30)),
      .start_timeout = settings.seconds("start_timeout").value_or(std::chrono::seconds(30)),
      .node = settings.get<std::string>("node", {}),
      .ranks_per_host = settings.get("ranks_per_host", 0),
      .host = settings.get<std::string>("host", {}),
      .fabric_provider = settings.get<std::string>("fabric_provider", {}),
      .fabric_rails = settings.get("fabric_rails", 0),
      .fabric_progress_thread = settings.get("fabric_progress_thread", false)};
  const int threads = settings.get("threads", 1);
  settings.finish();
  HeldStore held(store);
  std::unique_ptr<Transport> transport;
  {
    const nb::gil_scoped_release released;
    const std::unique_ptr<Store> looking = interruptible(held.store());
    transport = join(join_options, *looking);
  }
  return std::make_shared<Comm>(std::make_shared<CommState>(std::move(transport), threads));
}

std::vector<std::shared_ptr<Comm>> local_comms(int ranks, int threads, double start_timeout) {
  if (ranks < 1) fail<ConfigError>("{} ranks; there is at least one", ranks);
  std::vector<std::shared_ptr<Comm>> comms;
  for (auto& end : make_inproc(ranks, duration(start_timeout, "start_timeout"))) {
    comms.push_back(std::make_shared<Comm>(std::make_shared<CommState>(std::move(end), threads)));
  }
  return comms;
}

void barrier(const Comm& comm, double timeout) {
  const std::shared_ptr<CommState> state = comm.state();
  const Deadline deadline = deadline_in(duration(timeout, "timeout"));
  state->run("barrier", true, [&] {
    if (state->transport().barrier(deadline) == WaitResult::timed_out) {
      throw TransportError(TransportError::Kind::timeout,
                           -1,
                           fmt::format("rank {}: not all ranks came to the barrier within {} s",
                                       state->transport().rank(),
                                       timeout));
    }
  });
}

nb::object split(const Comm& comm, int color, int key) {
  const std::shared_ptr<CommState> state = comm.state();
  auto end = state->run("split", true, [&] { return state->transport().split(color, key); });
  if (!end) return nb::none();
  return nb::cast(
      std::make_shared<Comm>(std::make_shared<CommState>(std::move(end), state->pool().size())));
}

nb::object world() {
  const std::optional<World> found = find_world();
  if (!found) return nb::none();
  if (found->own != 1) {
    fail<ConfigError>("WORLD_LOCAL_SIZE says {} ranks in this process; a Comm is one", found->own);
  }
  nb::dict out;
  out["rank"] = found->rank;
  out["size"] = found->size;
  out["node"] = found->node;
  out["master_host"] = found->master_host;
  out["master_port"] = found->master_port;
  out["secret"] = found->secret;
  return out;
}

nb::dict capabilities(const Comm& comm) {
  const Capabilities can = transport_of(comm).capabilities();
  nb::dict out;
  out["load_store"] = can.load_store;
  out["survives_peer_death"] = can.survives_peer_death;
  out["one_process"] = can.one_process;
  out["pins_memory"] = can.pins_memory;
  return out;
}

}  // namespace

void bind_comm(nb::module_& module) {
  nb::class_<Comm>(module,
                   "Comm",
                   nb::is_weak_referenceable(),
                   nb::dynamic_attr(),
                   "A rank's place among the others; tokenferry.Comm makes it.")
      .def_prop_ro(
          "rank", [](const Comm& c) { return transport_of(c).rank(); }, "This rank, from 0.")
      .def_prop_ro(
          "size", [](const Comm& c) { return transport_of(c).size(); }, "How many ranks.")
      .def_prop_ro(
          "transport",
          [](const Comm& c) { return std::string(transport_of(c).name()); },
          "'inproc', 'shm', 'fabric' or 'mpi'.")
      .def_prop_ro(
          "threads",
          [](const Comm& c) { return c.state()->pool().size(); },
          "Threads that compute for this rank, the calling one included.")
      .def_prop_ro("capabilities", &capabilities, "What the transport can do, as a dict of bools.")
      .def_prop_ro("closed", &Comm::closed, "Whether close() has been called.")
      .def(
          "host_of",
          [](const Comm& c, Rank rank) {
            if (rank < 0 || rank >= transport_of(c).size()) {
              fail<ConfigError>("there is no rank {} among {}", rank, transport_of(c).size());
            }
            return transport_of(c).host_of(rank);
          },
          nb::arg("rank"),
          "Number of the host that a rank runs on, from 0.")
      .def("barrier",
           &barrier,
           nb::arg("timeout") = 30.0,
           "Collective: returns when all ranks have called it. `timeout` in seconds.")
      .def("split",
           &split,
           nb::arg("color"),
           nb::arg("key") = 0,
           nb::sig("def split(self, color: int, key: int = 0) -> Comm | None"),
           "Collective: a new Comm of the ranks that gave the same color, in order of their keys; "
           "None for a negative color.")
      .def(
          "abort",
          [](const Comm& c, std::string_view reason) { transport_of(c).abort(reason); },
          nb::arg("reason"),
          "Any thread: the calls of all ranks end with TransportError and this reason.")
      .def(
          "progress",
          [](const Comm& c) {
            c.state()->run("progress", false, [&] { transport_of(c).progress(); });
          },
          "Moves what is in flight, and raises where a rank has died or given up. Never blocks.")
      .def("close",
           &Comm::close,
           "Leaves the group in good order, once all that was made on this Comm is closed too.")
      .def("__enter__", [](nb::object self) { return self; })
      .def(
          "__exit__",
          [](Comm& c, nb::handle type, nb::handle value, nb::handle) {
            if (!type.is_none() && !c.closed()) {
              transport_of(c).abort(nb::cast<std::string>(nb::repr(value)));
            }
            c.close();
          },
          nb::arg("type").none(),
          nb::arg("value").none(),
          nb::arg("traceback").none());
  module.def("find_world", &world, nb::sig("def find_world() -> dict | None"));
  module.def("join", &make_comm, nb::arg("store"), nb::arg("options"));
  module.def("local_comms",
             &local_comms,
             nb::arg("ranks"),
             nb::arg("threads") = 1,
             nb::arg("start_timeout") = 30.0);
}

}  // namespace ferry::python
