// Random exchanges with rows that cannot be confused, and what must come out of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ferry/moe/dispatcher.h"

namespace ferry::testing {

enum class Routing { random, masked, duplicates, one_expert };

/// What all ranks know of one exchange; a pure function of its fields.
struct ExchangeCase {
  int ranks = 1;
  int slots_per_rank = 1;
  int hidden = 8;
  int topk = 2;
  int max_tokens = 8;
  Routing routing = Routing::random;
  std::uint64_t seed = 0;

  /// Tokens that `rank` has: unequal over ranks, sometimes 0, sometimes max_tokens.
  int tokens(Rank rank) const;
  /// [tokens, K]
  std::vector<SlotId> slots(Rank rank) const;
  std::vector<float> weights(Rank rank) const;
  /// [tokens, H]: small integers unique to (rank, token), exact in bf16; the last one a checksum.
  std::vector<float> rows(Rank rank) const;
};

/// The stand-in for experts: out = (slot + 2) * in + 1 elementwise, rounded to the rows' type.
/// Also checks that every row received is one that was sent whole.
void run_fake_experts(const ExchangeCase& exchange, Rank rank, const ExpertRows& rows);

/// What combine must give on `rank`, [tokens, H], as bytes: terms in top-k order, or per rank and
/// then over ranks, from the wire's rounding of what the fake experts return.
std::vector<float> expected_sums(const ExchangeCase& exchange,
                                 Rank rank,
                                 ExchangeOptions::ReduceAt reduce_at,
                                 DType wire);

/// Runs `count` exchanges on this rank and checks each; throws on the first wrong byte.
struct HarnessOptions {
  DispatcherOptions dispatcher = {};
  Routing routing = Routing::random;
  std::uint64_t seed = 0;
  int count = 1;
};

void run_exchanges(const HarnessOptions& options, Transport& transport, ThreadPool& pool);

}  // namespace ferry::testing
