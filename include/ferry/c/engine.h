// The C interface: a model in the caller's process, prompts in and tokens out (docs/embedding.md).
// Its ranks are threads of ours, which never call the caller: tokens wait until somebody takes
// them.
#pragma once

#include "ferry/c/base.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

/// Any thread, several at the same time.
typedef struct ferry_engine ferry_engine;

/// Continuations of some prompts that run. One thread at a time, but ferry_call_cancel().
typedef struct ferry_call ferry_call;

#define FERRY_ENGINE_OPTIONS_MAGIC 0xFE770060U

typedef struct ferry_engine_options {
  uint32_t size;
  uint32_t magic;
  ferry_place place;    ///< where the weights lie and the work is done
  const char* model;    ///< checkpoint directory
  const char* weights;  ///< "f32", "bf16", "int8", "fp8", "int4", "mxfp4"; NULL: as stored
  const char* backend;  ///< how tokens travel to experts; NULL: "pplx"
  int32_t ranks;        ///< that experts are spread over; 0: as tp, or one for each NUMA node
  int32_t tp;           ///< ranks that share out attention and dense layers
  int32_t threads;      ///< of each rank; 0: cores / ranks
  int32_t max_context;  ///< positions of a sequence; 0: the model's
  int32_t max_tokens_per_step;
  int32_t max_sequences_per_rank;
  int32_t max_waiting;  ///< requests beside those that run; 0: any number
  int32_t reserved;
  double kv_memory_fraction;  ///< of the memory beside the weights, for keys and values
  /// Takes a line that whoever runs this should read, from any thread; may be NULL.
  void (*log)(void* context, const char* line);
  void* log_context;
  const char*
      kv_cache_dtype;  ///< "auto" (as activations), "f32", "bf16", "int8", "fp8_e4m3"; NULL: "auto"
  const char* numerics;  ///< "exact", "fast"; NULL: "exact" (docs/numerics.md)
  /// Tokens that may come next and run beside a text's one token, at most; 0: none. With
  /// draft_method "ngram" out of the text itself: they follow where its newest draft_ngram_min to
  /// draft_ngram_max tokens stand earlier in it.
  int32_t draft_tokens;
  int32_t draft_ngram_min;
  int32_t draft_ngram_max;
  int32_t expert_slices;  ///< ranks that share out each expert's columns; divides tp
  const char*
      load;  ///< "read", or "mapped": a packed checkpoint's weights stay in its file; NULL: "read"
  /// "ngram", or "mtp": by the checkpoint's layer that predicts further tokens; NULL: "ngram"
  const char* draft_method;
  /// "auto", or "int8": rows that meet GGUF's blocks or mxfp4 are rounded; NULL: "auto"
  const char* activations;
  /// Where routed experts are: "cpu", "cuda:N" (that GPU's memory, with numerics "fast"), or
  /// "cuda": each rank has the next GPU of its host; NULL: "cpu"
  const char* experts_device;
} ferry_engine_options;

#define FERRY_ENGINE_OPTIONS_INIT                                                                  \
  {                                                                                                \
    sizeof(ferry_engine_options), FERRY_ENGINE_OPTIONS_MAGIC, FERRY_PLACE_HOST, NULL, NULL, NULL,  \
        0, 1, 0, 0, 512, 16, 0, 0, 0.8, NULL, NULL, NULL, NULL, 0, 2, 8, 1, NULL, NULL, NULL, NULL \
  }

/// Returns when the model is loaded and runs.
FERRY_API ferry_status ferry_engine_open(const ferry_engine_options* options, ferry_engine** out);

/// Ends what runs: calls end with FERRY_ENDED, and may be destroyed before or after. NULL is fine.
FERRY_API ferry_status ferry_engine_close(ferry_engine* engine);

#define FERRY_ENGINE_INFO_MAGIC 0xFE770061U

typedef struct ferry_engine_info {
  uint32_t size;
  uint32_t magic;
  int32_t vocab;
  int32_t max_context;
} ferry_engine_info;

#define FERRY_ENGINE_INFO_INIT \
  { sizeof(ferry_engine_info), FERRY_ENGINE_INFO_MAGIC, 0, 0 }

FERRY_API ferry_status ferry_engine_info_get(ferry_engine* engine, ferry_engine_info* info);

/// *count = ids of a text, special tokens around it included; those that fit into `capacity` are
/// written.
FERRY_API ferry_status ferry_engine_encode(
    ferry_engine* engine, const char* text, int32_t* ids, size_t capacity, size_t* count);

/// The same of a conversation, as the model's chat template puts it. `request`: a JSON object with
/// what POST /v1/chat/completions has of this: messages, tools, chat_template_kwargs,
/// reasoning_effort, documents, add_generation_prompt, continue_final_message; another member is
/// FERRY_INVALID.
FERRY_API ferry_status ferry_engine_encode_chat(
    ferry_engine* engine, const char* request, int32_t* ids, size_t capacity, size_t* count);

/// *bytes = bytes of the ids' text; those that fit into `capacity` are written. No zero behind.
FERRY_API ferry_status ferry_engine_decode(ferry_engine* engine,
                                           const int32_t* ids,
                                           size_t count,
                                           char* text,
                                           size_t capacity,
                                           size_t* bytes);

typedef struct ferry_prompt {
  const int32_t* ids;
  size_t num_ids;
} ferry_prompt;

#define FERRY_GENERATION_MAGIC 0xFE770062U

/// How to continue prompts.
typedef struct ferry_generation {
  uint32_t size;
  uint32_t magic;
  double temperature;  ///< 0: the most probable token
  double top_p;
  int32_t top_k;           ///< 0: all
  int32_t max_new_tokens;  ///< 0: to the end of the context
  uint64_t seed;
  int32_t seeded;        ///< 0: each call draws its own seed
  int32_t choices;       ///< of each prompt
  int32_t ignore_eos;    ///< not 0: go on behind the end of the text
  int32_t show_special;  ///< not 0: special tokens give text
  int32_t top_logprobs;  ///< -1: no logprobs; else of so many tokens beside the chosen one
  int32_t num_stop;
  const char* const* stop;  ///< strings that end a continuation
  const int32_t* stop_ids;
  size_t num_stop_ids;
  /// A JSON object of further members as POST /v1/completions has them: min_p, penalties,
  /// logit_bias, min_tokens, bad_words, allowed_token_ids, and what the text must match (regex,
  /// json_schema, structured_outputs, ...). NULL: none. A member that stands above, too, counts as
  /// it is here; one that is not known is FERRY_INVALID.
  const char* members;
} ferry_generation;

#define FERRY_GENERATION_INIT                                                                     \
  {                                                                                               \
    sizeof(ferry_generation), FERRY_GENERATION_MAGIC, 0.0, 1.0, 0, 0, 0, 0, 1, 0, 0, -1, 0, NULL, \
        NULL, 0, NULL                                                                             \
  }

typedef enum ferry_finish {
  FERRY_GOES_ON = 0,
  FERRY_STOPPED = 1,  ///< by the end of the text, a stop string or a stop id
  FERRY_LENGTH = 2    ///< max_new_tokens, or the context is full
} ferry_finish;

/// A token of a call, and what stands in ferry_token::top.
typedef struct ferry_token_logprob {
  int32_t id;
  float logprob;
} ferry_token_logprob;

#define FERRY_TOKEN_MAGIC 0xFE770063U

/// Belongs to the callback's call.
typedef struct ferry_token {
  uint32_t size;
  uint32_t magic;
  size_t choice;     ///< of prompt p: p * choices and those behind it
  const char* text;  ///< what the choice's text has grown by; may be empty; ends with a zero
  size_t text_bytes;
  const ferry_token_logprob* top;  ///< the most probable first
  size_t num_top;
  int32_t id;
  int32_t finish;  ///< ferry_finish
  float logprob;   ///< of this token, where asked for; else 0
  int32_t reserved;
} ferry_token;

/// Another status than FERRY_OK cancels the call.
typedef ferry_status (*ferry_token_fn)(void* context, const ferry_token* token);

/// Starts continuations of all prompts, or of none; does not wait. FERRY_REFUSED where too many are
/// there already.
FERRY_API ferry_status ferry_engine_submit(ferry_engine* engine,
                                           const ferry_prompt* prompts,
                                           size_t num_prompts,
                                           const ferry_generation* settings,
                                           ferry_call** out);

/// Hands tokens to `on_token`, on this thread, until all choices are done (*done is then 1) or
/// timeout_s is over.
FERRY_API ferry_status ferry_call_wait(
    ferry_call* call, double timeout_s, ferry_token_fn on_token, void* context, int32_t* done);

/// Any thread, also from on_token: all choices end, the last wait soon after.
FERRY_API ferry_status ferry_call_cancel(ferry_call* call);

/// Cancels what is not done. NULL is fine.
FERRY_API ferry_status ferry_call_destroy(ferry_call* call);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
