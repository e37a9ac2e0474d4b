// The C interface: how experts should lie, given what they have had to do (docs/eplb.md).
#pragma once

#include "ferry/c/base.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

/// Immutable; any thread.
typedef struct ferry_plan ferry_plan;

typedef enum ferry_uneven_slots {
  FERRY_ALLOW_EMPTY = 0,  ///< some slots stay empty
  FERRY_STRICT = 1,       ///< FERRY_INVALID where they do not divide by the ranks
  FERRY_ADJUST = 2        ///< fewer redundant ones, until they do
} ferry_uneven_slots;

#define FERRY_PLAN_OPTIONS_MAGIC 0xFE770050U

typedef struct ferry_plan_options {
  uint32_t size;
  uint32_t magic;
  int32_t steps;  ///< of the window; policies but "risk" plan for their sum
  int32_t layers;
  int32_t experts;
  int32_t ranks;
  int32_t nodes;           ///< equal runs of consecutive ranks
  int32_t groups;          ///< of experts that routing picks together
  int32_t redundant;       ///< replicas beyond one of each expert
  int32_t uneven;          ///< ferry_uneven_slots
  const double* load;      ///< [steps, layers, experts] tokens of each expert
  const int32_t* current;  ///< [layers, current_slots] expert of each slot; NULL: in order
  int32_t current_slots;
  int32_t weighted;       ///< not 0: for replicas that take the shares that the plan says
  const char* policy;     ///< "greedy" (NULL), "deepseek", "incremental", "risk", "identity"
  double tolerance;       ///< incremental: a layer is good enough this far below the best
  int32_t max_transfers;  ///< incremental: over all layers; 0: any number
  int32_t max_transfers_per_pair;  ///< incremental: of a layer between two ranks; 0: any number
} ferry_plan_options;

#define FERRY_PLAN_OPTIONS_INIT                                                                   \
  {                                                                                               \
    sizeof(ferry_plan_options), FERRY_PLAN_OPTIONS_MAGIC, 1, 0, 0, 1, 1, 1, 0, FERRY_ALLOW_EMPTY, \
        NULL, NULL, 0, 0, NULL, 0.0205, 0, 0                                                      \
  }

/// The same plan from the same numbers, on every machine.
FERRY_API ferry_status ferry_plan_create(const ferry_plan_options* options, ferry_plan** out);

/// NULL is fine.
FERRY_API ferry_status ferry_plan_destroy(ferry_plan* plan);

#define FERRY_PLAN_INFO_MAGIC 0xFE770051U

typedef struct ferry_plan_info {
  uint32_t size;
  uint32_t magic;
  int32_t layers;
  int32_t slots;  ///< of all ranks
  int32_t slots_per_rank;
  int32_t transfers;        ///< experts that travel between ranks
  int32_t transfers_bound;  ///< no placement as even as this one needs fewer
  int32_t duplicates;       ///< slots spent on an expert that their rank has already
  double balance_before;    ///< mean over greatest load of the ranks, over layers with any
  double balance_after;
  double balance_bound;  ///< no placement of these slots has more
} ferry_plan_info;

#define FERRY_PLAN_INFO_INIT \
  { sizeof(ferry_plan_info), FERRY_PLAN_INFO_MAGIC, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

FERRY_API ferry_status ferry_plan_info_get(const ferry_plan* plan, ferry_plan_info* info);

/// What stands in arrays of a layer, each [slots] and as long as the plan lives; any of the three
/// may be NULL.
///   experts   expert of each slot, -1 = empty
///   sources   slot of the current placement that its weights come from, -1 = empty
///   shares    part of its expert's tokens that each slot takes; NULL where not weighted
FERRY_API ferry_status ferry_plan_layer(const ferry_plan* plan,
                                        int32_t layer,
                                        const int32_t** experts,
                                        const int32_t** sources,
                                        const float** shares);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
