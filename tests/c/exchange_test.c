/* All-to-all, placements and moe_forward: every token comes home as often as it was asked to. */
#include <fenv.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "support.h"
#include "tests.h"

enum { kHidden = 64, kTopk = 2, kSlots = 3, kMost = 8 };

static ferry_all_to_all_options options_of(const char* backend) {
  ferry_all_to_all_options o = FERRY_ALL_TO_ALL_OPTIONS_INIT;
  o.backend = backend;
  o.slots_per_rank = kSlots;
  o.topk = kTopk;
  o.hidden = kHidden;
  o.max_tokens = kMost;
  return o;
}

/* Slot s multiplies by s + 1. */
static ferry_status multiply(void* context, const ferry_expert_rows* rows) {
  const int rank = *(const int*)context;
  CHECK(rows->size == sizeof *rows && rows->hidden == kHidden && rows->in_type == FERRY_WIRE_F32);
  for (int slot = 0; slot < rows->num_slots; ++slot)
    for (int64_t i = rows->offsets[slot]; i < rows->offsets[slot] + rows->counts[slot]; ++i) {
      const float* in = ferry_expert_rows_in(rows, i);
      float* out = ferry_expert_rows_out(rows, i);
      for (int h = 0; h < kHidden; ++h) out[h] = in[h] * (float)(rank * kSlots + slot + 1);
    }
  return FERRY_OK;
}

struct tokens {
  int count;
  float rows[kMost][kHidden], out[kMost][kHidden], weights[kMost][kTopk];
  int32_t slots[kMost][kTopk];
};

/* Rank r has r * 3 tokens at most kMost (none on rank 0); one choice in five is none. */
static struct tokens tokens_of(ferry_comm* comm, int seed) {
  struct tokens t;
  const int rank = rank_of(comm), slots = ranks_of(comm) * kSlots;
  memset(&t, 0, sizeof t);
  t.count = rank * 3 < kMost ? rank * 3 : kMost;
  for (int i = 0; i < t.count; ++i) {
    for (int h = 0; h < kHidden; ++h) t.rows[i][h] = (float)(rank * 100 + i * 10 + h);
    for (int k = 0; k < kTopk; ++k) {
      const int x = rank + i * 7 + k * 3 + seed;
      t.slots[i][k] = x % 5 == 0 ? -1 : x % slots;
      t.weights[i][k] = (float)(k + 1);
    }
  }
  return t;
}

static void check_sums(const struct tokens* t, float times) {
  for (int i = 0; i < t->count; ++i) {
    float factor = 0;
    for (int k = 0; k < kTopk; ++k)
      factor += t->slots[i][k] < 0 ? 0 : t->weights[i][k] * (float)(t->slots[i][k] + 1);
    for (int h = 0; h < kHidden; ++h) CHECK(t->out[i][h] == times * factor * t->rows[i][h]);
  }
}

static ferry_dispatch_input input_of(const struct tokens* t) {
  ferry_dispatch_input in = FERRY_DISPATCH_INPUT_INIT;
  in.rows = t->rows;
  in.stride = sizeof t->rows[0];
  in.tokens = t->count;
  in.slots = t->slots[0];
  in.weights = t->weights[0];
  return in;
}

static ferry_combine_output output_of(struct tokens* t) {
  ferry_combine_output out = FERRY_COMBINE_OUTPUT_INIT;
  out.rows = t->out;
  out.stride = sizeof t->out[0];
  out.weights = t->weights[0];
  return out;
}

static void exchange_once(ferry_all_to_all* a2a,
                          struct tokens* t,
                          int rank,
                          const ferry_routing* kept,
                          ferry_routing** keep) {
  ferry_dispatch_input in = input_of(t);
  const ferry_combine_output out = output_of(t);
  ferry_expert_rows rows = FERRY_EXPERT_ROWS_INIT;
  int32_t ready = 0, chunks = 0;
  in.routing = kept;
  OK(ferry_all_to_all_dispatch_send(a2a, &in));
  while (!ready) OK(ferry_all_to_all_poll(a2a, &ready));
  OK(ferry_all_to_all_dispatch_recv(a2a, &rows));
  OK(multiply(&rank, &rows));
  if (keep != NULL) OK(ferry_all_to_all_keep_routing(a2a, keep));
  OK(ferry_all_to_all_chunks_of_all(a2a, &chunks));
  CHECK(chunks == 1);
  OK(ferry_all_to_all_combine_send(a2a));
  OK(ferry_all_to_all_combine_recv(a2a, &out));
  check_sums(t, 1);
}

void exchange_on(ferry_comm* comm, void* context) {
  const char* const* backend = context;
  int rank = rank_of(comm);
  for (; *backend != NULL; ++backend) {
    const ferry_all_to_all_options o = options_of(*backend);
    ferry_all_to_all* a2a = NULL;
    ferry_routing* kept = NULL;
    uint64_t bytes = 0;
    OK(ferry_all_to_all_mem_size(comm, &o, &bytes));
    CHECK(bytes > 0);
    OK(ferry_all_to_all_create(comm, &o, &a2a));
    FAILS(FERRY_OUT_OF_ORDER, "is still there", ferry_comm_destroy(comm));
    struct tokens t = tokens_of(comm, 1);
    exchange_once(a2a, &t, rank, NULL, &kept);
    exchange_once(a2a, &t, rank, kept, NULL);
    OK(ferry_routing_destroy(kept));
    /* Tiles, and rows in the registered input. */
    t = tokens_of(comm, 2);
    ferry_dispatch_input in = input_of(&t);
    void* registered = NULL;
    OK(ferry_all_to_all_registered_input(a2a, &registered, &in.stride));
    for (int i = 0; i < t.count; ++i)
      memcpy((char*)registered + i * in.stride, t.rows[i], sizeof t.rows[i]);
    in.rows = registered;
    ferry_combine_output out = output_of(&t);
    out.accumulate = 1; /* onto zeros */
    OK(ferry_all_to_all_dispatch_send(a2a, &in));
    OK(ferry_all_to_all_dispatch_recv_with(a2a, multiply, &rank));
    OK(ferry_all_to_all_combine_send(a2a));
    OK(ferry_all_to_all_combine_recv(a2a, &out));
    check_sums(&t, 1);
    ferry_exchange_stats stats = FERRY_EXCHANGE_STATS_INIT;
    OK(ferry_all_to_all_stats(a2a, &stats));
    CHECK(stats.exchanges == 3);
    ferry_comm_info info = FERRY_COMM_INFO_INIT;
    OK(ferry_comm_info_get(comm, &info));
    uint64_t waits[64];
    uint64_t arrived[64];
    CHECK(info.num_ranks <= 64);
    OK(ferry_all_to_all_source_stats(a2a, info.num_ranks, waits, NULL, arrived));
    CHECK(waits[rank] == 0);
    FAILS(FERRY_INVALID,
          "arrays of 65 ranks",
          ferry_all_to_all_source_stats(a2a, 65, NULL, NULL, NULL));
    OK(ferry_all_to_all_destroy(a2a));
  }
}

void test_all_to_all(void) {
  const char* backends[] = {
      "pplx", "deepep", "alltoallv", "none", "mooncake", "ascend_fuseep", "auto", NULL};
  int statuses[3];
  for (int ranks = 1; ranks <= 4; ranks += 3) on_threads(ranks, exchange_on, backends);
  on_processes(3, exchange_on, backends, statuses);
}

static void wrong_options(ferry_comm* comm) {
  ferry_all_to_all* a2a = NULL;
  uint64_t bytes = 0;
  ferry_all_to_all_options o = options_of("pplx");
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_all_to_all_create(NULL, &o, &a2a));
  FAILS(FERRY_INVALID, "options is NULL", ferry_all_to_all_create(comm, NULL, &a2a));
  FAILS(FERRY_INVALID, "out is NULL", ferry_all_to_all_create(comm, &o, NULL));
  FAILS(FERRY_INVALID, "bytes is NULL", ferry_all_to_all_mem_size(comm, &o, NULL));
#define WRONG(member, value, text)                                         \
  o = options_of("pplx");                                                  \
  o.member = value;                                                        \
  FAILS(FERRY_INVALID, text, ferry_all_to_all_create(comm, &o, &a2a));     \
  FAILS(FERRY_INVALID, text, ferry_all_to_all_mem_size(comm, &o, &bytes)); \
  CHECK(a2a == NULL)
  WRONG(size, 8, "ferry_all_to_all_options: 8 bytes");
  WRONG(magic, 0, "FERRY_ALL_TO_ALL_OPTIONS_INIT");
  WRONG(backend, "tram", "tram");
  WRONG(deepep_mode, "loud", "loud");
  WRONG(slots_per_rank, 0, "slots_per_rank is 0");
  WRONG(topk, -1, "topk is -1");
  WRONG(hidden, 0, "hidden is 0");
  WRONG(max_tokens, 0, "max_tokens is 0");
  WRONG(tp, 0, "tp is 0");
  WRONG(tp, 2, "do not make groups of tp 2");
  WRONG(row_alignment, 0, "row_alignment is 0");
  WRONG(dispatch_wire, 6, "dispatch_wire is 6");
  WRONG(expert_type, -1, "expert_type is -1");
  WRONG(expert_type, FERRY_WIRE_FP8, "quantised rows are delivered only as they travelled");
  WRONG(combine_wire, 6, "combine_wire is 6");
  WRONG(format, 4, "format is 4");
  WRONG(on_dead_rank, 3, "on_dead_rank is 3");
  WRONG(timeout_s, -1, "timeout_s is -1");
  WRONG(place.memory, FERRY_HOST_PINNED, "host_pinned memory");
  WRONG(place.memory, FERRY_DEVICE, "device memory: ");
#undef WRONG
}

static void wrong_calls(ferry_comm* comm, void* context) {
  (void)context;
  wrong_options(comm);
  int rank = 0;
  ferry_all_to_all* a2a = NULL;
  ferry_routing* kept = NULL;
  const ferry_all_to_all_options o = options_of("pplx");
  OK(ferry_all_to_all_create(comm, &o, &a2a));
  struct tokens t = tokens_of(comm, 1);
  t.count = 2;
  ferry_dispatch_input in;
  ferry_expert_rows rows = FERRY_EXPERT_ROWS_INIT;
  ferry_combine_output out = output_of(&t);
  int32_t number = 0;
  const int32_t* lost = NULL;
  FAILS(FERRY_INVALID, "the all-to-all is NULL", ferry_all_to_all_combine_send(NULL));
  FAILS(FERRY_OUT_OF_ORDER,
        "dispatch_recv called out of turn, after combine_recv, or nothing",
        ferry_all_to_all_dispatch_recv(a2a, &rows));
  FAILS(FERRY_OUT_OF_ORDER,
        "dispatch_recv_with called",
        ferry_all_to_all_dispatch_recv_with(a2a, multiply, &rank));
  FAILS(FERRY_OUT_OF_ORDER, "combine_send called", ferry_all_to_all_combine_send(a2a));
  FAILS(FERRY_OUT_OF_ORDER, "combine_recv called", ferry_all_to_all_combine_recv(a2a, &out));
  FAILS(FERRY_OUT_OF_ORDER, "poll called", ferry_all_to_all_poll(a2a, &number));
  FAILS(FERRY_OUT_OF_ORDER, "keep_routing called", ferry_all_to_all_keep_routing(a2a, &kept));
  FAILS(FERRY_INVALID, "ferry_dispatch_input is NULL", ferry_all_to_all_dispatch_send(a2a, NULL));
#define WRONG(member, value, text) \
  in = input_of(&t);               \
  in.member = value;               \
  FAILS(FERRY_INVALID, text, ferry_all_to_all_dispatch_send(a2a, &in))
  WRONG(magic, FERRY_COMBINE_OUTPUT_MAGIC, "FERRY_DISPATCH_INPUT_INIT");
  WRONG(rows, NULL, "rows is NULL, 2 rows expected");
  WRONG(slots, NULL, "slots is NULL, 4 expected");
  WRONG(tokens, -1, "-1 tokens");
  WRONG(tokens, kMost + 1, "9 tokens; 0 to 8");
  WRONG(chunks, 0, "0 chunks");
  WRONG(num_tokens, &t.slots[0][0], "num_tokens is for device memory");
  WRONG(type, 3, "type is 3");
  WRONG(timeout_s, NAN, "timeout_s is nan");
  WRONG(place.queue, &t, "with a queue");
#undef WRONG
  t.slots[1][1] = kSlots;
  in = input_of(&t);
  FAILS(FERRY_INVALID,
        "token 1: choice 1 is slot 3, outside 0..2",
        ferry_all_to_all_dispatch_send(a2a, &in));
  t.slots[1][1] = 2;
  OK(ferry_all_to_all_dispatch_send(a2a, &in)); /* none of that has hurt */
  FAILS(FERRY_OUT_OF_ORDER,
        "dispatch_send called out of turn, after dispatch_send",
        ferry_all_to_all_dispatch_send(a2a, &in));
  FAILS(FERRY_INVALID, "ready is NULL", ferry_all_to_all_poll(a2a, NULL));
  FAILS(FERRY_INVALID, "experts is NULL", ferry_all_to_all_dispatch_recv_with(a2a, NULL, NULL));
  rows.size = 16;
  FAILS(FERRY_INVALID, "ferry_expert_rows: 16 bytes", ferry_all_to_all_dispatch_recv(a2a, &rows));
  rows.size = sizeof rows;
  OK(ferry_all_to_all_dispatch_recv(a2a, &rows));
  FAILS(FERRY_OUT_OF_ORDER,
        "poll called out of turn, after dispatch_recv",
        ferry_all_to_all_poll(a2a, &number));
  FAILS(FERRY_INVALID, "out is NULL", ferry_all_to_all_keep_routing(a2a, NULL));
  OK(ferry_all_to_all_keep_routing(a2a, &kept));
  OK(multiply(&rank, &rows));
  OK(ferry_all_to_all_combine_send(a2a));
  out.stride = kHidden;
  FAILS(FERRY_INVALID,
        "a stride of 64 bytes; a row that is written takes 256",
        ferry_all_to_all_combine_recv(a2a, &out));
  out = output_of(&t);
  out.weights = NULL;
  FAILS(FERRY_INVALID, "weights is NULL", ferry_all_to_all_combine_recv(a2a, &out));
  out = output_of(&t);
  OK(ferry_all_to_all_combine_recv(a2a, &out));
  check_sums(&t, 1);
  t.count = 1;
  in = input_of(&t);
  in.routing = kept;
  FAILS(FERRY_INVALID,
        "1 tokens with the kept routing of 2",
        ferry_all_to_all_dispatch_send(a2a, &in));
  OK(ferry_routing_destroy(kept));
  FAILS(FERRY_INVALID, "tokens is NULL", ferry_all_to_all_lost_tokens(a2a, NULL, &number));
  FAILS(FERRY_INVALID, "count is NULL", ferry_all_to_all_lost_tokens(a2a, &lost, NULL));
  FAILS(FERRY_INVALID, "chunks is NULL", ferry_all_to_all_chunks_of_all(a2a, NULL));
  FAILS(FERRY_INVALID, "ferry_exchange_stats is NULL", ferry_all_to_all_stats(a2a, NULL));
  FAILS(FERRY_INVALID, "rows is NULL", ferry_all_to_all_registered_input(a2a, NULL, NULL));
  OK(ferry_all_to_all_destroy(a2a));
  OK(ferry_all_to_all_destroy(NULL));
  OK(ferry_routing_destroy(NULL));
}

void test_all_to_all_errors(void) { on_threads(1, wrong_calls, NULL); }

/* Rank 1 dies; the others' tokens for it are lost, and they go on. */
static void mask(ferry_comm* comm, void* context) {
  (void)context;
  int rank = rank_of(comm);
  ferry_all_to_all_options o = options_of("mooncake");
  ferry_all_to_all* a2a = NULL;
  OK(ferry_all_to_all_create(comm, &o, &a2a));
  struct tokens t = tokens_of(comm, 1);
  if (rank == 1) kill(getpid(), SIGKILL);
  const ferry_dispatch_input in = input_of(&t);
  const ferry_combine_output out = output_of(&t);
  uint8_t masked[3];
  const int32_t* lost = NULL;
  int32_t num_lost = 0, expected = 0;
  OK(ferry_all_to_all_dispatch_send(a2a, &in));
  OK(ferry_all_to_all_dispatch_recv_with(a2a, multiply, &rank));
  OK(ferry_all_to_all_combine_send(a2a));
  OK(ferry_all_to_all_combine_recv(a2a, &out));
  OK(ferry_all_to_all_lost_tokens(a2a, &lost, &num_lost));
  for (int i = 0; i < t.count; ++i)
    expected += t.slots[i][0] / kSlots == 1 || t.slots[i][1] / kSlots == 1;
  CHECK(num_lost == expected && (rank == 0 || num_lost > 0));
  OK(ferry_comm_masked(comm, masked, 3));
  CHECK(!masked[0] && masked[1] && !masked[2]);
  OK(ferry_comm_mask(comm, 1)); /* again, by name */
  OK(ferry_all_to_all_destroy(a2a));
}

void test_all_to_all_mask(void) {
  int statuses[3];
  on_processes(3, mask, NULL, statuses);
  CHECK(statuses[1] == SIGKILL);
}

/* --- moe_forward ------------------------------------------------------------------------------ */

struct seen {
  int rank, calls, rounding;
  ferry_moe* moe;
  ferry_comm* comm;
  ferry_status answer;
};

static ferry_status look_and_multiply(void* context, const ferry_expert_rows* rows) {
  struct seen* s = context;
  volatile float least = 1e-45F; /* a denormal: flushed, it would be 0 */
  volatile float twice = least + least;
  ++s->calls;
  s->rounding = fegetround();
  CHECK(twice != 0);
  FAILS(FERRY_OUT_OF_ORDER, "another call on this comm", ferry_comm_barrier(s->comm, 1));
  CHECK(multiply(&s->rank, rows) == FERRY_OK);
  return s->answer;
}

static ferry_moe* make_moe(ferry_comm* comm, const char* backend) {
  ferry_moe_options o = FERRY_MOE_OPTIONS_INIT;
  ferry_all_to_all_options x = options_of(backend);
  ferry_moe* moe = NULL;
  uint64_t bytes = 0;
  int32_t slots = 0;
  o.experts = ranks_of(comm) * kSlots;
  o.topk = kTopk;
  o.renormalize = 1;
  x.topk = x.slots_per_rank = 0;
  x.row_alignment = 1; /* where rows are ragged, as with alltoallv */
  OK(ferry_moe_mem_size(comm, &o, &x, &bytes));
  CHECK(bytes > 0);
  OK(ferry_moe_create(comm, &o, &x, &moe));
  OK(ferry_moe_slots_per_rank(moe, &slots));
  CHECK(slots == kSlots);
  return moe;
}

static ferry_moe_tokens moe_tokens(struct tokens* t) {
  ferry_moe_tokens m = FERRY_MOE_TOKENS_INIT;
  m.hidden = t->rows;
  m.stride = sizeof t->rows[0];
  m.out = t->out;
  m.out_stride = sizeof t->out[0];
  m.tokens = t->count;
  return m;
}

void moe_forward_on(ferry_comm* comm, void* context) {
  struct seen s = {rank_of(comm), 0, -1, make_moe(comm, *(const char**)context), comm, FERRY_OK};
  struct tokens t = tokens_of(comm, 1);
  ferry_moe_tokens m = moe_tokens(&t);
  ferry_topk topk = FERRY_TOPK_INIT;
  int64_t wide[kMost][kTopk];
  for (int i = 0; i < t.count; ++i)
    for (int k = 0; k < kTopk; ++k) wide[i][k] = t.slots[i][k];
  topk.ids = wide;
  topk.id_type = FERRY_I64;
  topk.ids_stride = sizeof wide[0];
  topk.weights = t.weights[0];
  topk.weights_stride = sizeof t.weights[0];
  fesetround(FE_DOWNWARD);
  OK(ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  CHECK(fegetround() == FE_DOWNWARD && s.rounding == FE_DOWNWARD && s.calls >= 1);
  fesetround(FE_TONEAREST);
  check_sums(&t, 1);
  m.accumulate = 1; /* with slots instead, on top */
  topk.physical = 1;
  OK(ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  check_sums(&t, 2);
  /* From logits: expert 1 and 2 win by far, with the same weight: 1.5 times x 2 and x 3. */
  float logits[kMost][16];
  memset(logits, 0, sizeof logits);
  for (int i = 0; i < kMost; ++i) logits[i][1] = logits[i][2] = 50;
  ferry_router_logits l = FERRY_ROUTER_LOGITS_INIT;
  l.rows = logits;
  l.stride = sizeof logits[0];
  m.accumulate = 0;
  OK(ferry_moe_forward(s.moe, &m, &l, look_and_multiply, &s));
  for (int i = 0; i < t.count; ++i)
    for (int h = 0; h < kHidden; ++h) CHECK(t.out[i][h] == 2.5F * t.rows[i][h]);
  ferry_exchange_stats stats = FERRY_EXCHANGE_STATS_INIT;
  const int32_t* lost = NULL;
  int32_t num_lost = -1;
  OK(ferry_moe_stats(s.moe, &stats));
  OK(ferry_moe_lost_tokens(s.moe, &lost, &num_lost));
  CHECK(stats.exchanges == 3 && num_lost == 0);
  OK(ferry_moe_destroy(s.moe));
}

void test_moe_forward(void) {
  const char* backends[] = {"pplx", "ascend_fuseep", "alltoallv"};
  int statuses[3];
  for (int b = 0; b < 3; ++b) {
    on_threads(4, moe_forward_on, &backends[b]);
    on_processes(3, moe_forward_on, &backends[b], statuses);
  }
}

static void wrong_moe(ferry_comm* comm, void* context) {
  (void)context;
  struct seen s = {0, 0, -1, make_moe(comm, "pplx"), comm, FERRY_OK};
  struct tokens t = tokens_of(comm, 1);
  t.count = 2;
  ferry_moe_options o = FERRY_MOE_OPTIONS_INIT;
  ferry_all_to_all_options x = options_of("pplx");
  ferry_moe_tokens m = moe_tokens(&t);
  ferry_topk topk = FERRY_TOPK_INIT;
  ferry_router_logits l = FERRY_ROUTER_LOGITS_INIT;
  ferry_moe* moe = NULL;
  FAILS(FERRY_INVALID, "top-0 of 0 experts", ferry_moe_create(comm, &o, &x, &moe));
  o.experts = kSlots;
  o.topk = 3;
  FAILS(FERRY_INVALID,
        "topk is 2 of the exchange and 3 of the router",
        ferry_moe_create(comm, &o, &x, &moe));
  o.topk = kTopk;
  o.groups = 2;
  FAILS(FERRY_INVALID, "best 1 of 2 groups", ferry_moe_create(comm, &o, &x, &moe));
  o.groups = 1;
  o.score = 2;
  FAILS(FERRY_INVALID, "score is 2", ferry_moe_create(comm, &o, &x, &moe));
  o.score = 0;
  o.takes_padded = 0;
  FAILS(FERRY_INVALID,
        "the caller's experts cannot read padded rows",
        ferry_moe_create(comm, &o, &x, &moe));
  o.takes_padded = 1;
  x.slots_per_rank = 4;
  FAILS(FERRY_INVALID,
        "slots_per_rank is 4; these experts take 3",
        ferry_moe_create(comm, &o, &x, &moe));
  FAILS(FERRY_INVALID, "exchange is NULL", ferry_moe_create(comm, &o, NULL, &moe));
  FAILS(FERRY_INVALID, "the moe is NULL", ferry_moe_forward(NULL, &m, &l, look_and_multiply, &s));
  FAILS(FERRY_INVALID, "experts is NULL", ferry_moe_forward(s.moe, &m, &l, NULL, &s));
  FAILS(FERRY_INVALID, "logits is NULL", ferry_moe_forward(s.moe, &m, &l, look_and_multiply, &s));
  FAILS(FERRY_INVALID,
        "ids is NULL",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  t.slots[0][0] = 3;
  topk.ids = t.slots;
  topk.ids_stride = sizeof t.slots[0];
  FAILS(FERRY_INVALID,
        "weights is NULL",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  topk.weights = t.weights[0];
  topk.weights_stride = sizeof t.weights[0];
  FAILS(FERRY_INVALID,
        "token 0: choice 0 is expert 3",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  topk.id_type = 3;
  FAILS(FERRY_INVALID,
        "id_type is 3",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  topk.id_type = FERRY_I32;
  topk.place.memory = FERRY_DEVICE;
  FAILS(FERRY_INVALID,
        "ferry_topk",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  topk.place.memory = FERRY_HOST;
  l.place.memory = FERRY_DEVICE;
  FAILS(FERRY_INVALID,
        "ferry_router_logits",
        ferry_moe_forward(s.moe, &m, &l, look_and_multiply, &s));
  t.slots[0][0] = 0;
  ferry_placement_options p = FERRY_PLACEMENT_OPTIONS_INIT;
  ferry_placement* placement = NULL;
  FAILS(FERRY_INVALID, "experts is 0", ferry_placement_create(&p, &placement));
  p.experts = 4;
  p.source = 9;
  FAILS(FERRY_INVALID, "9", ferry_placement_create(&p, &placement));
  p.source = -1;
  OK(ferry_placement_create(&p, &placement));
  int32_t slots_of[2], experts_of[2] = {3, 4};
  FAILS(FERRY_INVALID,
        "expert 4, outside 0..3",
        ferry_placement_place(placement, experts_of, 1, 2, 0, slots_of));
  experts_of[1] = -1;
  OK(ferry_placement_place(placement, experts_of, 1, 2, 0, slots_of));
  CHECK(slots_of[0] == 3 && slots_of[1] == -1);
  m.placement = placement;
  FAILS(FERRY_INVALID,
        "a placement of 4 experts in 4 slots, room for 3 in 3",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  m.placement = NULL;
  OK(ferry_placement_destroy(placement));
  CHECK(s.calls == 0);
  OK(ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  /* A function that fails ends the exchange, and the comm with it. */
  s.answer = FERRY_MODEL;
  FAILS(FERRY_CALLBACK,
        "the experts' function has returned FERRY_MODEL",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  FAILS(FERRY_CALLBACK,
        "has returned FERRY_MODEL",
        ferry_moe_forward_from_topk(s.moe, &m, &topk, look_and_multiply, &s));
  OK(ferry_moe_destroy(s.moe));
}

void test_moe_errors(void) { on_threads(1, wrong_moe, NULL); }

/* --- Rounds ----------------------------------------------------------------------------------- */

static void rounds(ferry_comm* comm, void* context) {
  const int count = *(int*)context;
  int rank = rank_of(comm);
  long descriptors = 0, tasks = 0, kb = 0;
  for (int i = 0; i < count; ++i) {
    const ferry_all_to_all_options o = options_of("pplx");
    ferry_comm* part = NULL;
    ferry_all_to_all* a2a = NULL;
    struct tokens t = tokens_of(comm, i);
    OK(ferry_comm_split(comm, 0, 0, &part));
    OK(ferry_all_to_all_create(part, &o, &a2a));
    exchange_once(a2a, &t, rank, NULL, NULL);
    OK(ferry_all_to_all_destroy(a2a));
    OK(ferry_comm_destroy(part));
    if (i != count / 4) continue; /* warm */
    descriptors = open_descriptors();
    tasks = threads();
    kb = resident_kb();
  }
  descriptors += ranks_of(comm) - 1; /* of each peer, from the first long wait for it on */
  /* A helper of the last join may still be on its way out. */
  const struct timespec moment = {0, 10000000};
  for (int i = 0; i < 500 && (open_descriptors() > descriptors || threads() > tasks); ++i)
    nanosleep(&moment, NULL);
  CHECK(open_descriptors() <= descriptors && threads() <= tasks);
#ifdef FERRY_SANITIZE
  (void)kb; /* what is freed stays in quarantine */
#else
  CHECK(resident_kb() < kb + 1024);
#endif
}

void test_rounds(void) {
  int statuses[2], count = long_tests() ? 10000 : 200;
  on_processes(2, rounds, &count, statuses);
}
