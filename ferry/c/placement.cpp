// Placements: slots of experts.
#include "ferry/c/placement.h"

#include <vector>

#include "ferry/c/exchange_arguments.h"
#include "ferry/c/status.h"

namespace ferry::c {

FERRY_C_STRUCT(ferry_placement_options, FERRY_PLACEMENT_OPTIONS);

namespace {

constexpr int kMostSlots = 1 << 24;

void check_range(const char* name, int value, int least, int most) {
  if (value < least || value > most)
    fail<ConfigError>("{} is {}; {} to {} are possible", name, value, least, most);
}

Placement make(const ferry_placement_options& o) {
  check_range("experts", o.experts, 1, kMostSlots);
  check_range("ranks", o.ranks, 1, kMostSlots);
  check_range("redundant", o.redundant, 0, kMostSlots);
  check_range("nodes", o.nodes, 1, kMostSlots);
  check_range("tp", o.tp, 1, kMostSlots);
  Placement placement = Placement::identity(o.experts, o.ranks, o.redundant);
  if (o.expert_of_slot != nullptr) {
    check_range("num_slots", o.num_slots, 1, kMostSlots);
    placement = Placement(std::vector<ExpertId>(o.expert_of_slot, o.expert_of_slot + o.num_slots),
                          o.experts,
                          o.ranks);
  }
  const auto slots = static_cast<std::size_t>(placement.slots());
  return placement.choosing({.shares = {o.shares, o.shares != nullptr ? slots : 0},
                             .source = o.source,
                             .nearest = o.nearest != 0,
                             .nodes = o.nodes,
                             .tp = o.tp});
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_placement_create(const ferry_placement_options* options, ferry_placement** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    *out = new ferry_placement{make(read_struct(options))};
  });
}

ferry_status ferry_placement_destroy(ferry_placement* placement) {
  return guarded([&] { delete placement; });
}

ferry_status ferry_placement_slots_per_rank(const ferry_placement* placement,
                                            int32_t* slots_per_rank) {
  return guarded([&] {
    *need(slots_per_rank, "slots_per_rank") =
        need(placement, "the placement")->placement.slots_per_rank();
  });
}

ferry_status ferry_placement_place(const ferry_placement* placement,
                                   const int32_t* experts,
                                   int32_t tokens,
                                   int32_t topk,
                                   uint32_t turn,
                                   int32_t* slots) {
  return guarded([&] {
    const ferry::Placement& p = need(placement, "the placement")->placement;
    if (tokens < 0 || topk < 1)
      ferry::fail<ferry::ConfigError>("{} tokens with {} choices each", tokens, topk);
    const std::int64_t entries = std::int64_t{tokens} * topk;
    const auto from = array(experts, entries, "experts");
    for (const std::int32_t e : from)
      if (e < -1 || e >= p.experts())
        ferry::fail<ferry::ConfigError>(
            "expert {}, outside 0..{}; use -1 for none", e, p.experts() - 1);
    p.place(from, topk, array(slots, entries, "slots"), turn);
  });
}
