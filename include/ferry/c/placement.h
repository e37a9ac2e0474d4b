// The C interface: which expert lies in which slot, and which slot a token goes to. Slot p lies on
// rank p / slots_per_rank.
#pragma once

#include "ferry/c/base.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

/// Immutable; any thread.
typedef struct ferry_placement ferry_placement;

#define FERRY_PLACEMENT_OPTIONS_MAGIC 0xFE770020U

typedef struct ferry_placement_options {
  uint32_t size;
  uint32_t magic;
  int32_t experts;
  int32_t ranks;
  int32_t redundant;              ///< without a map: replicas beyond one of each expert
  int32_t num_slots;              ///< with a map: of all ranks
  const int32_t* expert_of_slot;  ///< [num_slots], -1 = empty; NULL: experts in order
  const float* shares;  ///< [slots] part of its expert's tokens of each slot; NULL: equal parts
  int32_t source;       ///< rank whose tokens are placed; -1: all ranks choose alike
  int32_t nearest;      ///< not 0: its own replica first, then its node's
  int32_t nodes;        ///< equal runs of consecutive ranks
  int32_t tp;           ///< ranks that hold the same tokens
} ferry_placement_options;

#define FERRY_PLACEMENT_OPTIONS_INIT                                                               \
  {                                                                                                \
    sizeof(ferry_placement_options), FERRY_PLACEMENT_OPTIONS_MAGIC, 0, 1, 0, 0, NULL, NULL, -1, 0, \
        1, 1                                                                                       \
  }

FERRY_API ferry_status ferry_placement_create(const ferry_placement_options* options,
                                              ferry_placement** out);

/// Not while a call uses it. NULL is fine.
FERRY_API ferry_status ferry_placement_destroy(ferry_placement* placement);

FERRY_API ferry_status ferry_placement_slots_per_rank(const ferry_placement* placement,
                                                      int32_t* slots_per_rank);

/// slots[t, k] = the slot that experts[t, k] is computed in; -1 stays -1. `turn` counts calls, on
/// all ranks alike: the same rows choose anew in each.
FERRY_API ferry_status ferry_placement_place(const ferry_placement* placement,
                                             const int32_t* experts,
                                             int32_t tokens,
                                             int32_t topk,
                                             uint32_t turn,
                                             int32_t* slots);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
