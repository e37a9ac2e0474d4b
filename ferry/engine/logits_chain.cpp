#include "ferry/engine/logits_chain.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/engine/request.h"

namespace ferry {

// processors.inc is written by CMake: a line for each processor, in order of application.
#define FERRY_LOGITS_PROCESSOR(name) const ProcessorKind& name##_processor();
#include "processors.inc"
#undef FERRY_LOGITS_PROCESSOR

namespace {

const ProcessorOptions* options_of(const Request& request, const ProcessorKind& kind) {
  const auto found = std::find_if(
      request.processors.begin(), request.processors.end(), [&](const ProcessorOptions& options) {
        return options.name == kind.name;
      });
  return found == request.processors.end() || !found->has_effect() ? nullptr : &*found;
}

bool any_finite(std::span<const float> logits) {
  return std::any_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

std::span<const ProcessorKind* const> processor_kinds() {
  static const std::array kinds = {
#define FERRY_LOGITS_PROCESSOR(name) &name##_processor(),
#include "processors.inc"
#undef FERRY_LOGITS_PROCESSOR
  };
  return kinds;
}

void check_ids(std::span<const std::int32_t> ids, const char* member, int vocab) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab)
      fail<ConfigError>(
          "{}: token id {} is outside the vocabulary 0..{}", member, ids[i], vocab - 1);
    if (i > 0 && ids[i] == ids[i - 1])
      fail<ConfigError>("{}: token id {} stands there twice", member, ids[i]);
    if (i > 0 && ids[i] < ids[i - 1])
      fail<ConfigError>(
          "{}: token ids must ascend, but {} stands behind {}", member, ids[i], ids[i - 1]);
  }
}

void read_processors(const RequestMembers& members, std::vector<ProcessorOptions>& processors) {
  std::vector<ProcessorOptions> all;
  for (const ProcessorKind* kind : processor_kinds()) {
    const auto given = std::find_if(processors.begin(), processors.end(), [&](const auto& options) {
      return options.name == kind->name;
    });
    ProcessorOptions options = given == processors.end() ? ProcessorOptions{} : *given;
    options.name = kind->name;
    kind->read(members, options);
    if (options.has_effect()) all.push_back(std::move(options));
  }
  processors = std::move(all);
}

void check_processors(const Request& request, const ProcessorContext& model) {
  if (request.processors.empty()) return;
  std::size_t numbers = 0;
  std::size_t text = 0;
  for (auto it = request.processors.begin(); it != request.processors.end(); ++it) {
    const auto named = [&](const auto& other) { return other.name == it->name; };
    const auto kinds = processor_kinds();
    if (std::none_of(kinds.begin(), kinds.end(), [&](const ProcessorKind* kind) {
          return kind->name == it->name;
        }))
      fail<ConfigError>("there is no logits processor \"{}\"", it->name);
    if (std::any_of(request.processors.begin(), it, named))
      fail<ConfigError>("logits processor \"{}\" is asked for twice", it->name);
    numbers += it->integers.size() + it->numbers.size();
    text += it->text.size();
  }
  if (numbers > kMaxProcessorNumbers) {
    fail<ConfigError>(
        "the request's penalties, biases and lists of token ids have {} numbers; at most {} are "
        "possible",
        numbers,
        kMaxProcessorNumbers);
  }
  if (text > kMaxProcessorText) {
    fail<ConfigError>(
        "the request's grammar has {} bytes; at most {} are possible", text, kMaxProcessorText);
  }
  for (const ProcessorKind* kind : processor_kinds()) {
    const ProcessorOptions* options = options_of(request, *kind);
    if (options == nullptr || kind->prepare == nullptr) continue;
    kind->check(*options, request, model);
    kind->prepare(*options, model);
  }
  const LogitsChain chain(request, {}, model);
  const std::vector<float> zeros(static_cast<std::size_t>(model.vocab));
  std::vector<float> scratch;
  if (!chain.leaves_any(zeros, {.prompt = request.prompt, .generated = {}}, scratch))
    fail<ConfigError>("the request bans every token; allow one that does not end it at once");
}

LogitsChain::LogitsChain(const Request& request,
                         std::span<const std::int32_t> generated,
                         const ProcessorContext& model) {
  if (request.processors.empty()) return;
  for (const ProcessorKind* kind : processor_kinds()) {
    const ProcessorOptions* options = options_of(request, *kind);
    if (options == nullptr) continue;
    kind->check(*options, request, model);
    processors_.push_back(kind->make(*options, request, model));
    if (kind->binds) binding_.push_back(processors_.back().get());
  }
  for (const std::int32_t token : generated) advance(token);
}

std::span<const float> LogitsChain::apply(std::span<const float> logits,
                                          const TokenHistory& history,
                                          std::vector<float>& scratch) const {
  if (empty()) return logits;
  FERRY_CHECK(history.generated.size() == generated_,
              "a chain of logits processors knows {} generated tokens, not {}",
              generated_,
              history.generated.size());
  if (leaves_any(logits, history, scratch)) return scratch;
  scratch.assign(logits.begin(), logits.end());
  for (const LogitsProcessor* processor : binding_) processor->apply(scratch, history);
  return any_finite(scratch) ? std::span<const float>(scratch) : logits;
}

bool LogitsChain::leaves_any(std::span<const float> logits,
                             const TokenHistory& history,
                             std::vector<float>& scratch) const {
  scratch.assign(logits.begin(), logits.end());
  for (const auto& processor : processors_) processor->apply(scratch, history);
  return any_finite(scratch);
}

void LogitsChain::advance(std::int32_t token) {
  if (empty()) return;
  for (const auto& processor : processors_) processor->advance(token);
  ++generated_;
}

void LogitsChain::roll_back(std::span<const std::int32_t> generated, std::size_t tokens) {
  if (empty()) return;
  FERRY_CHECK(generated.size() == generated_ && tokens <= generated_,
              "{} of {} generated tokens were to be taken back; the chain knows {}",
              tokens,
              generated.size(),
              generated_);
  for (const auto& processor : processors_) processor->roll_back(generated.last(tokens));
  generated_ -= tokens;
}

LogitsChain LogitsChain::fork() const {
  LogitsChain other;
  for (const auto& processor : processors_) {
    other.processors_.push_back(processor->fork());
    if (std::find(binding_.begin(), binding_.end(), processor.get()) != binding_.end())
      other.binding_.push_back(other.processors_.back().get());
  }
  other.generated_ = generated_;
  return other;
}

}  // namespace ferry
