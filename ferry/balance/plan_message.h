// A plan as rank 0 puts it to all ranks, in 32-bit words:
//   plan = hash of what follows (2 words), number of layers in the order, order [layers],
//          maps [layers][P], with shares: shares [layers][P], f32
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// What a plan says of each layer.
struct PlacementPlan {
  std::vector<std::vector<ExpertId>> maps;   ///< [layer][P]
  std::vector<std::vector<float>> shares{};  ///< [layer][P] with MoverOptions::shares, else none
};

/// Same on all ranks, so that a message need not say it.
struct PlanShape {
  std::size_t layers = 0;
  std::size_t slots = 0;
  bool shares = false;

  std::size_t words() const;
};

struct PlanMessage {
  PlacementPlan plan;
  std::vector<int> order;  ///< layers, as they are to be worked on
};

/// REQUIRES: the plan has the shape; `words` as many as the shape says.
void write_plan(const PlanShape& shape,
                const PlacementPlan& plan,
                std::span<const int> order,
                std::span<std::int32_t> words);

/// Throws BrokenContract where the words are not those that were written.
PlanMessage read_plan(const PlanShape& shape, std::span<const std::int32_t> words);

}  // namespace ferry
