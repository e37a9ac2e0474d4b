// OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// Adds the routes. Front and model are borrowed for as long as the server runs.
void add_openai_routes(RouteTable& routes, EngineFront& front, const ServedModel& model);

}  // namespace ferry
