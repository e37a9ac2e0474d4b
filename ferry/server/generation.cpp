#include "ferry/server/generation.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"

namespace ferry {

namespace {

/// How long next() waits, and so how late a client that went away is noticed.
constexpr std::chrono::milliseconds kPatience{100};
constexpr std::size_t kMostStops = 64;
constexpr std::size_t kMostStopBytes = 4096;
constexpr std::int64_t kMostChoices = 128;
constexpr std::size_t kMostRequests = 1024;

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32U) | device();
}

template <class Number>
Number in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    fail<ConfigError>("\"{}\" must be {} to {}, not {}", name, low, high, value);
  return static_cast<Number>(value);
}

}  // namespace

void read_common_settings(const JsonFields& fields, GenerationSettings& settings) {
  constexpr std::int64_t kMaxInt = std::numeric_limits<int>::max();
  if (const auto v = fields.number("temperature")) settings.sampling.temperature = *v;
  if (const auto v = fields.number("top_p")) settings.sampling.top_p = *v;
  if (const auto v = fields.integer("top_k"))  // -1 is all to SGLang and vLLM
    settings.sampling.top_k = std::max(0, in_range<int>("top_k", *v, -1, kMaxInt));
  for (const char* name : {"seed", "sampling_seed"}) {
    if (const auto v = fields.integer(name)) {
      settings.sampling.seed = static_cast<std::uint64_t>(*v);
      settings.seeded = true;
    }
  }
  check_sampling(settings.sampling);
  if (fields.has("stop")) settings.stop = fields.texts("stop");
  if (settings.stop.size() > kMostStops)
    fail<ConfigError>(
        "\"stop\" has {} strings; at most {} are possible", settings.stop.size(), kMostStops);
  for (const std::string& stop : settings.stop)
    if (stop.size() > kMostStopBytes)
      fail<ConfigError>("a string of \"stop\" is longer than {} bytes", kMostStopBytes);
  if (fields.has("stop_token_ids")) settings.stop_ids = fields.ids("stop_token_ids");
  settings.ignore_eos = fields.boolean("ignore_eos").value_or(settings.ignore_eos);
  settings.skip_special = fields.boolean("skip_special_tokens").value_or(settings.skip_special);
  if (const auto v = fields.integer("n"))
    settings.choices = in_range<int>("n", *v, 1, kMostChoices);
  read_processors(fields, settings.processors);
  fields.refuse_unless("min_p", 0);
  for (const char* name : {"regex", "json_schema", "ebnf", "stop_regex"})
    fields.refuse_unless(name, "");
}

Generation::Generation(EngineFront& front,
                       const ServedModel& model,
                       const std::vector<std::vector<std::int32_t>>& prompts,
                       const GenerationSettings& settings)
    : left_(prompts.size() * static_cast<std::size_t>(settings.choices)) {
  if (left_ == 0 || left_ > kMostRequests)
    fail<ConfigError>(
        "{} continuations asked for; 1 to {} are possible at once", left_, kMostRequests);
  if (!settings.stop.empty() && model.tokenizer == nullptr)
    fail<ConfigError>("\"stop\" needs a tokenizer, which this model has not");
  stop_ids_ = settings.stop_ids;
  if (!settings.ignore_eos) {
    const std::vector<std::int32_t>& eos = model.config->eos_ids;
    stop_ids_.insert(stop_ids_.end(), eos.begin(), eos.end());
  }
  const std::uint64_t seed = settings.seeded ? settings.sampling.seed : random_seed();
  std::vector<Request> requests;
  for (const std::vector<std::int32_t>& prompt : prompts) {
    prompt_tokens_ += prompt.size();
    for (int n = 0; n < settings.choices; ++n) {
      const int to_the_end = std::max(1,
                                      model.max_context -
                                          static_cast<int>(std::min<std::size_t>(
                                              prompt.size(), std::numeric_limits<int>::max())) +
                                          1);
      Request request{.prompt = prompt,
                      .max_new_tokens = settings.max_new_tokens.value_or(to_the_end),
                      .sampling = settings.sampling,
                      .stop_ids = stop_ids_,
                      .top_logprobs = settings.top_logprobs,
                      .client = settings.client,
                      .processors = settings.processors};
      request.sampling.seed = seed + static_cast<std::uint64_t>(n);
      requests.push_back(std::move(request));
      choices_.push_back({.prompt_tokens = prompt.size()});
      texts_.emplace_back(model.tokenizer,
                          TextOptions{.stop = settings.stop,
                                      .skip_special = settings.skip_special,
                                      .silent_ids = stop_ids_});
    }
  }
  call_ = front.start(std::move(requests));
}

std::optional<Generation::Piece> Generation::next() {
  if (done()) return std::nullopt;
  if (!ready()) {
    arrivals_ = call_->take(kPatience);
    next_arrival_ = 0;
    if (!ready()) return std::nullopt;
  }
  Call::Arrival& arrival = arrivals_[next_arrival_++];
  Choice& choice = choices_[arrival.index];
  if (!choice.finish.empty()) return std::nullopt;  // came behind its stop string
  TokenEvent& event = arrival.event;
  TextStream& text = texts_[arrival.index];
  Piece piece{
      .choice = arrival.index, .text = text.put(event.token, event.last), .token = event.token};
  choice.ids.push_back(event.token);
  choice.text += piece.text;
  if (event.logprobs) choice.logprobs.push_back(std::move(*event.logprobs));
  if (text.stop().found()) {
    choice.finish = "stop";
    choice.matched = text.stop().match();
    call_->cancel(arrival.index);
  } else if (event.last) {
    const bool stopped =
        std::find(stop_ids_.begin(), stop_ids_.end(), event.token) != stop_ids_.end();
    choice.finish = stopped ? "stop" : "length";
  }
  if (!choice.finish.empty()) --left_;
  return piece;
}

void Generation::finish(const HttpRequest& request) {
  while (!done()) {
    static_cast<void>(next());
    if (!done() && request.gone()) throw HttpError(499, "the client has gone");
  }
}

std::size_t Generation::completion_tokens() const {
  std::size_t sum = 0;
  for (const Choice& choice : choices_) sum += choice.ids.size();
  return sum;
}

std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special) {
  if (model.tokenizer == nullptr)
    fail<ConfigError>("this model has no tokenizer; send token ids instead of text");
  return model.tokenizer->encode(text, add_special);
}

}  // namespace ferry
