// OpenAI's routes: /v1/models, /v1/models/NAME, /v1/completions, /v1/chat/completions.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/call_registry.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// Adds the routes. All borrowed for as long as the server runs.
void add_openai_routes(RouteTable& routes,
                       EngineFront& front,
                       const ServedModel& model,
                       CallRegistry& calls);

}  // namespace ferry
