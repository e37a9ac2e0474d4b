#include "apps/ferry/a2a_case.h"

namespace ferry {

DispatcherOptions A2aCase::dispatcher() const {
  return {.exchange = exchange,
          .slots_per_rank = slots_per_rank(),
          .hidden = hidden,
          .topk = topk,
          .max_tokens = tokens,
          .dispatch_wire = dispatch_wire,
          .expert_type = expert_type,
          .combine_wire = combine_wire};
}

}  // namespace ferry
