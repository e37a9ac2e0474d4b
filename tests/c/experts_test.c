/* Our experts on packed weights, and plans of where experts lie. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "tests.h"

enum { kHidden = 40, kInter = 24, kSlots = 3, kRows = 7 };

struct expert {
  float gate[kInter][kHidden], up[kInter][kHidden], down[kHidden][kInter];
  float gate_bias[kInter], up_bias[kInter], down_bias[kHidden];
};

static float number(int i) { return sinf((float)i) / 4 + 0.25F; }

static void fill(float* to, size_t count, int seed) {
  for (size_t i = 0; i < count; ++i) to[i] = number(seed + (int)i * 3);
}

static void fill_expert(struct expert* e, int seed) {
  fill(&e->gate[0][0], kInter * kHidden, seed);
  fill(&e->up[0][0], kInter * kHidden, seed + 1);
  fill(&e->down[0][0], kInter * kHidden, seed + 2);
  fill(e->gate_bias, kInter, seed + 5);
  fill(e->up_bias, kInter, seed + 6);
  fill(e->down_bias, kHidden, seed + 7);
}

static ferry_expert_weights weights_of(const struct expert* e, int biased) {
  ferry_expert_weights w = FERRY_EXPERT_WEIGHTS_INIT;
  w.gate = e->gate;
  w.up = e->up;
  w.down = e->down;
  if (!biased) return w;
  w.gate_bias = e->gate_bias;
  w.up_bias = e->up_bias;
  w.down_bias = e->down_bias;
  return w;
}

/* The definition, in double. */
static void reference(const struct expert* e, int biased, const float* x, double* y) {
  double between[kInter];
  for (int i = 0; i < kInter; ++i) {
    double g = biased ? e->gate_bias[i] : 0, u = biased ? e->up_bias[i] : 0;
    for (int h = 0; h < kHidden; ++h) {
      g += (double)e->gate[i][h] * x[h];
      u += (double)e->up[i][h] * x[h];
    }
    between[i] = g / (1 + exp(-g)) * u;
  }
  for (int h = 0; h < kHidden; ++h) {
    y[h] = biased ? e->down_bias[h] : 0;
    for (int i = 0; i < kInter; ++i) y[h] += between[i] * e->down[h][i];
  }
}

static uint16_t bf16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static ferry_experts_options options_of(int weights) {
  ferry_experts_options o = FERRY_EXPERTS_OPTIONS_INIT;
  o.slots = kSlots;
  o.hidden = kHidden;
  o.inter = kInter;
  o.weights = weights;
  o.threads = 2;
  o.max_rows = 4; /* fewer than there are: in turns */
  return o;
}

struct batch {
  float in[kRows][kHidden], out[kRows][kHidden];
  uint16_t in_bf16[kRows][kHidden];
  int32_t counts[kSlots];
  int64_t offsets[kSlots];
};

/* Slot 1 has nothing. */
static ferry_expert_rows rows_of(struct batch* b, int weights) {
  ferry_expert_rows r = FERRY_EXPERT_ROWS_INIT;
  const int32_t counts[kSlots] = {2, 0, 5};
  const int64_t offsets[kSlots] = {0, 2, 2};
  memcpy(b->counts, counts, sizeof counts);
  memcpy(b->offsets, offsets, sizeof offsets);
  fill(&b->in[0][0], kRows * kHidden, 900);
  for (int i = 0; i < kRows; ++i)
    for (int h = 0; h < kHidden; ++h) b->in_bf16[i][h] = bf16_of(b->in[i][h]);
  r.format = FERRY_RAGGED;
  r.num_slots = kSlots;
  r.hidden = kHidden;
  r.in_type = weights == FERRY_WEIGHTS_F32 ? FERRY_WIRE_F32 : FERRY_WIRE_BF16;
  r.counts = b->counts;
  r.offsets = b->offsets;
  r.in = weights == FERRY_WEIGHTS_F32 ? (const void*)b->in : (const void*)b->in_bf16;
  r.in_stride = weights == FERRY_WEIGHTS_F32 ? sizeof b->in[0] : sizeof b->in_bf16[0];
  r.out = b->out;
  r.out_stride = sizeof b->out[0];
  return r;
}

static void compute(int weights, int biased, double tolerance) {
  static struct expert all[kSlots];
  struct batch b;
  ferry_experts* experts = NULL;
  const ferry_experts_options o = options_of(weights);
  ferry_expert_rows rows = rows_of(&b, weights);
  OK(ferry_experts_create(&o, &experts));
  for (int s = 0; s < kSlots; s += 2) {
    fill_expert(&all[s], 1); /* over what was there */
    ferry_expert_weights w = weights_of(&all[s], biased);
    OK(ferry_experts_set(experts, s, &w));
    fill_expert(&all[s], 100 * (s + 1));
    OK(ferry_experts_set(experts, s, &w));
  }
  OK(ferry_experts_run(experts, &rows));
  double off = 0, size = 0;
  for (int i = 0; i < kRows; ++i) {
    double y[kHidden];
    reference(&all[i < 2 ? 0 : 2], biased, b.in[i], y);
    for (int h = 0; h < kHidden; ++h) {
      off = fmax(off, fabs(y[h] - (double)b.out[i][h]));
      size = fmax(size, fabs(y[h]));
    }
  }
  CHECK(size > 10 && off <= tolerance * size);
  OK(ferry_experts_destroy(experts));
}

void test_experts(void) {
  const double tolerances[] = {1e-6, 0.005, 0.01, 0.04, 0.08, 0.25};
  for (int weights = FERRY_WEIGHTS_F32; weights <= FERRY_WEIGHTS_MXFP4; ++weights)
    for (int biased = 0; biased < 2; ++biased) compute(weights, biased, tolerances[weights]);
}

void test_experts_errors(void) {
  static struct expert e;
  struct batch b;
  ferry_experts* experts = NULL;
  ferry_experts_options o;
  ferry_expert_weights w;
  ferry_expert_rows r = rows_of(&b, FERRY_WEIGHTS_F32);
  fill_expert(&e, 1);
#define WRONG(member, value, text)   \
  o = options_of(FERRY_WEIGHTS_F32); \
  o.member = value;                  \
  FAILS(FERRY_INVALID, text, ferry_experts_create(&o, &experts))
  WRONG(magic, 1, "FERRY_EXPERTS_OPTIONS_INIT");
  WRONG(slots, 0, "0 slots");
  WRONG(hidden, 0, "hidden 0");
  WRONG(inter, -1, "inter -1");
  WRONG(max_rows, 0, "max_rows 0");
  WRONG(weights, FERRY_WEIGHTS_MXFP4 + 1, "weights is 6");
  WRONG(gating, 2, "gating is 2");
  WRONG(threads, 0, "0 threads");
  WRONG(place.memory, FERRY_DEVICE, "device memory");
#undef WRONG
  o = options_of(FERRY_WEIGHTS_F32);
  FAILS(FERRY_INVALID, "out is NULL", ferry_experts_create(&o, NULL));
  OK(ferry_experts_create(&o, &experts));
  w = weights_of(&e, 0);
  FAILS(FERRY_INVALID, "the experts is NULL", ferry_experts_set(NULL, 0, &w));
  FAILS(FERRY_INVALID, "slot 3; 0 to 2", ferry_experts_set(experts, 3, &w));
  w.up = NULL;
  FAILS(FERRY_INVALID, "up is NULL", ferry_experts_set(experts, 0, &w));
  w = weights_of(&e, 1);
  w.down_bias = NULL;
  FAILS(FERRY_INVALID, "give all three or none", ferry_experts_set(experts, 0, &w));
  FAILS(FERRY_INVALID, "ferry_expert_weights is NULL", ferry_experts_set(experts, 0, NULL));
  w = weights_of(&e, 1);
  w.place.memory = FERRY_DEVICE;
  FAILS(FERRY_INVALID, "ferry_expert_weights: device", ferry_experts_set(experts, 0, &w));
  FAILS(FERRY_INVALID, "2 rows for slot 0, which has no weights", ferry_experts_run(experts, &r));
  w = weights_of(&e, 0);
  OK(ferry_experts_set(experts, 0, &w));
  OK(ferry_experts_set(experts, 2, &w));
#define WRONG(member, value, text)    \
  r = rows_of(&b, FERRY_WEIGHTS_F32); \
  r.member = value;                   \
  FAILS(FERRY_INVALID, text, ferry_experts_run(experts, &r))
  WRONG(size, 0, "0 bytes");
  WRONG(in_type, FERRY_WIRE_BF16, "rows of bf16 x 40; experts of f32 weights take f32 x 40");
  WRONG(hidden, 41, "f32 x 41");
  WRONG(out_type, FERRY_F16, "out_type is f16");
  WRONG(num_slots, 2, "rows for 2 slots; there are 3");
  WRONG(weights, b.in[0], "rows with weights, experts that want none");
  WRONG(counts, NULL, "counts is NULL");
  WRONG(in, NULL, "in or out is NULL");
  WRONG(out, NULL, "in or out is NULL");
#undef WRONG
  r = rows_of(&b, FERRY_WEIGHTS_F32);
  b.counts[1] = -1;
  FAILS(FERRY_INVALID, "slot 1 has -1 rows", ferry_experts_run(experts, &r));
  b.counts[1] = 0;
  OK(ferry_experts_run(experts, &r));
  memset(b.counts, 0, sizeof b.counts); /* no row at all */
  r.in = r.out = NULL;
  OK(ferry_experts_run(experts, &r));
  OK(ferry_experts_destroy(experts));
  OK(ferry_experts_destroy(NULL));
}

/* As a moe_forward's experts: tokens of both ranks to the experts of both. */
static void in_a_layer(ferry_comm* comm, void* context) {
  (void)context;
  const int rank = rank_of(comm);
  ferry_moe_options o = FERRY_MOE_OPTIONS_INIT;
  ferry_all_to_all_options x = FERRY_ALL_TO_ALL_OPTIONS_INIT;
  ferry_experts_options eo = options_of(FERRY_WEIGHTS_F32);
  ferry_moe* moe = NULL;
  ferry_experts* experts = NULL;
  struct expert mine[4]; /* the same on all ranks */
  for (int e = 0; e < 4; ++e) fill_expert(&mine[e], 50 * (e + 1));
  o.experts = 4;
  o.topk = 2;
  x.hidden = kHidden;
  x.max_tokens = 4;
  eo.slots = 2;
  OK(ferry_moe_create(comm, &o, &x, &moe));
  OK(ferry_experts_create(&eo, &experts));
  for (int s = 0; s < 2; ++s) {
    const ferry_expert_weights w = weights_of(&mine[2 * rank + s], 0);
    OK(ferry_experts_set(experts, s, &w));
  }
  float in[kRows][kHidden], out[kRows][kHidden], weights[kRows][2];
  int32_t ids[kRows][2];
  fill(&in[0][0], kRows * kHidden, 77 + rank);
  for (int i = 0; i < kRows; ++i) {
    ids[i][0] = i % 4;
    ids[i][1] = (i + 1 + rank) % 4;
    weights[i][0] = 0.75F;
    weights[i][1] = 0.25F;
  }
  ferry_moe_tokens t = FERRY_MOE_TOKENS_INIT;
  ferry_topk topk = FERRY_TOPK_INIT;
  t.hidden = in;
  t.out = out;
  t.stride = t.out_stride = sizeof in[0];
  t.tokens = kRows; /* more than max_tokens: two exchanges */
  topk.ids = ids;
  topk.ids_stride = sizeof ids[0];
  topk.weights = weights[0];
  topk.weights_stride = sizeof weights[0];
  OK(ferry_moe_forward_from_topk(moe, &t, &topk, ferry_experts_run, experts));
  for (int i = 0; i < kRows; ++i) {
    double first[kHidden], second[kHidden];
    reference(&mine[ids[i][0]], 0, in[i], first);
    reference(&mine[ids[i][1]], 0, in[i], second);
    for (int h = 0; h < kHidden; ++h)
      CHECK(fabs(0.75 * first[h] + 0.25 * second[h] - (double)out[i][h]) < 1e-3);
  }
  OK(ferry_experts_destroy(experts));
  OK(ferry_moe_destroy(moe));
}

void test_experts_in_a_layer(void) {
  int statuses[2];
  on_threads(2, in_a_layer, NULL);
  on_processes(2, in_a_layer, NULL, statuses);
}

/* --- Plans ------------------------------------------------------------------------------------ */

static ferry_plan_options plan_options(const double* load) {
  ferry_plan_options o = FERRY_PLAN_OPTIONS_INIT;
  o.layers = 2;
  o.experts = 4;
  o.ranks = 2;
  o.redundant = 2;
  o.load = load;
  return o;
}

void test_eplb(void) {
  /* Expert 0 has half of layer 0's tokens; layer 1 is even. */
  const double load[8] = {60, 20, 20, 20, 10, 10, 10, 10};
  ferry_plan_options o = plan_options(load);
  ferry_plan* plan = NULL;
  ferry_plan_info info = FERRY_PLAN_INFO_INIT;
  const int32_t *experts = NULL, *sources = NULL;
  const float* shares = NULL;
  o.weighted = 1;
  OK(ferry_plan_create(&o, &plan));
  OK(ferry_plan_info_get(plan, &info));
  CHECK(info.layers == 2 && info.slots == 6 && info.slots_per_rank == 3 && info.duplicates == 0);
  CHECK(info.balance_after >= info.balance_before &&
        info.balance_after <= info.balance_bound + 1e-9);
  int of_expert_0 = 0;
  OK(ferry_plan_layer(plan, 0, &experts, &sources, &shares));
  for (int s = 0; s < info.slots; ++s) {
    of_expert_0 += experts[s] == 0;
    CHECK(experts[s] >= -1 && experts[s] < 4 && sources[s] >= -1 && sources[s] < 6 &&
          shares[s] >= 0);
  }
  CHECK(of_expert_0 == 2); /* one on each rank */
  OK(ferry_plan_layer(plan, 1, NULL, NULL, NULL));
  /* What was planned is where the next plan begins. */
  int32_t current[12];
  for (int l = 0; l < 2; ++l) {
    OK(ferry_plan_layer(plan, l, &experts, NULL, NULL));
    memcpy(current + 6 * l, experts, 6 * sizeof *current);
  }
  OK(ferry_plan_destroy(plan));
  o.current = current;
  o.current_slots = 6;
  o.policy = "incremental";
  OK(ferry_plan_create(&o, &plan));
  OK(ferry_plan_info_get(plan, &info));
  CHECK(info.transfers == 0);
  OK(ferry_plan_destroy(plan));
#define WRONG(member, value, text) \
  o = plan_options(load);          \
  o.member = value;                \
  FAILS(FERRY_INVALID, text, ferry_plan_create(&o, &plan))
  WRONG(magic, 0, "FERRY_PLAN_OPTIONS_INIT");
  WRONG(load, NULL, "load is NULL, 8 expected");
  WRONG(layers, 0, "layers is 0");
  WRONG(experts, 0, "experts is 0");
  WRONG(steps, -1, "steps is -1");
  WRONG(nodes, 3, "nodes");
  WRONG(redundant, -1, "redundant");
  WRONG(uneven, 3, "uneven is 3");
  WRONG(policy, "luck", "luck");
  WRONG(tolerance, NAN, "tolerance nan");
  WRONG(max_transfers, -1, "at most -1 transfers");
  WRONG(current, current, "current_slots is 0");
#undef WRONG
  const double negative[8] = {-1};
  o = plan_options(negative);
  FAILS(FERRY_INVALID, "a load of -1", ferry_plan_create(&o, &plan));
  FAILS(FERRY_INVALID, "out is NULL", ferry_plan_create(&o, NULL));
  FAILS(FERRY_INVALID, "the plan is NULL", ferry_plan_layer(NULL, 0, NULL, NULL, NULL));
  FAILS(FERRY_INVALID, "the plan is NULL", ferry_plan_info_get(NULL, &info));
  o = plan_options(load);
  OK(ferry_plan_create(&o, &plan));
  FAILS(FERRY_INVALID, "layer 2; 0 to 1", ferry_plan_layer(plan, 2, NULL, NULL, NULL));
  FAILS(FERRY_INVALID, "ferry_plan_info is NULL", ferry_plan_info_get(plan, NULL));
  OK(ferry_plan_layer(plan, 0, NULL, NULL, &shares));
  CHECK(shares == NULL);
  OK(ferry_plan_destroy(plan));
  OK(ferry_plan_destroy(NULL));
}
