// Routes for who runs a group of ranks that come and go: how large it shall be, and who is in it.
#pragma once

#include "ferry/runtime/elastic_group.h"
#include "ferry/server/http_server.h"

namespace ferry {

/// vLLM's /scale_elastic_ep and /is_scaling_elastic_ep, and /elastic_members. Borrows both.
void add_scaling_routes(RouteTable& routes, GroupSize& group);

}  // namespace ferry
