/* A model in this process: the demo model, at FERRY_DEMO_MODEL. */
#include <fenv.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "tests.h"

struct heard {
  ferry_call* call;
  int tokens, finished, lines, cancel_at;
  ferry_status answer;
  char text[1000];
  size_t bytes;
};

static ferry_status hear(void* context, const ferry_token* token) {
  struct heard* h = context;
  volatile float least = 1e-45F;
  volatile float twice = least + least;
  int32_t done = 0;
  CHECK(twice != 0 && token->size == sizeof *token && strlen(token->text) == token->text_bytes);
  FAILS(FERRY_OUT_OF_ORDER, "another wait", ferry_call_wait(h->call, 0, hear, h, &done));
  CHECK(h->bytes + token->text_bytes < sizeof h->text);
  memcpy(h->text + h->bytes, token->text, token->text_bytes);
  h->bytes += token->text_bytes;
  h->finished += token->finish != FERRY_GOES_ON;
  if (++h->tokens == h->cancel_at) OK(ferry_call_cancel(h->call));
  return h->answer;
}

static void count_line(void* context, const char* line) {
  CHECK(strchr(line, '\n') == NULL);
  ++*(int*)context;
}

static ferry_engine_options options_of(void) {
  ferry_engine_options o = FERRY_ENGINE_OPTIONS_INIT;
  o.model = getenv("FERRY_DEMO_MODEL");
  o.ranks = 2;
  o.threads = 1;
  o.kv_memory_fraction = 0.05;
  return o;
}

static void generate(ferry_engine* engine) {
  int32_t ids[32], done = 0;
  size_t count = 0, bytes = 0;
  char back[100];
  struct heard h;
  memset(&h, 0, sizeof h);
  OK(ferry_engine_encode(engine, "12 + 34 =", NULL, 0, &count));
  CHECK(count > 0 && count < 32);
  OK(ferry_engine_encode(engine, "12 + 34 =", ids, 32, &count));
  OK(ferry_engine_decode(engine, ids, count, back, sizeof back, &bytes));
  CHECK(bytes >= 9 && memcmp(back + bytes - 9, "12 + 34 =", 9) == 0);
  ferry_generation g = FERRY_GENERATION_INIT;
  const ferry_prompt prompt = {ids, count};
  g.max_new_tokens = 8;
  g.top_logprobs = 2;
  OK(ferry_engine_submit(engine, &prompt, 1, &g, &h.call));
  OK(ferry_call_wait(h.call, 60, hear, &h, &done));
  CHECK(done && h.finished == 1 && strstr(h.text, "46") != NULL);
  OK(ferry_call_wait(h.call, 60, hear, &h, &done)); /* it is done */
  CHECK(done && h.finished == 1);
  OK(ferry_call_destroy(h.call));
  /* Several choices of two prompts, cancelled from within; a look that waits for nothing. */
  const ferry_prompt two[2] = {{ids, count}, {ids, count}};
  memset(&h, 0, sizeof h);
  h.cancel_at = 3;
  g.choices = 2;
  g.temperature = 1;
  g.ignore_eos = 1;
  g.max_new_tokens = 100;
  OK(ferry_engine_submit(engine, two, 2, &g, &h.call));
  OK(ferry_call_wait(h.call, 0, hear, &h, &done));
  OK(ferry_call_wait(h.call, 60, hear, &h, &done));
  CHECK(done && h.tokens == 3);
  OK(ferry_call_destroy(h.call));
  /* A callback that fails cancels the call. */
  memset(&h, 0, sizeof h);
  h.answer = FERRY_SYSTEM;
  OK(ferry_engine_submit(engine, two, 2, &g, &h.call));
  FAILS(FERRY_CALLBACK,
        "on_token has returned FERRY_SYSTEM",
        ferry_call_wait(h.call, 60, hear, &h, &done));
  CHECK(h.tokens == 1);
  OK(ferry_call_wait(h.call, 60, hear, &h, &done));
  CHECK(done && h.tokens == 1);
  OK(ferry_call_destroy(h.call));
}

/* The text of a prompt's continuation under these settings. */
static void continue_text(
    ferry_engine* engine, const ferry_generation* g, const int32_t* ids, size_t count, char* text) {
  struct heard h;
  int32_t done = 0;
  const ferry_prompt prompt = {ids, count};
  memset(&h, 0, sizeof h);
  OK(ferry_engine_submit(engine, &prompt, 1, g, &h.call));
  OK(ferry_call_wait(h.call, 60, hear, &h, &done));
  CHECK(done);
  OK(ferry_call_destroy(h.call));
  strcpy(text, h.text);
}

static void members(ferry_engine* engine) {
  static const char* chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"12 + 34 =\"}]}";
  int32_t ids[64];
  size_t count = 0, plain = 0;
  char text[1000], other[1000];
  OK(ferry_engine_encode(engine, "12 + 34 =", ids, 64, &plain));
  OK(ferry_engine_encode_chat(engine, chat, ids, 64, &count));
  CHECK(count > plain && count < 64);
  FAILS(FERRY_INVALID,
        "\"message\" is not known here",
        ferry_engine_encode_chat(
            engine, "{\"messages\": [{\"role\": \"user\"}], \"message\": 1}", ids, 64, &count));
  FAILS(FERRY_INVALID, "no JSON", ferry_engine_encode_chat(engine, "{", ids, 64, &count));
  FAILS(FERRY_INVALID, "request is NULL", ferry_engine_encode_chat(engine, NULL, ids, 64, &count));
  OK(ferry_engine_encode(engine, "12 + 34 =", ids, 64, &count));
  ferry_generation g = FERRY_GENERATION_INIT;
  g.max_new_tokens = 8;
  continue_text(engine, &g, ids, count, text);
  g.members = "{}";
  continue_text(engine, &g, ids, count, other);
  CHECK(strcmp(text, other) == 0);
  g.members = "{\"bad_words\": [\"46\", \"4\", \"6\"]}";
  continue_text(engine, &g, ids, count, other);
  CHECK(strcmp(text, other) != 0 && strstr(other, "46") == NULL);
  g.members = "{\"temperature\": -1}";
  ferry_call* call = NULL;
  const ferry_prompt prompt = {ids, count};
  FAILS(FERRY_INVALID, "temperature", ferry_engine_submit(engine, &prompt, 1, &g, &call));
  g.members = "{\"temprature\": 1}";
  FAILS(FERRY_INVALID,
        "\"temprature\" is not known",
        ferry_engine_submit(engine, &prompt, 1, &g, &call));
  /* A caller that was built before `members` leaves it out. */
  g.size = (uint32_t)offsetof(ferry_generation, members);
  continue_text(engine, &g, ids, count, other);
  CHECK(strcmp(text, other) == 0);
  g.size -= 1;
  FAILS(FERRY_INVALID,
        "bytes, this library knows",
        ferry_engine_submit(engine, &prompt, 1, &g, &call));
}

static void wrong_calls(ferry_engine* engine) {
  int32_t id = 1, beyond = 1 << 30, done = 0;
  size_t count = 0;
  ferry_generation g = FERRY_GENERATION_INIT;
  ferry_prompt p = {&id, 1};
  ferry_call* call = NULL;
  ferry_engine_info info = FERRY_ENGINE_INFO_INIT;
  FAILS(FERRY_INVALID, "the engine is NULL", ferry_engine_info_get(NULL, &info));
  FAILS(FERRY_INVALID, "ferry_engine_info is NULL", ferry_engine_info_get(engine, NULL));
  FAILS(FERRY_INVALID, "text is NULL", ferry_engine_encode(engine, NULL, NULL, 0, &count));
  FAILS(FERRY_INVALID, "count is NULL", ferry_engine_encode(engine, "a", NULL, 0, NULL));
  FAILS(FERRY_INVALID,
        "ids is NULL, 1 expected",
        ferry_engine_decode(engine, NULL, 1, NULL, 0, &count));
  FAILS(FERRY_INVALID, "out is NULL", ferry_engine_submit(engine, &p, 1, &g, NULL));
  FAILS(FERRY_INVALID, "prompts is NULL", ferry_engine_submit(engine, NULL, 1, &g, &call));
  FAILS(FERRY_INVALID, "0 continuations", ferry_engine_submit(engine, &p, 0, &g, &call));
  FAILS(FERRY_INVALID, "ferry_generation is NULL", ferry_engine_submit(engine, &p, 1, NULL, &call));
  p.ids = NULL;
  FAILS(
      FERRY_INVALID, "the ids of a prompt is NULL", ferry_engine_submit(engine, &p, 1, &g, &call));
  p.ids = &beyond;
  FAILS(FERRY_INVALID, "outside the vocabulary", ferry_engine_submit(engine, &p, 1, &g, &call));
  p.ids = &id;
  p.num_ids = 0;
  FAILS(FERRY_INVALID, "prompt", ferry_engine_submit(engine, &p, 1, &g, &call));
  p.num_ids = 1;
#define WRONG(member, value, text)             \
  g = (ferry_generation)FERRY_GENERATION_INIT; \
  g.member = value;                            \
  FAILS(FERRY_INVALID, text, ferry_engine_submit(engine, &p, 1, &g, &call))
  WRONG(magic, 0, "FERRY_GENERATION_INIT");
  WRONG(temperature, -1, "temperature");
  WRONG(top_p, 0, "top-p 0");
  WRONG(top_k, -1, "top-k");
  WRONG(max_new_tokens, -1, "-1 new tokens");
  WRONG(top_logprobs, -2, "-2 logprobs");
  WRONG(choices, 0, "0 choices");
  WRONG(num_stop, 1, "stop is NULL");
  WRONG(num_stop_ids, 1, "stop_ids is NULL");
#undef WRONG
  CHECK(call == NULL);
  FAILS(FERRY_INVALID, "the call is NULL", ferry_call_wait(NULL, 1, hear, NULL, &done));
  FAILS(FERRY_INVALID, "the call is NULL", ferry_call_cancel(NULL));
  g = (ferry_generation)FERRY_GENERATION_INIT;
  OK(ferry_engine_submit(engine, &p, 1, &g, &call));
  FAILS(FERRY_INVALID, "on_token is NULL", ferry_call_wait(call, 1, NULL, NULL, &done));
  FAILS(FERRY_INVALID, "done is NULL", ferry_call_wait(call, 1, hear, NULL, NULL));
  FAILS(FERRY_INVALID, "timeout_s is -1", ferry_call_wait(call, -1, hear, NULL, &done));
  OK(ferry_call_cancel(call));
  OK(ferry_call_wait(call, 1, hear, NULL, &done));
  CHECK(done);
  OK(ferry_call_destroy(call));
  OK(ferry_engine_info_get(engine, &info));
  CHECK(info.vocab > 0 && info.max_context > 0);
}

void test_engine(void) {
  ferry_engine* engine = NULL;
  int lines = 0, done = 0;
  ferry_engine_options o = options_of();
  if (o.model == NULL) return; /* only where the test says where it is */
  FAILS(FERRY_INVALID, "ferry_engine_options is NULL", ferry_engine_open(NULL, &engine));
  FAILS(FERRY_INVALID, "out is NULL", ferry_engine_open(&o, NULL));
#define WRONG(member, value, status, text) \
  o = options_of();                        \
  o.member = value;                        \
  FAILS(status, text, ferry_engine_open(&o, &engine))
  WRONG(model, NULL, FERRY_INVALID, "model is NULL");
  WRONG(model, "/nowhere", FERRY_MODEL, "/nowhere");
  WRONG(weights, "heavy", FERRY_INVALID, "heavy");
  WRONG(kv_cache_dtype, "thin", FERRY_INVALID, "thin");
  WRONG(activations, "thin", FERRY_INVALID, "thin");
  WRONG(activations, "int8", FERRY_INVALID, "no matrix of"); /* weights are elements there */
  WRONG(numerics, "wild", FERRY_INVALID, "wild");
  WRONG(draft_tokens, -1, FERRY_INVALID, "-1");
  WRONG(draft_method, "dice", FERRY_INVALID, "dice");
  WRONG(expert_slices, 3, FERRY_INVALID, "slices");
  WRONG(experts_device, "gpu", FERRY_INVALID, "cuda:N");
  WRONG(experts_device, "cuda:0", FERRY_INVALID, "numerics fast");
  WRONG(load, "carried", FERRY_INVALID, "carried");
  WRONG(backend, "tram", FERRY_INVALID, "tram");
  WRONG(ranks, -1, FERRY_INVALID, "-1 ranks");
  WRONG(tp, 3, FERRY_INVALID, "3");
  WRONG(max_tokens_per_step, 0, FERRY_INVALID, "0 tokens a step");
  WRONG(place.memory, FERRY_DEVICE, FERRY_INVALID, "device memory");
#undef WRONG
  o = options_of();
  o.backend = "auto";
  o.log = count_line;
  o.log_context = &lines;
  OK(ferry_engine_open(&o, &engine));
  CHECK(lines >= 1); /* what was chosen */
  fesetround(FE_UPWARD);
  generate(engine);
  CHECK(fegetround() == FE_UPWARD);
  fesetround(FE_TONEAREST);
  members(engine);
  wrong_calls(engine);
  /* A call may outlive its engine. */
  struct heard h;
  int32_t id = 1;
  const ferry_prompt p = {&id, 1};
  ferry_generation g = FERRY_GENERATION_INIT;
  memset(&h, 0, sizeof h);
  g.ignore_eos = 1;
  OK(ferry_engine_submit(engine, &p, 1, &g, &h.call));
  OK(ferry_engine_close(engine));
  ferry_status status = FERRY_OK;
  while (status == FERRY_OK && !done) status = ferry_call_wait(h.call, 10, hear, &h, &done);
  CHECK(status == FERRY_ENDED && strstr(ferry_last_error(), "closed") != NULL);
  OK(ferry_call_destroy(h.call));
  OK(ferry_call_destroy(NULL));
  OK(ferry_engine_close(NULL));
  /* As a caller that was built before the newest members: what lies behind is not read. */
  o = options_of();
  o.size = (uint32_t)offsetof(ferry_engine_options, kv_cache_dtype);
  o.numerics = "wild";
  OK(ferry_engine_open(&o, &engine));
  OK(ferry_engine_close(engine));
}
