// How far combine's sums may be from exact ones: docs/numerics.md, "Sums that travel".
#pragma once

#include <vector>

#include "exchange_harness.h"

namespace ferry::testing {

struct BoundedSums {
  std::vector<double> exact;  ///< [tokens, columns], from the rows before any wire
  std::vector<double> bound;  ///< how far each may be off
};

/// Of the fake experts' sums on `rank`.
BoundedSums bounded_sums(const ExchangeCase& exchange, Rank rank);

}  // namespace ferry::testing
