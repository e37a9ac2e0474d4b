// Running a test body as the ranks of a group, whatever they are made of.
#pragma once

#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/launch.h"
#include "support/faulty_transport.h"

namespace ferry {

/// What ranks are made of. Tests over all of them: TEST_P with ValuesIn(all_rank_kinds()).
struct RankKind {
  std::string transport = "inproc";
  bool faulty = false;        ///< wrapped into a FaultyTransport that behaves like a bad network
  std::string provider = {};  ///< of libfabric, where the transport is fabric
  int ranks_per_host = 1;     ///< of fabric and mpi: more than 1 are two levels
  /// Ranks of fabric are started one by one, as by torchrun, in two or three network namespaces
  /// with a cable of 10 Gbit/s each, and find out themselves who shares a host.
  bool namespaces = false;
  /// The ranks join() over a TcpStore that rank 0 serves, each beside a thread of its process that
  /// has nothing to do with it; threads, for inproc, and processes that know nothing of each other.
  bool joined = false;

  /// As GoogleTest wants parameter names: "inproc", "shm_faulty", "fabric_tcp", "fabric_tcp_hosts".
  std::string label() const {
    return transport + (provider.empty() ? "" : "_" + provider) +
           (ranks_per_host > 1 ? "_hosts" : "") + (namespaces ? "_namespaces" : "") +
           (joined ? "_joined" : "") + (faulty ? "_faulty" : "");
  }

  bool between_hosts() const { return transport == "fabric" || transport == "mpi"; }

  /// How run_ranks() starts such ranks.
  LaunchOptions launch(int ranks) const {
    return {.transport = transport,
            .ranks = ranks,
            .ranks_per_host = between_hosts() ? ranks_per_host : 0,
            .fabric_provider = provider};
  }

  /// Whether ranks are processes: what one writes into the test's variables the others do not see.
  bool processes() const { return transport != "inproc"; }

  /// Whether run_ranks() starts them; those of mpi are started by mpirun, each running all tests.
  bool started_here() const { return transport != "mpi"; }

  /// Whether one of them can be killed without the test.
  bool killable() const { return processes() && started_here(); }
};

inline void PrintTo(const RankKind& kind, std::ostream* out) { *out << kind.label(); }

/// The names of all transports of this build. Nothing is loaded for it, since every test of a
/// binary begins with the list of all: libfabric alone costs 0.2 s (two of the libraries that it
/// pulls in measure the clock when they are loaded). One that this machine cannot use fails with
/// the reason.
std::vector<std::string_view> built_transports();

/// Every transport of this build, bare and faulty.
std::vector<RankKind> all_rank_kinds();
/// The same without the faulty ones.
std::vector<RankKind> bare_rank_kinds();
/// For what builds on transports and does not care how they work inside: each transport once, those
/// between hosts also with two ranks on each and over real cables, and those that take no time to
/// start also faulty.
std::vector<RankKind> main_rank_kinds();

/// Every transport of this build, with ranks that join in running processes.
std::vector<RankKind> joined_rank_kinds();
/// all_rank_kinds() and joined_rank_kinds().
std::vector<RankKind> all_and_joined_rank_kinds();

struct RanksOptions {
  RankKind kind;
  int ranks = 1;
  std::optional<Faults> faults;  ///< instead of those of kind.faulty
  Rank faulty_rank = -1;         ///< the only rank with faults; -1: all of them
  Rank killed_rank = -1;         ///< this rank must end by a signal (processes only)
  std::chrono::nanoseconds start_timeout = std::chrono::seconds(30);
};

/// Runs `body` on every rank. It may use EXPECT_* and ASSERT_*. The calling test fails, with rank
/// and message, when an expectation failed on a rank, when a body threw, or when a rank was killed
/// that should not be. A rank that fails aborts the group, so the others do not wait for it.
void on_ranks(const RanksOptions& options, const std::function<void(Transport&)>& body);

/// Before `failing` fails: waits there until the others have left what all did together (as
/// allocate_region), where its end would be another error than the one under test. `signal` of
/// `region` is for this alone.
void others_are_ready(Transport& transport, Region& region, Rank failing, int signal);

}  // namespace ferry
