// From a call that has been read to its reply: the one way that tokens of all routes in OpenAI's
// manner, and of those that are translated into chats, take.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ferry/server/call_registry.h"
#include "ferry/server/event_stream.h"
#include "ferry/server/openai_call.h"

namespace ferry {

/// How an API shows the answer of one call.
struct CallForm {
  std::function<std::string(Generation&)> whole;
  EventForm events;
};

/// Streams where the call wants it. Throws HttpError, also for a prompt that is too long, and
/// Refused.
HttpReply answer_call(EngineFront& front,
                      const ServedModel& model,
                      CallRegistry& calls,
                      const OpenAiCall& call,
                      CallForm form);

/// The functions own the form together. REQUIRES: it has whole(), head(), piece(), tail() and
/// failure().
template <class Form>
CallForm form_of(std::shared_ptr<Form> form) {
  return {
      .whole = [form](Generation& g) { return form->whole(g); },
      .events = {
          .head = [form](Generation& g) { return form->head(g); },
          .piece = [form](Generation& g, const Generation::Piece& p) { return form->piece(g, p); },
          .tail = [form](Generation& g) { return form->tail(g); },
          .failure = [form](const HttpError& error) { return form->failure(error); },
      }};
}

}  // namespace ferry
