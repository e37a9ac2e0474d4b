// Random exchanges with rows that cannot be confused, and what must come out of them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ferry/dispatcher.h"

namespace ferry::testing {

enum class Routing { random, masked, duplicates, one_expert };

/// What all ranks know of one exchange; a pure function of its fields.
struct ExchangeCase {
  DispatcherOptions options;
  int ranks = 1;
  /// [ranks] of each; empty: all on one. Matters to sums: those of another host's ranks are added
  /// up there.
  std::vector<int> hosts = {};
  Routing routing = Routing::random;
  std::uint64_t seed = 0;
  std::uint64_t rows_seed = 0;  ///< the same routing may carry other rows

  /// The rank whose tokens `rank` holds: its own, or those of its group.
  Rank holder(Rank rank) const;
  /// Tokens that `rank` has: unequal over ranks, sometimes 0, sometimes max_tokens.
  int tokens(Rank rank) const;
  /// [tokens, K]
  std::vector<SlotId> slots(Rank rank) const;
  std::vector<float> weights(Rank rank) const;
  /// [tokens, K], or empty where none travel. A token then names no slot twice.
  std::vector<float> row_weights(Rank rank) const;
  /// [tokens, H]: integers below 128 that differ for every (holder, token).
  std::vector<float> rows(Rank rank) const;

  /// Whether the sums that `peer` has for `rank`'s tokens come as one with those of its host.
  bool sums_per_host(Rank rank, Rank peer) const;

  /// Columns that `rank` sends of each row: [first, first + count). It gets the same back, or those
  /// that results have.
  int first_column(Rank rank) const;
  int columns() const;
  int result_columns() const;

  /// What experts see of `rank`'s rows, [tokens, H]: the wire's rounding and expert_type's.
  std::vector<float> delivered(Rank rank) const;
};

/// The stand-in for experts: out = (slot + 2) * in + 1 elementwise, rounded to the rows' type.
/// Collects the calls of one exchange on one rank and checks that every slot got exactly the rows
/// it must get, each whole, at its place and with its weight.
class FakeExperts {
 public:
  FakeExperts(const ExchangeCase& exchange, Rank rank);

  void operator()(const ExpertRows& rows);
  /// Only computes: for exchanges of which a part may be missing.
  static void compute(const ExchangeCase& exchange, Rank rank, const ExpertRows& rows);
  /// After the last call. Throws where a row is missing.
  void finish() const;

 private:
  struct Expected {
    Rank home;
    int token;
    float weight;  // 0 where none travel
  };

  const ExchangeCase& exchange_;
  const Rank rank_;
  std::vector<std::vector<Expected>> expected_;  // [slot]
  std::vector<std::int64_t> first_rows_;         // [slot], from the first call
  std::vector<std::vector<char>> seen_;          // [slot][row]
  std::map<Rank, std::vector<float>> delivered_;
};

/// What combine must give on `rank`, [tokens, result_columns], as bytes: terms in top-k order, or
/// per rank and then over ranks, from the wire's rounding of what the fake experts return. Terms
/// from ranks in `gone` are left out.
std::vector<float> expected_sums(const ExchangeCase& exchange,
                                 Rank rank,
                                 const std::vector<char>& gone = {});

/// Whether token `token` of `rank` has an expert on `peer`.
bool needs_rank(const ExchangeCase& exchange, Rank rank, int token, Rank peer);

/// Runs `count` exchanges on this rank, `lanes` of them at a time with their phases interleaved at
/// random, and checks each; throws on the first wrong byte. Some are polled for, some accumulate,
/// every fourth repeats the routing before it with other rows from a kept handle.
struct HarnessOptions {
  DispatcherOptions dispatcher = {};
  Routing routing = Routing::random;
  std::uint64_t seed = 0;
  int count = 1;
  int lanes = 1;
  /// Where the work is done. The others run it later, on a QueuedPlane; nothing is synchronised
  /// between dispatch_send and combine_recv, but where a routing is kept.
  enum class Plane {
    cpu,
    queued,   ///< while the caller goes on
    captured  ///< when the caller synchronises, and not before
  };
  Plane plane = Plane::cpu;
};

void run_exchanges(const HarnessOptions& options, Transport& transport, ThreadPool& pool);

}  // namespace ferry::testing
