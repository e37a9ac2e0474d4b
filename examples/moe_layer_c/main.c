/* A MoE layer over the ranks of a shell loop, around experts of our own:
     cc -std=c99 main.c -o moe_layer $(pkg-config --cflags --libs ferry)
     export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500
     for r in 0 1; do RANK=$r ./moe_layer & done; wait */
#include <ferry/ferry.h>
#include <stdio.h>
#include <stdlib.h>

enum { kHidden = 64, kExperts = 8, kTopk = 2, kTokens = 5 };

static void must(ferry_status status) {
  if (status != FERRY_OK) fprintf(stderr, "moe_layer: %s\n", ferry_last_error()), exit(1);
}

/* Every expert doubles its rows; a real one multiplies with the weights of each slot. */
static ferry_status double_rows(void* context, const ferry_expert_rows* rows) {
  for (int slot = 0; slot < rows->num_slots; ++slot)
    for (int64_t i = 0; i < rows->counts[slot]; ++i, ++*(int*)context) {
      const float* in = ferry_expert_rows_in(rows, rows->offsets[slot] + i);
      float* out = ferry_expert_rows_out(rows, rows->offsets[slot] + i);
      for (int h = 0; h < kHidden; ++h) out[h] = 2 * in[h];
    }
  return FERRY_OK;
}

int main(void) {
  ferry_comm_options comm_options = FERRY_COMM_OPTIONS_INIT;
  ferry_moe_options layer = FERRY_MOE_OPTIONS_INIT;
  ferry_all_to_all_options exchange = FERRY_ALL_TO_ALL_OPTIONS_INIT;
  ferry_comm* comm = NULL;
  ferry_moe* moe = NULL;
  must(ferry_comm_create_from_launcher(&comm_options, &comm));
  layer.experts = kExperts;
  layer.topk = kTopk;
  layer.renormalize = 1; /* a token's weights add up to 1: it comes back doubled */
  exchange.hidden = kHidden;
  exchange.max_tokens = kTokens;
  must(ferry_moe_create(comm, &layer, &exchange, &moe));

  static float hidden[kTokens][kHidden], logits[kTokens][kExperts];
  int rows = 0, right = 1;
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHidden; ++h) hidden[t][h] = 1;
    for (int e = 0; e < kExperts; ++e) logits[t][e] = (float)(t * e % 5);
  }
  ferry_moe_tokens tokens = FERRY_MOE_TOKENS_INIT;
  ferry_router_logits routing = FERRY_ROUTER_LOGITS_INIT;
  tokens.hidden = tokens.out = hidden; /* in place */
  tokens.stride = tokens.out_stride = sizeof hidden[0];
  tokens.tokens = kTokens;
  routing.rows = logits;
  routing.stride = sizeof logits[0];
  must(ferry_moe_forward(moe, &tokens, &routing, double_rows, &rows));
  for (int t = 0; t < kTokens; ++t) right &= hidden[t][t] > 1.999F && hidden[t][t] < 2.001F;
  printf("%d rows for the experts of this rank, tokens %s\n", rows, right ? "came back doubled" : "WRONG");
  must(ferry_moe_destroy(moe));
  must(ferry_comm_destroy(comm));
  return !right;
}
