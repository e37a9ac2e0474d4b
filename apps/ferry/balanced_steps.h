// EPLB around steps that no engine runs, as in bench model: the load is recorded and experts move
// between steps, as the options say.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "ferry/engine/balancer.h"
#include "ferry/engine/engine.h"
#include "ferry/function_ref.h"

namespace ferry {

/// One rank's end; construction is collective. Borrows decoder and transport. Threads: one at a
/// time. Errors: as the Balancer's.
class BalancedSteps {
 public:
  BalancedSteps(const EngineOptions& options, Decoder& decoder, Transport& transport);

  /// One step; collective, `prefill` alike on all ranks. `step` runs the decoder.
  void run(bool prefill, FunctionRef<void()> step);

  /// Null where the options turn nothing on.
  const Balancer* balancer() const { return balancer_ ? &*balancer_ : nullptr; }

  std::chrono::nanoseconds step_time() const { return step_time_; }

 private:
  MoveOrders next_orders();

  Transport& transport_;
  std::chrono::nanoseconds timeout_;
  std::optional<Balancer> balancer_;
  std::unique_ptr<Region> region_;  // each rank's part: the orders of the step
  std::uint64_t steps_ = 0;
  std::chrono::nanoseconds step_time_{};
};

}  // namespace ferry
