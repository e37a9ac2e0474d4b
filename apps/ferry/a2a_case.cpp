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

std::string asked_label(const A2aCase& a2a) {
  return a2a.mode.empty() ? a2a.backend : a2a.backend + "/" + a2a.mode;
}

std::string backend_label(const A2aCase& a2a) {
  return asked_label(a2a) + (a2a.chosen.empty() ? "" : " (" + a2a.chosen + ")");
}

}  // namespace ferry
