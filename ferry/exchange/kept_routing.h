// A routing kept for later exchanges: plans, and what the ranks told each other.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ferry/exchange/dispatch_plan.h"
#include "ferry/exchange/exchange_layout.h"

namespace ferry {

/// What a CachedRouting holds. Owns copies. Threads: read only.
struct KeptRouting {
  struct Message {
    std::vector<std::uint32_t> counts;
    std::vector<Record> records;
    std::vector<ReduceEntry> entries;
    std::vector<float> row_weights;
  };

  std::vector<SendPlan> send_plans;
  ReceivePlan receive_plan;
  std::vector<Message> messages;  // [R]
};

}  // namespace ferry
