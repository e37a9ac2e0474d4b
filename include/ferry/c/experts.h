// The C interface: our experts on packed weights, for who wants the kernels without the model.
#pragma once

#include "ferry/c/all_to_all.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

/// The gated feed-forward blocks of some slots: down(act(gate(x), up(x))). Threads: one call at a
/// time.
typedef struct ferry_experts ferry_experts;

/// How weights are held (docs/numerics.md, "Weights").
typedef enum ferry_weights {
  FERRY_WEIGHTS_F32 = 0,
  FERRY_WEIGHTS_BF16 = 1,
  FERRY_WEIGHTS_INT8 = 2,
  FERRY_WEIGHTS_FP8 = 3,
  FERRY_WEIGHTS_INT4 = 4,
  FERRY_WEIGHTS_MXFP4 = 5
} ferry_weights;

typedef enum ferry_gating {
  FERRY_SILU = 0,    ///< silu(gate) * up
  FERRY_CLAMPED = 1  ///< g * sigmoid(alpha * g) * (u + 1), both clamped to `limit` (gpt-oss)
} ferry_gating;

#define FERRY_EXPERTS_OPTIONS_MAGIC 0xFE770040U

typedef struct ferry_experts_options {
  uint32_t size;
  uint32_t magic;
  ferry_place place;    ///< where the weights lie and the work is done
  int32_t slots;        ///< L
  int32_t hidden;       ///< H
  int32_t inter;        ///< width between the two projections
  int32_t weights;      ///< ferry_weights; rows in are f32 for FERRY_WEIGHTS_F32, else bf16
  int32_t gating;       ///< ferry_gating
  float alpha;          ///< FERRY_CLAMPED
  float limit;          ///< FERRY_CLAMPED
  int32_t threads;      ///< the calling one included
  int32_t max_rows;     ///< that scratch is made for; more are done in turns
  int32_t row_weights;  ///< not 0: rows come with weights
} ferry_experts_options;

#define FERRY_EXPERTS_OPTIONS_INIT                                                         \
  {                                                                                        \
    sizeof(ferry_experts_options), FERRY_EXPERTS_OPTIONS_MAGIC, FERRY_PLACE_HOST, 0, 0, 0, \
        FERRY_WEIGHTS_BF16, FERRY_SILU, 1.0F, 0.0F, 1, 1024, 0                             \
  }

FERRY_API ferry_status ferry_experts_create(const ferry_experts_options* options,
                                            ferry_experts** out);

/// NULL is fine.
FERRY_API ferry_status ferry_experts_destroy(ferry_experts* experts);

#define FERRY_EXPERT_WEIGHTS_MAGIC 0xFE770041U

/// One expert as checkpoints have it: row-major, a row for each output.
typedef struct ferry_expert_weights {
  uint32_t size;
  uint32_t magic;
  ferry_place place;       ///< of all that follows
  const void* gate;        ///< [inter, H] of `type`
  const void* up;          ///< [inter, H]
  const void* down;        ///< [H, inter]
  const float* gate_bias;  ///< [inter]; all three or none
  const float* up_bias;    ///< [inter]
  const float* down_bias;  ///< [H]
  int32_t type;            ///< ferry_dtype
  int32_t reserved;
} ferry_expert_weights;

#define FERRY_EXPERT_WEIGHTS_INIT                                                                 \
  {                                                                                               \
    sizeof(ferry_expert_weights), FERRY_EXPERT_WEIGHTS_MAGIC, FERRY_PLACE_HOST, NULL, NULL, NULL, \
        NULL, NULL, NULL, FERRY_F32, 0                                                            \
  }

/// Packs an expert into a slot, over what was there; quantised as the options say. Copies.
FERRY_API ferry_status ferry_experts_set(ferry_experts* experts,
                                         int32_t slot,
                                         const ferry_expert_weights* weights);

/// Computes all rows. `experts` is a ferry_experts*: the function is a ferry_experts_fn, to be
/// handed to ferry_moe_forward() with the experts as context.
FERRY_API ferry_status ferry_experts_run(void* experts, const ferry_expert_rows* rows);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
