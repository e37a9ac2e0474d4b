// Server-sent events: a generation's pieces while they come.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "ferry/server/call_registry.h"
#include "ferry/server/generation.h"

namespace ferry {

/// How an API writes events. Each function gives the text of some, as named_event() makes it; ""
/// for none.
struct EventForm {
  std::function<std::string(Generation&)> head;
  std::function<std::string(Generation&, const Generation::Piece&)> piece;
  std::function<std::string(Generation&)> tail;
  ErrorForm failure;  ///< the stream ends behind it
};

/// As OpenAI's older routes and SGLang's have events: without names, with "data: [DONE]" and
/// `error_body` at their ends. The functions of `bodies` give the JSON of one event, or "".
EventForm unnamed_events(EventForm bodies);

/// An event whose name is its "type".
std::string named_event(const nlohmann::ordered_json& event);

/// A reply of what `form` makes; an error on the way is an event of its own. `aborted`: whether the
/// call, or which of its prompts, is to end now.
HttpReply stream_events(std::shared_ptr<Generation> generation,
                        EventForm form,
                        CallRegistry::Aborted aborted);

}  // namespace ferry
