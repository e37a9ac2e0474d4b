// SGLang's own routes: /generate, /abort_request, /model_info, /server_info, /tokenize,
// /detokenize.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/call_registry.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// Adds the routes. All borrowed for as long as the server runs.
void add_sglang_routes(RouteTable& routes,
                       EngineFront& front,
                       const ServedModel& model,
                       CallRegistry& calls);

/// Who asks, for the fair queue.
std::uint64_t client_of(const HttpRequest& request);

}  // namespace ferry
