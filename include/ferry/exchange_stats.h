// What exchanges have counted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ferry {

/// Counters of a lane, or of several. Sums and differences run over all of them: what has no row in
/// kExchangeCounters does not compile.
struct ExchangeStats {
  std::uint64_t exchanges = 0;
  std::uint64_t bytes_logical = 0;  ///< payload if every (token, expert) travelled by itself
  std::uint64_t bytes_wire = 0;     ///< payload that left or entered this rank's memory
  std::uint64_t bytes_network = 0;  ///< of that, payload that left for another host

  ExchangeStats& operator+=(const ExchangeStats& other);
  ExchangeStats& operator-=(const ExchangeStats& other);

  friend bool operator==(const ExchangeStats&, const ExchangeStats&) = default;
};

inline constexpr std::uint64_t ExchangeStats::*kExchangeCounters[] = {
    &ExchangeStats::exchanges,
    &ExchangeStats::bytes_logical,
    &ExchangeStats::bytes_wire,
    &ExchangeStats::bytes_network,
};
static_assert(sizeof(ExchangeStats) ==
                  sizeof kExchangeCounters / sizeof *kExchangeCounters * sizeof(std::uint64_t),
              "a counter is missing in kExchangeCounters");

inline ExchangeStats& ExchangeStats::operator+=(const ExchangeStats& other) {
  for (const auto counter : kExchangeCounters) this->*counter += other.*counter;
  return *this;
}

inline ExchangeStats& ExchangeStats::operator-=(const ExchangeStats& other) {
  for (const auto counter : kExchangeCounters) this->*counter -= other.*counter;
  return *this;
}

inline ExchangeStats operator-(ExchangeStats a, const ExchangeStats& b) { return a -= b; }

/// What a rank has had from one source rank, since the lane was made; nothing sets it back, so
/// callers subtract an earlier reading.
///
/// Waits are times in which this source was the one waited for: a rank waits for its sources one
/// after the other, so a time counts for one source alone, and the sum over all is what the rank
/// has waited. Of two that are late, the one waited for later shows only by how much it was later.
/// Rows that a third rank passes on count for the rank whose tokens they are. Time between a
/// caller's polls is the caller's and not counted. Where a rank is masked, the time until then is.
struct SourceStats {
  std::uint64_t dispatch_wait_ns = 0;  ///< for its tokens; steady clock, nanoseconds
  std::uint64_t combine_wait_ns = 0;   ///< for its results
  /// Its (token, slot) pairs that were dispatched to this rank and have arrived: a token counts
  /// once for each of this rank's slots that it names. With hidden_partition each source's part of
  /// a row counts as one.
  std::uint64_t rows_received = 0;

  std::uint64_t wait_ns() const { return dispatch_wait_ns + combine_wait_ns; }

  SourceStats& operator+=(const SourceStats& other);
  SourceStats& operator-=(const SourceStats& other);

  friend bool operator==(const SourceStats&, const SourceStats&) = default;
};

inline constexpr std::uint64_t SourceStats::*kSourceCounters[] = {
    &SourceStats::dispatch_wait_ns,
    &SourceStats::combine_wait_ns,
    &SourceStats::rows_received,
};
static_assert(sizeof(SourceStats) ==
                  sizeof kSourceCounters / sizeof *kSourceCounters * sizeof(std::uint64_t),
              "a counter is missing in kSourceCounters");

inline SourceStats& SourceStats::operator+=(const SourceStats& other) {
  for (const auto counter : kSourceCounters) this->*counter += other.*counter;
  return *this;
}

inline SourceStats& SourceStats::operator-=(const SourceStats& other) {
  for (const auto counter : kSourceCounters) this->*counter -= other.*counter;
  return *this;
}

inline SourceStats operator-(SourceStats a, const SourceStats& b) { return a -= b; }

}  // namespace ferry
