// The C interface: a MoE layer around the caller's own experts (docs/all_to_all.md, "moe_forward").
#pragma once

#include "ferry/c/all_to_all.h"
#include "ferry/c/placement.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

/// What a layer needs and the next one can use again.
typedef struct ferry_moe ferry_moe;

typedef enum ferry_score { FERRY_SOFTMAX = 0, FERRY_SIGMOID = 1 } ferry_score;

typedef enum ferry_group_score {
  FERRY_GREATEST_OF_GROUP = 0,   ///< DeepSeek-V2
  FERRY_SUM_OF_TWO_OF_GROUP = 1  ///< DeepSeek-V3
} ferry_group_score;

#define FERRY_MOE_OPTIONS_MAGIC 0xFE770030U

typedef struct ferry_moe_options {
  uint32_t size;
  uint32_t magic;
  int32_t experts;       ///< E
  int32_t topk;          ///< K
  int32_t redundant;     ///< replicas beyond one slot for each expert
  int32_t score;         ///< ferry_score, from logits; so are those below
  int32_t renormalize;   ///< not 0: weights divided by their sum
  int32_t choose_first;  ///< not 0: the choice is made among logits
  int32_t groups;        ///< of E / groups neighbouring experts
  int32_t topk_groups;   ///< of which so many take part
  int32_t group_score;   ///< ferry_group_score
  float scaling;         ///< of the weights
  int32_t takes_padded;  ///< what the caller's experts can read; 0: they cannot
  int32_t takes_ragged;
  int32_t takes_row_pointers;
  int32_t takes_tiles;  ///< may be called several times in an exchange
} ferry_moe_options;

#define FERRY_MOE_OPTIONS_INIT                                                              \
  {                                                                                         \
    sizeof(ferry_moe_options), FERRY_MOE_OPTIONS_MAGIC, 0, 0, 0, FERRY_SOFTMAX, 0, 0, 1, 1, \
        FERRY_GREATEST_OF_GROUP, 1.0F, 1, 1, 1, 1                                           \
  }

FERRY_API ferry_status ferry_moe_mem_size(ferry_comm* comm,
                                          const ferry_moe_options* options,
                                          const ferry_all_to_all_options* exchange,
                                          uint64_t* bytes);

/// Collective.
FERRY_API ferry_status ferry_moe_create(ferry_comm* comm,
                                        const ferry_moe_options* options,
                                        const ferry_all_to_all_options* exchange,
                                        ferry_moe** out);

/// NULL is fine.
FERRY_API ferry_status ferry_moe_destroy(ferry_moe* moe);

FERRY_API ferry_status ferry_moe_slots_per_rank(ferry_moe* moe, int32_t* slots_per_rank);

#define FERRY_MOE_TOKENS_MAGIC 0xFE770031U

/// This rank's tokens, and where their results go.
typedef struct ferry_moe_tokens {
  uint32_t size;
  uint32_t magic;
  ferry_place place;   ///< of `hidden` and `out`
  const void* hidden;  ///< [tokens, H] of `type` (hidden_partition: [tokens, H / R])
  int64_t stride;      ///< bytes
  void* out;           ///< [tokens, H] of `out_type`; may be `hidden`, in type and stride the same
  int64_t out_stride;
  int32_t type;        ///< ferry_dtype
  int32_t out_type;    ///< ferry_dtype
  int32_t encoded;     ///< not 0: `hidden` is in the dispatch wire's type already
  int32_t tokens;      ///< any number; those beyond max_tokens run as further exchanges
  int32_t accumulate;  ///< not 0: add to what `out` holds
  int32_t layer;       ///< for messages; -1: none
  const ferry_placement* placement;  ///< of the same experts and slots; NULL: experts in order
  double timeout_s;                  ///< of each wait of this call; negative: the option's
} ferry_moe_tokens;

#define FERRY_MOE_TOKENS_INIT                                                             \
  {                                                                                       \
    sizeof(ferry_moe_tokens), FERRY_MOE_TOKENS_MAGIC, FERRY_PLACE_HOST, NULL, 0, NULL, 0, \
        FERRY_F32, FERRY_F32, 0, 0, 0, -1, NULL, -1.0                                     \
  }

#define FERRY_ROUTER_LOGITS_MAGIC 0xFE770032U

typedef struct ferry_router_logits {
  uint32_t size;
  uint32_t magic;
  ferry_place place;            ///< of all that follows
  const void* rows;             ///< [tokens, E] of `type`
  int64_t stride;               ///< bytes
  const float* selection_bias;  ///< [E]: moves the choice, not the weights; NULL: none
  int32_t type;                 ///< ferry_dtype
  int32_t reserved;
} ferry_router_logits;

#define FERRY_ROUTER_LOGITS_INIT                                                             \
  {                                                                                          \
    sizeof(ferry_router_logits), FERRY_ROUTER_LOGITS_MAGIC, FERRY_PLACE_HOST, NULL, 0, NULL, \
        FERRY_F32, 0                                                                         \
  }

typedef enum ferry_index { FERRY_I32 = 0, FERRY_U32 = 1, FERRY_I64 = 2 } ferry_index;

#define FERRY_TOPK_MAGIC 0xFE770033U

/// Routing that is done already.
typedef struct ferry_topk {
  uint32_t size;
  uint32_t magic;
  ferry_place place;       ///< of all that follows
  const void* ids;         ///< [tokens, K] of `id_type`; negative (u32: above 2^31 - 1) = none
  int64_t ids_stride;      ///< bytes from one token's to the next's
  const float* weights;    ///< [tokens, K]; beside an id of none it is not read
  int64_t weights_stride;  ///< bytes
  int32_t id_type;         ///< ferry_index
  int32_t physical;        ///< not 0: ids are slots, placed by the caller
} ferry_topk;

#define FERRY_TOPK_INIT \
  { sizeof(ferry_topk), FERRY_TOPK_MAGIC, FERRY_PLACE_HOST, NULL, 0, NULL, 0, FERRY_I32, 0 }

/// Collective: out = the weighted sum over each token's experts. Ranks without tokens call it as
/// well, and their experts work for the others.
FERRY_API ferry_status ferry_moe_forward(ferry_moe* moe,
                                         const ferry_moe_tokens* tokens,
                                         const ferry_router_logits* logits,
                                         ferry_experts_fn experts,
                                         void* context);

FERRY_API ferry_status ferry_moe_forward_from_topk(ferry_moe* moe,
                                                   const ferry_moe_tokens* tokens,
                                                   const ferry_topk* topk,
                                                   ferry_experts_fn experts,
                                                   void* context);

/// As ferry_all_to_all_lost_tokens(), of the last call.
FERRY_API ferry_status ferry_moe_lost_tokens(ferry_moe* moe,
                                             const int32_t** tokens,
                                             int32_t* count);

FERRY_API ferry_status ferry_moe_stats(ferry_moe* moe, ferry_exchange_stats* stats);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
