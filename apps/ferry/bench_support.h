// What the benchmarks share: clocks, percentiles, routings, and memory that ranks report through.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/shared_array.h"
#include "ferry/core/types.h"
#include "ferry/launch.h"

namespace ferry {

class Command;

/// Over what a benchmark runs: its own ranks, or under mpirun, srun or torchrun those that were
/// started.
struct BenchRanks {
  std::vector<std::string> default_transports;
  std::vector<int> default_ranks;
  std::vector<std::string> transports = {};
  std::vector<int> ranks = {};
  std::string provider = {};
  int rails = 0;
  int ranks_per_host = 0;

  /// Registers --transport, --ep, --fabric-provider, --fabric-rails and --ranks-per-host.
  void add_to(Command& app);
  /// Fills in what was not given: the defaults, or what the launcher says. Throws ConfigError for
  /// what cannot be started.
  void resolve();

  LaunchOptions launch(const std::string& transport, int ranks) const;
};

/// Whether this process prints: it started the ranks, or is the first.
bool speaks_for_all();

/// Brings every rank's slice of `slices` (equal ones, in order of rank) to rank 0. All ranks call
/// it. For memory that forked ranks have in common it changes nothing; under a launcher each has
/// its own.
void gather_at_first(Transport& transport, std::span<std::byte> slices);

/// Gives rank 0's bytes to all.
void spread_from_first(Transport& transport, std::span<std::byte> bytes);

struct Summary {
  double mean = 0, stddev = 0, p50 = 0, p95 = 0, p99 = 0, min = 0;
};

/// REQUIRES: at least one value.
Summary summarize(std::vector<double> values);

/// How tokens choose their experts: all alike; expert e as 1 / (e + 1); all tokens expert 0 among
/// others.
enum class BenchRouting : std::uint8_t { uniform, zipf, one_hot };

std::string_view routing_name(BenchRouting routing);

/// Throws ConfigError that names the known ones.
BenchRouting parse_routing(std::string name);

/// Fills [tokens, topk] with distinct experts for each token; the same seed gives the same.
void draw_routing(
    BenchRouting routing, int experts, int topk, std::uint64_t seed, std::span<ExpertId> chosen);

/// Whether ranks on that transport read each other's memory.
bool reads_peers(std::string_view transport);

class Stopwatch {
 public:
  double microseconds() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace ferry
