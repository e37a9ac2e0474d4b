// OpenAI's /v1/responses, as a translation of a chat and of its answer.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/call_registry.h"
#include "ferry/server/http_server.h"
#include "ferry/server/response_store.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// All borrowed, for as long as the routes and the replies are.
void add_responses_routes(RouteTable& routes,
                          EngineFront& front,
                          const ServedModel& model,
                          CallRegistry& calls,
                          ResponseStore& store);

}  // namespace ferry
