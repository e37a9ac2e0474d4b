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

}  // namespace ferry
