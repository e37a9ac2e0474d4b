#include "ferry/server/call_answer.h"

#include <utility>

namespace ferry {

HttpReply answer_call(EngineFront& front,
                      const ServedModel& model,
                      CallRegistry& calls,
                      const OpenAiCall& call,
                      CallForm form) {
  check_lengths(model, call.prompts);
  const CallRegistry::Aborted aborted = calls.add(call.names);
  GenerationSettings settings = call.settings;
  settings.choices = call.best_of;
  const auto generation =
      std::make_shared<Generation>(front, for_generation(model), call.prompts, settings);
  if (call.stream) return stream_events(generation, std::move(form.events), aborted);
  return answer_when_done(generation, std::move(form.whole), aborted);
}

}  // namespace ferry
