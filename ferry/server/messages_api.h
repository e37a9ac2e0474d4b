// Anthropic's API: /v1/messages and /v1/messages/count_tokens, as translations of a chat and of its
// answer.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/call_registry.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// All borrowed, for as long as the routes are.
void add_messages_routes(RouteTable& routes,
                         EngineFront& front,
                         const ServedModel& model,
                         CallRegistry& calls);

}  // namespace ferry
