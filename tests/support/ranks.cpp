#include "support/ranks.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/join.h"
#include "ferry/tcp_store.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/shared_store.h"
#include "support/network_hosts.h"

namespace ferry {

namespace {

/// How a rank ended; in memory shared with the ranks' processes.
struct Report {
  enum class End : int { none, done, failed, failed_by_abort };

  std::atomic<End> end{End::none};
  char text[4000] = {};

  void finish(End how, const std::string& message) {
    std::strncpy(text, message.c_str(), sizeof text - 1);
    end.store(how);
  }
};

/// Reports of all ranks.
class Reports {
 public:
  explicit Reports(int ranks) : bytes_(static_cast<std::size_t>(ranks) * sizeof(Report)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    reports_ = static_cast<Report*>(p);
    for (int r = 0; r < ranks; ++r) new (reports_ + r) Report;
  }

  ~Reports() { munmap(reports_, bytes_); }

  Reports(const Reports&) = delete;
  Reports& operator=(const Reports&) = delete;

  Report& of(Rank rank) const { return reports_[rank]; }

 private:
  std::size_t bytes_;
  Report* reports_;
};

const testing::TestResult& current_result() {
  return *testing::UnitTest::GetInstance()->current_test_info()->result();
}

/// What failed in this process since the result had `first` parts.
std::string failed_expectations(int first) {
  std::string text;
  for (int i = first; i < current_result().total_part_count(); ++i) {
    const testing::TestPartResult& part = current_result().GetTestPartResult(i);
    if (!part.failed()) continue;
    text += fmt::format("{}:{}: {}\n",
                        part.file_name() ? part.file_name() : "?",
                        part.line_number(),
                        part.message());
  }
  return text;
}

void run_body(const RanksOptions& options,
              Transport& transport,
              const std::function<void(Transport&)>& body) {
  const bool has_faults = options.faulty_rank < 0 || options.faulty_rank == transport.rank();
  if (options.faults && has_faults) {
    FaultyTransport faulty(transport, *options.faults);
    body(faulty);
  } else if (options.kind.faulty && !options.faults) {
    FaultyTransport faulty(
        transport,
        {.max_delay = std::chrono::microseconds(100),
         .reorder = true,
         .network = options.kind.ranks_per_host == 1 && !options.kind.namespaces});
    body(faulty);
  } else {
    body(transport);
  }
}

/// Exit status of the rank.
int report_body(const RanksOptions& options,
                Transport& transport,
                const std::function<void(Transport&)>& body,
                Report& report) {
  const bool own_process = options.kind.processes() && options.kind.started_here();
  if (own_process) {
    // The launcher prints what comes back in the report.
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
  }
  const int first_part = current_result().total_part_count();
  try {
    run_body(options, transport, body);
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const TransportError*>(&e);
    const bool other = error && error->kind() == TransportError::Kind::aborted;
    const std::string failed = own_process ? failed_expectations(first_part) : "";
    report.finish(other && failed.empty() ? Report::End::failed_by_abort : Report::End::failed,
                  failed + "threw: " + e.what());
    transport.abort(e.what());
    return 1;
  }
  if (!testing::Test::HasFailure()) {
    report.finish(Report::End::done, "");
    return 0;
  }
  // Threads share the test's result, which therefore has the message already.
  report.finish(own_process ? Report::End::failed : Report::End::done,
                failed_expectations(first_part));
  transport.abort("an expectation of the test failed on this rank");
  return 1;
}

/// `ranks`: those whose reports are in this process's memory.
void judge(const RanksOptions& options, const Reports& reports, const std::vector<Rank>& ranks) {
  bool cause_known = testing::Test::HasFailure();
  for (const Rank r : ranks) {
    const Report& report = reports.of(r);
    const Report::End end = report.end.load();
    if (end == Report::End::failed) ADD_FAILURE() << "rank " << r << ": " << report.text;
    if ((end == Report::End::none) != (r == options.killed_rank)) {
      ADD_FAILURE() << "rank " << r << (end == Report::End::none ? " did not finish" : " lived on");
    }
    cause_known = cause_known || testing::Test::HasFailure();
  }
  for (const Rank r : ranks) {
    if (cause_known) break;
    if (reports.of(r).end.load() != Report::End::failed_by_abort) continue;
    ADD_FAILURE() << "rank " << r << ": " << reports.of(r).text;
  }
}

std::vector<RankKind> rank_kinds(bool with_faulty) {
  std::vector<RankKind> kinds;
  const bool by_mpirun = find_world().has_value();  // each of its processes runs all tests
  for (const std::string_view transport : built_transports()) {
    if (by_mpirun != (transport == "mpi")) continue;  // whose ranks only mpirun starts
    // One that sends everything through sockets, and one with orders and completions of its own.
    const std::vector<std::string> providers = transport == "fabric"
                                                   ? std::vector<std::string>{"tcp", "shm"}
                                                   : std::vector<std::string>{""};
    if (transport == "fabric" && NetworkHosts::why_not().empty()) {
      for (const bool faulty : {false, true}) {
        if (with_faulty || !faulty)
          kinds.push_back(
              {.transport = "fabric", .faulty = faulty, .provider = "tcp", .namespaces = true});
      }
    }
    for (const std::string& provider : providers) {
      RankKind kind{.transport = std::string(transport), .provider = provider};
      for (const int ranks_per_host : {1, 2}) {
        kind.ranks_per_host = ranks_per_host;
        if (ranks_per_host > 1 && (!kind.between_hosts() || provider == "shm")) continue;
        for (const bool faulty : {false, true}) {
          kind.faulty = faulty;
          if (with_faulty || !faulty) kinds.push_back(kind);
        }
      }
    }
  }
  return kinds;
}

}  // namespace

std::vector<std::string_view> built_transports() {
  std::vector<std::string_view> built;
  for (const TransportEntry& entry : known_transports())
    if (entry.joiner != nullptr) built.push_back(entry.name);
  return built;
}

std::vector<RankKind> all_rank_kinds() { return rank_kinds(true); }

std::vector<RankKind> bare_rank_kinds() { return rank_kinds(false); }

std::vector<RankKind> joined_rank_kinds() {
  std::vector<RankKind> kinds = rank_kinds(false);
  std::erase_if(kinds, [](const RankKind& kind) {
    return kind.namespaces || kind.ranks_per_host > 1 || kind.provider == "shm";
  });
  for (RankKind& kind : kinds) kind.joined = true;
  return kinds;
}

std::vector<RankKind> all_and_joined_rank_kinds() {
  std::vector<RankKind> kinds = rank_kinds(true);
  for (const RankKind& kind : joined_rank_kinds()) kinds.push_back(kind);
  return kinds;
}

std::vector<RankKind> main_rank_kinds() {
  std::vector<RankKind> kinds = rank_kinds(true);
  std::erase_if(kinds, [](const RankKind& kind) {
    return kind.transport == "fabric" &&
           (kind.provider != "tcp" || (kind.faulty && kind.ranks_per_host == 1));
  });
  return kinds;
}

namespace {

/// Made by the first test that needs them, for all tests of this process.
const NetworkHosts& test_hosts() {
  static const NetworkHosts hosts(3);
  return hosts;
}

/// Two ranks a host, three where there are more than six.
int run_ranks_in_namespaces(const LaunchOptions& launch,
                            const std::function<int(Transport&)>& body) {
  static int port = 20000;
  ++port;
  const NetworkHosts& hosts = test_hosts();
  const int per_host = std::max(2, (launch.ranks + hosts.count() - 1) / hosts.count());
  return run_processes({.ranks = launch.ranks, .child = [&](Rank rank) {
                          hosts.enter(rank / per_host);
                          LaunchOptions own = launch;
                          own.ranks_per_host = 0;
                          own.world = World{.size = launch.ranks,
                                            .rank = rank,
                                            .master_host = hosts.address(0),
                                            .master_port = port,
                                            .secret = "test"};
                          return run_ranks(own, body);
                        }});
}

/// A thread that a process has for reasons of its own.
class Bystander {
 public:
  Bystander()
      : thread_([](const std::stop_token& stop) {
          while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }) {}

 private:
  std::jthread thread_;
};

JoinOptions join_options_of(const LaunchOptions& launch, Rank rank) {
  return {.transport = launch.transport,
          .rank = rank,
          .size = launch.ranks,
          .start_timeout = launch.start_timeout,
          .ranks_per_host = launch.ranks_per_host,
          .host = launch.transport == "fabric" ? "127.0.0.1" : "",
          .fabric_provider = launch.fabric_provider};
}

void run_joined(const JoinOptions& options,
                Store& store,
                const std::function<int(Transport&)>& body) {
  const auto transport = join(options, store);
  body(*transport);
}

void join_threads(const LaunchOptions& launch, const std::function<int(Transport&)>& body) {
  TcpStore store({.serve = true});
  const Bystander bystander;
  std::vector<std::jthread> threads;
  for (Rank r = 0; r < launch.ranks; ++r)
    threads.emplace_back([&, r] {
      try {
        run_joined(join_options_of(launch, r), store, body);
      } catch (const Error& e) {
        ADD_FAILURE() << "rank " << r << ": " << e.what();
      }
    });
}

void join_processes(const LaunchOptions& launch, const std::function<int(Transport&)>& body) {
  SharedStore port;  // all that they are told
  run_processes({.ranks = launch.ranks, .child = [&](Rank rank) {
                   const Bystander bystander;
                   TcpStoreOptions options{.serve = rank == 0, .server = 0};
                   if (rank != 0) options.port = static_cast<int>(port.add("port", 0));
                   while (rank != 0 && options.port == 0) {
                     std::this_thread::sleep_for(std::chrono::milliseconds(1));
                     options.port = static_cast<int>(port.add("port", 0));
                   }
                   TcpStore store(options);
                   if (rank == 0) port.add("port", store.port());
                   run_joined(join_options_of(launch, rank), store, body);
                   return 0;
                 }});
}

/// Every process of mpirun comes by here for every test, in the same order.
void join_by_mpirun(const LaunchOptions& launch, const std::function<int(Transport&)>& body) {
  static int groups = 0;
  const World world = find_world().value();
  // Lives to the end of rank 0's process, since the others may be a little behind.
  static TcpStore& store = *new TcpStore(store_options(world));
  JoinOptions options = join_options_of(launch, world.rank);
  options.group = "test " + std::to_string(++groups);
  options.join_timeout = std::chrono::minutes(2);
  if (world.rank < launch.ranks) run_joined(options, store, body);
  // Whoever has no part in it does not run ahead.
  const std::string done = options.group + " is done";
  if (world.rank == 0) store.set_text(done, "");
  static_cast<void>(store.wait(done, deadline_in(std::chrono::minutes(5))));
}

void run_joining(const RankKind& kind,
                 const LaunchOptions& launch,
                 const std::function<int(Transport&)>& body) {
  if (!kind.started_here()) return join_by_mpirun(launch, body);
  kind.processes() ? join_processes(launch, body) : join_threads(launch, body);
}

}  // namespace

void on_ranks(const RanksOptions& options, const std::function<void(Transport&)>& body) {
  std::vector<Rank> here(static_cast<std::size_t>(options.ranks));
  std::iota(here.begin(), here.end(), 0);
  if (!options.kind.started_here()) {
    const auto world = find_world();
    if (options.ranks > world->size)
      GTEST_SKIP() << options.ranks << " ranks, but mpirun started " << world->size;
    here.clear();
    if (world->rank < options.ranks) here.push_back(world->rank);
  }
  const Reports reports(options.ranks);
  LaunchOptions launch = options.kind.launch(options.ranks);
  launch.start_timeout = options.start_timeout;
  const auto reporting = [&](Transport& transport) {
    return report_body(options, transport, body, reports.of(transport.rank()));
  };
  if (options.kind.joined) {
    run_joining(options.kind, launch, reporting);
  } else {
    options.kind.namespaces ? run_ranks_in_namespaces(launch, reporting)
                            : run_ranks(launch, reporting);
  }
  judge(options, reports, here);
}

void others_are_ready(Transport& transport, Region& region, Rank failing, int signal) {
  if (transport.rank() == failing) {
    const auto others = static_cast<std::uint64_t>(transport.size() - 1);
    const Deadline deadline = deadline_in(std::chrono::seconds(9));
    EXPECT_EQ(transport.wait(region, signal, others, deadline), WaitResult::reached);
  } else {
    transport.put({.region = &region, .peer = failing, .signal = signal});
  }
}

}  // namespace ferry
