// A routing kept for later exchanges: plans, and what the ranks told each other.
#pragma once

#include <vector>

#include "ferry/exchange/dispatch_plan.h"
#include "ferry/exchange/exchange_layout.h"

namespace ferry {

class Dispatcher;

/// Made by Dispatcher::keep_routing() on every rank of one exchange, and used again on all of them
/// together, in dispatchers of the same options. Owns copies. Threads: read only.
class CachedRouting {
 private:
  friend class Dispatcher;

  struct Message {
    std::vector<std::uint32_t> counts;
    std::vector<Record> records;
    std::vector<ReduceEntry> entries;
    std::vector<float> row_weights;
  };

  CachedRouting(std::vector<SendPlan> send_plans, ReceivePlan receive_plan)
      : send_plans_(std::move(send_plans)), receive_plan_(std::move(receive_plan)) {}

  std::vector<SendPlan> send_plans_;
  ReceivePlan receive_plan_;
  std::vector<Message> messages_;  // [R]
};

}  // namespace ferry
