// RouteTable for who runs the server: /health, /metrics, recording of expert load, the dashboard.
#pragma once

#include "ferry/runtime/engine_front.h"
#include "ferry/server/http_server.h"
#include "ferry/server/metrics.h"
#include "ferry/server/served_model.h"

namespace ferry {

/// Adds the routes. All borrowed for as long as the server runs.
void add_operation_routes(RouteTable& routes,
                          EngineFront& front,
                          Metrics& metrics,
                          const ServedModel& model);

}  // namespace ferry
