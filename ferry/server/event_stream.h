// Server-sent events: a generation's pieces as "data: ..." lines while they come.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ferry/server/call_registry.h"
#include "ferry/server/generation.h"

namespace ferry {

/// How an API writes events; each function gives the JSON of one event, or "" for none.
struct EventForm {
  std::function<std::string(Generation&)> head;
  std::function<std::string(Generation&, const Generation::Piece&)> piece;
  std::function<std::string(Generation&)> tail;
};

/// A reply that ends with "data: [DONE]"; an error on the way is an event of its own. `aborted`:
/// whether the call is to end now.
HttpReply stream_events(std::shared_ptr<Generation> generation,
                        EventForm form,
                        CallRegistry::Aborted aborted);

}  // namespace ferry
