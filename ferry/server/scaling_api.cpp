#include "ferry/server/scaling_api.h"

#include <nlohmann/json.hpp>
#include <string>

#include "ferry/core/error.h"
#include "ferry/text/json_fields.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

Json json_of(const GroupSize::State& state) {
  return {{"epoch", state.epoch},
          {"data_parallel_size", state.members.size()},
          {"wanted_data_parallel_size", state.wanted},
          {"members", state.members},
          {"waiting", state.waiting}};
}

int wanted_size(const std::string& body) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  const auto size = json.is_object() ? json.find("new_data_parallel_size") : json.end();
  if (!json.is_object() || size == json.end() || !size->is_number_integer() || *size < 1 ||
      *size > GroupSize::kMost) {
    fail<ConfigError>(
        "expected a JSON object whose new_data_parallel_size is a number of ranks from 1 to {}",
        GroupSize::kMost);
  }
  return size->get<int>();
}

}  // namespace

void add_scaling_routes(RouteTable& routes, GroupSize& group) {
  routes.post("/scale_elastic_ep", [&](const HttpRequest& request) -> HttpReply {
    group.want(wanted_size(request.body));
    return {.body = to_text(json_of(group.state()))};
  });
  const auto is_scaling = [&](const HttpRequest&) -> HttpReply {
    const GroupSize::State state = group.state();
    const bool scaling = state.members.size() != static_cast<std::size_t>(state.wanted);
    return {.body = to_text({{"is_scaling_elastic_ep", scaling}})};
  };
  routes.post("/is_scaling_elastic_ep", is_scaling);
  routes.get("/is_scaling_elastic_ep", is_scaling);
  routes.get("/elastic_members", [&](const HttpRequest&) -> HttpReply {
    return {.body = to_text(json_of(group.state()))};
  });
}

}  // namespace ferry
