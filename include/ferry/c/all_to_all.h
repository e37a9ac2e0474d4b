// The C interface: one exchange in four phases. docs/all_to_all.md says what they do; this is
// ferry::Dispatcher.
//
//   dispatch_send   tokens leave; the caller's rows have been taken when it returns
//   dispatch_recv   the rows for this rank's experts are here, until combine_send
//   combine_send    the experts have written their results
//   combine_recv    the sums of this rank's tokens are here
//
// All ranks run the four in this order; another order is FERRY_OUT_OF_ORDER. What FERRY_INVALID
// refuses may be called again with better arguments.
//
// In device memory (place.memory FERRY_DEVICE, place.queue a CUstream) each phase puts its kernels
// on the queue and returns; all that is handed over lies on that device, with the same place in
// each struct, and what goes wrong there ferry_all_to_all_synchronise() says. A queue that its
// owner captures keeps the phases for its graph, in an order of their own. docs/gpu.md has what
// such an exchange cannot do.
#pragma once

#include "ferry/c/comm.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

typedef struct ferry_all_to_all ferry_all_to_all;

/// A routing kept for later exchanges.
typedef struct ferry_routing ferry_routing;

/// How the rows of the local slots lie: row i of slot l is row offsets[l] + i.
typedef enum ferry_format {
  FERRY_FORMAT_OF_BACKEND = 0,
  FERRY_PADDED = 1,       ///< as many rows reserved for every slot
  FERRY_RAGGED = 2,       ///< slots packed behind one another
  FERRY_ROW_POINTERS = 3  ///< nothing copied: a pointer for each row
} ferry_format;

typedef enum ferry_on_dead_rank {
  FERRY_ON_DEAD_RANK_OF_BACKEND = 0,
  FERRY_FAIL_ON_DEAD_RANK = 1,
  FERRY_MASK_DEAD_RANK = 2  ///< the others go on; lost tokens are reported
} ferry_on_dead_rank;

#define FERRY_ALL_TO_ALL_OPTIONS_MAGIC 0xFE770010U

typedef struct ferry_all_to_all_options {
  uint32_t size;
  uint32_t magic;
  ferry_place place;         ///< where its memory lies and its work is done
  const char* backend;       ///< "pplx" (NULL is this), "deepep", "alltoallv", "none", "mooncake",
                             ///< "ascend_fuseep", "auto"
  const char* deepep_mode;   ///< "low_latency" (NULL), "normal", "auto"
  int32_t slots_per_rank;    ///< L; 0 for moe_forward, which computes it
  int32_t topk;              ///< K; 0 for moe_forward, whose router says it
  int32_t hidden;            ///< H
  int32_t max_tokens;        ///< of a rank in one exchange
  int32_t tp;                ///< ranks [g * tp, (g + 1) * tp) hold the same tokens
  int32_t row_alignment;     ///< ragged: slots begin at a multiple of so many rows
  int32_t dispatch_wire;     ///< ferry_wire: what travels out
  int32_t expert_type;       ///< ferry_wire: what experts receive: dispatch_wire, or f32 or bf16
  int32_t combine_wire;      ///< ferry_wire: what comes back; experts write it, f32 if quantised
  int32_t format;            ///< ferry_format
  int32_t on_dead_rank;      ///< ferry_on_dead_rank
  int32_t hidden_partition;  ///< not 0: each rank has H / R columns of the same tokens
  int32_t fixed_format;      ///< not 0: padded stays padded where reserved memory costs
  int32_t row_weights;       ///< not 0: a token's weights go to the experts with its rows
  double timeout_s;          ///< of each phase that waits
} ferry_all_to_all_options;

#define FERRY_ALL_TO_ALL_OPTIONS_INIT                                                         \
  {                                                                                           \
    sizeof(ferry_all_to_all_options), FERRY_ALL_TO_ALL_OPTIONS_MAGIC, FERRY_PLACE_HOST, NULL, \
        NULL, 0, 0, 0, 0, 1, 16, FERRY_WIRE_F32, FERRY_WIRE_F32, FERRY_WIRE_F32,              \
        FERRY_FORMAT_OF_BACKEND, FERRY_ON_DEAD_RANK_OF_BACKEND, 0, 0, 0, 30.0                 \
  }

/// Bytes of memory that one with these options reserves on each rank of `comm`.
FERRY_API ferry_status ferry_all_to_all_mem_size(ferry_comm* comm,
                                                 const ferry_all_to_all_options* options,
                                                 uint64_t* bytes);

/// Collective. One exchange in flight; two are two of these.
FERRY_API ferry_status ferry_all_to_all_create(ferry_comm* comm,
                                               const ferry_all_to_all_options* options,
                                               ferry_all_to_all** out);

/// NULL is fine. In device memory all ranks call it, with their exchanges in one order: each waits,
/// up to the timeout, until nobody reads from its memory. One that has failed waits for nobody.
FERRY_API ferry_status ferry_all_to_all_destroy(ferry_all_to_all* a2a);

#define FERRY_DISPATCH_INPUT_MAGIC 0xFE770011U

/// This rank's tokens.
typedef struct ferry_dispatch_input {
  uint32_t size;
  uint32_t magic;
  ferry_place place;             ///< of all that follows
  const void* rows;              ///< [tokens, H] of `type` (hidden_partition: [tokens, H / R])
  int64_t stride;                ///< bytes from one row to the next
  int32_t type;                  ///< ferry_dtype; f16 where the wire is not quantised
  int32_t encoded;               ///< not 0: rows are in the dispatch wire's type already
  int32_t tokens;                ///< 0..max_tokens
  int32_t chunks;                ///< exchanges that this rank still needs, this one included
  const int32_t* slots;          ///< [tokens, K], -1 = none
  const float* weights;          ///< [tokens, K], where ranks sum before home does (else unread)
  const float* row_weights;      ///< [tokens, K], with the option row_weights
  const ferry_routing* routing;  ///< kept from earlier: slots and weights are not read
  double timeout_s;              ///< of this exchange's phases; negative: the option's
  int32_t layer;                 ///< for messages; -1: none
  int32_t reserved;
  /// [1], in device memory: the first so many of `tokens` are there, a number that kernels read
  /// when they run, so that a captured graph may have another at each launch. NULL: all.
  const int32_t* num_tokens;
} ferry_dispatch_input;

#define FERRY_DISPATCH_INPUT_INIT                                                        \
  {                                                                                      \
    sizeof(ferry_dispatch_input), FERRY_DISPATCH_INPUT_MAGIC, FERRY_PLACE_HOST, NULL, 0, \
        FERRY_F32, 0, 0, 1, NULL, NULL, NULL, NULL, -1.0, -1, 0, NULL                    \
  }

FERRY_API ferry_status ferry_all_to_all_dispatch_send(ferry_all_to_all* a2a,
                                                      const ferry_dispatch_input* input);

#define FERRY_EXPERT_ROWS_MAGIC 0xFE770012U

/// What experts compute: rows in, rows out, for the slots of this rank. Belongs to the exchange.
typedef struct ferry_expert_rows {
  uint32_t size;
  uint32_t magic;
  ferry_place place;  ///< where everything below lies
  int32_t format;     ///< ferry_format, never FERRY_FORMAT_OF_BACKEND
  int32_t num_slots;  ///< L
  int32_t hidden;     ///< H
  int32_t in_type;    ///< ferry_wire of `in`
  int32_t out_type;   ///< ferry_dtype of `out`
  int32_t reserved;
  const int32_t* counts;   ///< [L] rows of each slot
  const int64_t* offsets;  ///< [L] row number of each slot's first
  const void* in;          ///< row r begins at in + r * in_stride, or at in_pointers[r]
  int64_t in_stride;
  const void* const* in_pointers;  ///< NULL unless the format is FERRY_ROW_POINTERS
  const float* weights;            ///< a factor for each row that is read; NULL: none
  void* out;                       ///< row r begins at out + r * out_stride
  int64_t out_stride;
} ferry_expert_rows;

#define FERRY_EXPERT_ROWS_INIT                                                                \
  {                                                                                           \
    sizeof(ferry_expert_rows), FERRY_EXPERT_ROWS_MAGIC, FERRY_PLACE_HOST, FERRY_PADDED, 0, 0, \
        FERRY_WIRE_F32, FERRY_F32, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, 0                \
  }

/// Row `row` of the input: offsets[slot] + i.
static inline const void* ferry_expert_rows_in(const ferry_expert_rows* rows, int64_t row) {
  return rows->in_pointers != NULL ? rows->in_pointers[row]
                                   : (const void*)((const char*)rows->in + row * rows->in_stride);
}

static inline void* ferry_expert_rows_out(const ferry_expert_rows* rows, int64_t row) {
  return (void*)((char*)rows->out + row * rows->out_stride);
}

/// Fills *rows; they stay until combine_send.
FERRY_API ferry_status ferry_all_to_all_dispatch_recv(ferry_all_to_all* a2a,
                                                      ferry_expert_rows* rows);

/// The caller's experts: read rows->in, write rows->out. Called on the thread that made the call,
/// also when no row came. Another status than FERRY_OK ends the exchange.
typedef ferry_status (*ferry_experts_fn)(void* context, const ferry_expert_rows* rows);

/// The same around the caller's experts: called once, or for one tile after the other where the
/// backend works in tiles, results leaving between them.
FERRY_API ferry_status ferry_all_to_all_dispatch_recv_with(ferry_all_to_all* a2a,
                                                           ferry_experts_fn experts,
                                                           void* context);

FERRY_API ferry_status ferry_all_to_all_combine_send(ferry_all_to_all* a2a);

#define FERRY_COMBINE_OUTPUT_MAGIC 0xFE770013U

/// Where the sums go.
typedef struct ferry_combine_output {
  uint32_t size;
  uint32_t magic;
  ferry_place place;     ///< of all that follows
  void* rows;            ///< [tokens, H] of `type` (hidden_partition: [tokens, H / R])
  int64_t stride;        ///< bytes
  const float* weights;  ///< [tokens, K]
  int32_t type;          ///< ferry_dtype
  int32_t accumulate;    ///< not 0: add to what the rows hold
} ferry_combine_output;

#define FERRY_COMBINE_OUTPUT_INIT                                                              \
  {                                                                                            \
    sizeof(ferry_combine_output), FERRY_COMBINE_OUTPUT_MAGIC, FERRY_PLACE_HOST, NULL, 0, NULL, \
        FERRY_F32, 0                                                                           \
  }

FERRY_API ferry_status ferry_all_to_all_combine_recv(ferry_all_to_all* a2a,
                                                     const ferry_combine_output* output);

/// Returns when the exchange's queue has done everything, and says what went wrong there: a rank
/// that did not come, a slot that there is not. In host memory there is nothing to wait for.
/// FERRY_OUT_OF_ORDER while the queue is captured.
FERRY_API ferry_status ferry_all_to_all_synchronise(ferry_all_to_all* a2a);

/// *ready = whether the next receive would find everything. Between a send and its receive; never
/// blocks; fails as that receive would.
FERRY_API ferry_status ferry_all_to_all_poll(ferry_all_to_all* a2a, int32_t* ready);

/// Between dispatch_recv and combine_send: the routing of this exchange, for later ones of the same
/// options. All ranks keep theirs and use them together.
FERRY_API ferry_status ferry_all_to_all_keep_routing(ferry_all_to_all* a2a, ferry_routing** out);

/// An exchange that uses it keeps what it needs. NULL is fine. Any thread.
FERRY_API ferry_status ferry_routing_destroy(ferry_routing* routing);

/// [max_tokens, H] rows of the dispatch wire's type where peers read this rank's tokens: rows that
/// are written there, between exchanges, and sent from there are not copied.
FERRY_API ferry_status ferry_all_to_all_registered_input(ferry_all_to_all* a2a,
                                                         void** rows,
                                                         int64_t* stride);

/// Tokens of the last exchange whose sums lack a masked rank's part, rising. They stay until the
/// next exchange.
FERRY_API ferry_status ferry_all_to_all_lost_tokens(ferry_all_to_all* a2a,
                                                    const int32_t** tokens,
                                                    int32_t* count);

/// The greatest `chunks` that any rank said in the exchange that was received last.
FERRY_API ferry_status ferry_all_to_all_chunks_of_all(ferry_all_to_all* a2a, int32_t* chunks);

#define FERRY_EXCHANGE_STATS_MAGIC 0xFE770014U

typedef struct ferry_exchange_stats {
  uint32_t size;
  uint32_t magic;
  uint64_t exchanges;
  uint64_t bytes_logical;  ///< payload if every (token, expert) travelled by itself
  uint64_t bytes_wire;     ///< payload that left or entered this rank's memory
  uint64_t bytes_network;  ///< of that, payload that left for another host
} ferry_exchange_stats;

#define FERRY_EXCHANGE_STATS_INIT \
  { sizeof(ferry_exchange_stats), FERRY_EXCHANGE_STATS_MAGIC, 0, 0, 0, 0 }

FERRY_API ferry_status ferry_all_to_all_stats(ferry_all_to_all* a2a, ferry_exchange_stats* stats);

/// What this rank has had from each source rank, three arrays [R] that the caller owns; one that is
/// NULL is not written. `ranks`: R. Counted since the lane was made; nothing sets them back.
/// Waits are nanoseconds in which this source was the one waited for, for its tokens and for its
/// results: a rank waits for its sources one after the other, so a time counts for one of them.
/// Rows: (token, slot) pairs that arrived.
FERRY_API ferry_status ferry_all_to_all_source_stats(ferry_all_to_all* a2a,
                                                     int32_t ranks,
                                                     uint64_t* dispatch_wait_ns,
                                                     uint64_t* combine_wait_ns,
                                                     uint64_t* rows_received);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
