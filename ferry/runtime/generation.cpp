#include "ferry/runtime/generation.h"

#include <algorithm>
#include <limits>
#include <random>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::size_t kMostRequests = 1024;

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32U) | device();
}

}  // namespace

Generation::Generation(EngineFront& front,
                       const GenerationModel& model,
                       const std::vector<std::vector<std::int32_t>>& prompts,
                       const GenerationSettings& settings)
    : Generation(front, model, prompts, std::vector<GenerationSettings>(prompts.size(), settings)) {
}

Generation::Generation(EngineFront& front,
                       const GenerationModel& model,
                       const std::vector<std::vector<std::int32_t>>& prompts,
                       std::span<const GenerationSettings> settings) {
  FERRY_CHECK(prompts.size() == settings.size(),
              "{} settings for {} prompts",
              settings.size(),
              prompts.size());
  for (const GenerationSettings& one : settings) {
    if (one.choices < 1)
      fail<ConfigError>("{} choices of a prompt; at least 1 is possible", one.choices);
    if (!one.stop.empty() && model.tokenizer == nullptr)
      fail<ConfigError>("\"stop\" needs a tokenizer, which this model has not");
    left_ += static_cast<std::size_t>(one.choices);
  }
  if (left_ == 0 || left_ > kMostRequests)
    fail<ConfigError>(
        "{} continuations asked for; 1 to {} are possible at once", left_, kMostRequests);
  std::vector<Request> requests;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    add_prompt(model, prompts[i], settings[i], requests);
  call_ = front.start(std::move(requests));
}

void Generation::add_prompt(const GenerationModel& model,
                            const std::vector<std::int32_t>& prompt,
                            const GenerationSettings& settings,
                            std::vector<Request>& requests) {
  std::vector<std::int32_t> stop_ids = settings.stop_ids;
  if (!settings.ignore_eos)
    stop_ids.insert(stop_ids.end(), model.eos_ids.begin(), model.eos_ids.end());
  const std::uint64_t seed = settings.seeded ? settings.sampling.seed : random_seed();
  const auto prompt_size =
      static_cast<int>(std::min<std::size_t>(prompt.size(), std::numeric_limits<int>::max()));
  const int to_the_end = std::max(1, model.max_context - prompt_size + 1);
  prompt_tokens_ += prompt.size();
  choices_of_prompt_ = static_cast<std::size_t>(settings.choices);
  for (int n = 0; n < settings.choices; ++n) {
    Request request{.prompt = prompt,
                    // The engine gives a token with all; it is not shown where none is wanted.
                    .max_new_tokens = settings.max_new_tokens == 0
                                          ? 1
                                          : settings.max_new_tokens.value_or(to_the_end),
                    .sampling = settings.sampling,
                    .stop_ids = stop_ids,
                    .top_logprobs = settings.top_logprobs,
                    .prompt_logprobs_from = settings.prompt_logprobs_from,
                    .logprob_ids = settings.logprob_ids,
                    .client = settings.client,
                    .processors = settings.processors,
                    .cache_salt = settings.cache_salt};
    request.sampling.seed = seed + static_cast<std::uint64_t>(n);
    requests.push_back(std::move(request));
    choices_.push_back({.prompt_tokens = prompt.size()});
    texts_.emplace_back(
        model.tokenizer,
        TextOptions{.stop = settings.stop,
                    .keep_stop = settings.keep_stop,
                    .skip_special = settings.skip_special,
                    .silent_ids = settings.keep_stop ? std::vector<std::int32_t>{} : stop_ids});
    stop_ids_.push_back(stop_ids);
    prompt_alone_.push_back(settings.max_new_tokens == 0);
  }
}

std::optional<Generation::Piece> Generation::next(std::chrono::milliseconds patience) {
  if (done()) return std::nullopt;
  if (!ready()) {
    arrivals_ = call_->take(patience);
    next_arrival_ = 0;
    if (!ready()) return std::nullopt;
  }
  Call::Arrival& arrival = arrivals_[next_arrival_++];
  Choice& choice = choices_[arrival.index];
  if (!choice.finish.empty()) return std::nullopt;  // came behind its stop string
  TokenEvent& event = arrival.event;
  if (choice.ids.empty()) choice.cached_tokens = event.cached_tokens;
  if (!event.prompt_logprobs.empty()) choice.prompt_logprobs = std::move(event.prompt_logprobs);
  if (prompt_alone_[arrival.index]) {
    choice.finish = "length";
    call_->end(arrival.index, EndedRequest::Ending::length, 0);
    --left_;
    return Piece{.choice = arrival.index, .text = "", .token = kNoToken};
  }
  TextStream& text = texts_[arrival.index];
  Piece piece{
      .choice = arrival.index, .text = text.put(event.token, event.last), .token = event.token};
  choice.ids.push_back(event.token);
  choice.text += piece.text;
  if (event.logprobs) choice.logprobs.push_back(std::move(*event.logprobs));
  if (text.stop().found()) {
    choice.finish = "stop";
    choice.matched = text.stop().match();
  } else if (event.last) {
    const std::vector<std::int32_t>& ends = stop_ids_[arrival.index];
    const bool stopped = std::find(ends.begin(), ends.end(), event.token) != ends.end();
    choice.finish = stopped ? "stop" : "length";
  }
  if (choice.finish.empty()) return piece;
  --left_;
  call_->end(arrival.index,
             choice.finish == "stop" ? EndedRequest::Ending::stop : EndedRequest::Ending::length,
             static_cast<int>(choice.ids.size()));
  return piece;
}

void Generation::cancel(std::size_t choice) {
  Choice& cancelled = choices_.at(choice);
  if (!cancelled.finish.empty()) return;
  cancelled.finish = "cancelled";
  --left_;
  call_->cancel(choice);
}

std::size_t Generation::cached_tokens() const {
  std::size_t sum = 0;
  std::size_t least = 0;
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    const std::size_t own = choices_[i].cached_tokens;
    least = i % choices_of_prompt_ == 0 ? own : std::min(least, own);
    if ((i + 1) % choices_of_prompt_ == 0) sum += least;
  }
  return sum;
}

std::size_t Generation::completion_tokens() const {
  std::size_t sum = 0;
  for (const Choice& choice : choices_) sum += choice.ids.size();
  return sum;
}

}  // namespace ferry
