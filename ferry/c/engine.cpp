// A model in the caller's process.
#include "ferry/c/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ferry/c/arguments.h"
#include "ferry/c/status.h"
#include "ferry/generator.h"

struct ferry_engine {  // NOLINT(readability-identifier-naming): as C has it
  ferry::Generator generator;
};

struct ferry_call {  // NOLINT(readability-identifier-naming): as C has it
  ferry::Generator::Stream stream;
  std::atomic<bool> in_use{false};
  std::atomic<bool> cancelled{false};
};

namespace ferry::c {

FERRY_C_STRUCT_GROWN(ferry_engine_options, FERRY_ENGINE_OPTIONS, kv_cache_dtype);
FERRY_C_STRUCT(ferry_engine_info, FERRY_ENGINE_INFO);
FERRY_C_STRUCT_GROWN(ferry_generation, FERRY_GENERATION, members);

namespace {

using Clock = std::chrono::steady_clock;

/// How late a cancellation by another thread is noticed where no token comes.
constexpr std::chrono::milliseconds kPatience{50};

GeneratorOptions generator_options(const ferry_engine_options& o) {
  place(o.place, "ferry_engine_options");
  if (o.ranks < 0 || o.tp < 1 || o.threads < 0 || o.max_context < 0)
    fail<ConfigError>(
        "{} ranks, tp {}, {} threads, context {}: at least 0, 1, 0 and 0 are possible",
        o.ranks,
        o.tp,
        o.threads,
        o.max_context);
  GeneratorOptions options{.model = need(o.model, "model"),
                           .ranks = o.ranks,
                           .tp = o.tp,
                           .expert_slices = o.expert_slices,
                           .experts_device = text_or(o.experts_device, "cpu"),
                           .threads = o.threads,
                           .weights = text_or(o.weights, ""),
                           .load = text_or(o.load, "read"),
                           .activations = text_or(o.activations, "auto"),
                           .kv_type = text_or(o.kv_cache_dtype, "auto"),
                           .numerics = text_or(o.numerics, "exact"),
                           .backend = text_or(o.backend, "pplx"),
                           .max_context = o.max_context,
                           .max_tokens_per_step = o.max_tokens_per_step,
                           .max_sequences_per_rank = o.max_sequences_per_rank,
                           .max_waiting = o.max_waiting,
                           .draft_tokens = o.draft_tokens,
                           .draft_method = text_or(o.draft_method, "ngram"),
                           .draft_ngram_min = o.draft_ngram_min,
                           .draft_ngram_max = o.draft_ngram_max,
                           .kv_memory_fraction = o.kv_memory_fraction,
                           .log = {}};
  if (o.log != nullptr) {
    options.log = [log = o.log, context = o.log_context](const std::string& line) {
      const CallerMode mode;
      log(context, line.c_str());
    };
  }
  return options;
}

GenerationSettings settings_of(const Generator& generator, const ferry_generation& g) {
  if (g.max_new_tokens < 0 || g.top_logprobs < -1)
    fail<ConfigError>("{} new tokens, {} logprobs: at least 0 and -1 are possible",
                      g.max_new_tokens,
                      g.top_logprobs);
  GenerationSettings settings{.sampling = {.temperature = g.temperature,
                                           .top_k = g.top_k,
                                           .top_p = g.top_p,
                                           .seed = g.seed},
                              .seeded = g.seeded != 0,
                              .ignore_eos = g.ignore_eos != 0,
                              .skip_special = g.show_special == 0,
                              .choices = g.choices};
  if (g.max_new_tokens > 0) settings.max_new_tokens = g.max_new_tokens;
  if (g.top_logprobs >= 0) settings.top_logprobs = g.top_logprobs;
  for (const char* text : array(g.stop, g.num_stop, "stop"))
    settings.stop.emplace_back(need(text, "a stop string"));
  const auto ids = array(g.stop_ids, g.num_stop_ids, "stop_ids");
  settings.stop_ids.assign(ids.begin(), ids.end());
  if (g.members != nullptr) generator.read_settings(g.members, settings);
  return settings;
}

Generator& of(ferry_engine* engine) { return need(engine, "the engine")->generator; }

/// Those that fit, and how many there are.
void hand_out(const std::vector<std::int32_t>& all, int32_t* ids, size_t capacity, size_t* count) {
  const auto out = array(ids, capacity, "ids");
  *need(count, "count") = all.size();
  std::copy_n(all.begin(), std::min(all.size(), out.size()), out.begin());
}

std::int32_t finish_of(const std::string& finish) {
  if (finish.empty()) return FERRY_GOES_ON;
  return finish == "length" ? FERRY_LENGTH : FERRY_STOPPED;
}

void hand_over(const GeneratedToken& token, ferry_token_fn on_token, void* context) {
  std::vector<ferry_token_logprob> top;
  ferry_token c{};
  c.size = sizeof c;
  c.magic = FERRY_TOKEN_MAGIC;
  c.choice = token.choice;
  c.text = token.text.c_str();
  c.text_bytes = token.text.size();
  c.id = token.id;
  c.finish = finish_of(token.finish);
  if (token.logprobs) {
    c.logprob = token.logprobs->chosen;
    for (const TokenLogprob& t : token.logprobs->top) top.push_back({t.id, t.logprob});
  }
  c.top = top.data();
  c.num_top = top.size();
  call_caller("on_token", [&] { return on_token(context, &c); });
}

void cancel_all(ferry_call& call) {
  for (std::size_t i = 0; i < call.stream.choices().size(); ++i) call.stream.cancel(i);
}

/// One user of a call at a time. (No mutex: who cancels may be the one who waits, in on_token.)
class Turn {
 public:
  explicit Turn(ferry_call& call) : call_(call), mine_(!call.in_use.exchange(true)) {}

  ~Turn() {
    if (mine_) call_.in_use = false;
  }

  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  bool mine() const { return mine_; }

 private:
  ferry_call& call_;
  const bool mine_;
};

/// Until all is done or the deadline is over. REQUIRES: the caller has the turn.
void wait(ferry_call& call, std::chrono::nanoseconds timeout, ferry_token_fn f, void* context) {
  const auto begin = Clock::now();
  while (!call.stream.done()) {
    if (call.cancelled) return cancel_all(call);
    const auto left = timeout - (Clock::now() - begin);
    if (left <= std::chrono::nanoseconds(0) && timeout > std::chrono::nanoseconds(0)) return;
    const auto patience = std::clamp(std::chrono::ceil<std::chrono::milliseconds>(left),
                                     std::chrono::milliseconds(0),
                                     kPatience);
    const auto token = call.stream.next(patience);
    if (!token && timeout == std::chrono::nanoseconds(0)) return;
    if (!token) continue;
    try {
      hand_over(*token, f, context);
    } catch (const CallbackFailed&) {
      cancel_all(call);
      throw;
    }
  }
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_engine_open(const ferry_engine_options* options, ferry_engine** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    *out = new ferry_engine{ferry::Generator(generator_options(read_struct(options)))};
  });
}

ferry_status ferry_engine_close(ferry_engine* engine) {
  return guarded([&] { delete engine; });
}

ferry_status ferry_engine_info_get(ferry_engine* engine, ferry_engine_info* info) {
  return guarded([&] {
    const ferry::Generator& g = of(engine);
    check_head(info);
    ferry_engine_info filled = FERRY_ENGINE_INFO_INIT;
    filled.vocab = g.vocab();
    filled.max_context = g.max_context();
    fill_struct(info, filled);
  });
}

ferry_status ferry_engine_encode(
    ferry_engine* engine, const char* text, int32_t* ids, size_t capacity, size_t* count) {
  return guarded([&] { hand_out(of(engine).encode(need(text, "text")), ids, capacity, count); });
}

ferry_status ferry_engine_encode_chat(
    ferry_engine* engine, const char* request, int32_t* ids, size_t capacity, size_t* count) {
  return guarded(
      [&] { hand_out(of(engine).encode_chat(need(request, "request")), ids, capacity, count); });
}

ferry_status ferry_engine_decode(ferry_engine* engine,
                                 const int32_t* ids,
                                 size_t count,
                                 char* text,
                                 size_t capacity,
                                 size_t* bytes) {
  return guarded([&] {
    const auto out = array(text, capacity, "text");
    const std::string all = of(engine).decode(array(ids, count, "ids"));
    *need(bytes, "bytes") = all.size();
    std::copy_n(all.begin(), std::min(all.size(), out.size()), out.begin());
  });
}

ferry_status ferry_engine_submit(ferry_engine* engine,
                                 const ferry_prompt* prompts,
                                 size_t num_prompts,
                                 const ferry_generation* settings,
                                 ferry_call** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    ferry::Generator& g = of(engine);
    ferry::Generator::Prompts all;
    for (const ferry_prompt& p : array(prompts, num_prompts, "prompts")) {
      const auto ids = array(p.ids, p.num_ids, "the ids of a prompt");
      all.emplace_back(ids.begin(), ids.end());
    }
    *out = new ferry_call{g.start(all, settings_of(g, read_struct(settings))), {}, {}};
  });
}

ferry_status ferry_call_wait(
    ferry_call* call, double timeout_s, ferry_token_fn on_token, void* context, int32_t* done) {
  return guarded([&] {
    ferry_call& c = *need(call, "the call");
    need(on_token, "on_token");
    *need(done, "done") = 0;
    const auto timeout = duration(timeout_s, "timeout_s");
    const Turn turn(c);
    if (!turn.mine()) ferry::fail<OutOfOrder>("another wait for this call has not returned");
    wait(c, timeout, on_token, context);
    *done = c.stream.done() ? 1 : 0;
  });
}

ferry_status ferry_call_cancel(ferry_call* call) {
  return guarded([&] {
    ferry_call& c = *need(call, "the call");
    c.cancelled = true;
    // Who waits sees to it; else it is done here.
    const Turn turn(c);
    if (turn.mine()) cancel_all(c);
  });
}

ferry_status ferry_call_destroy(ferry_call* call) {
  return guarded([&] { delete call; });
}
