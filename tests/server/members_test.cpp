// The tables of members hold what they say: each is walked, over the demo model.
#include "ferry/server/members.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "server/offline_routes.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

struct Route {
  RequestKind kind;
  std::string path;
  Json body;
};

std::vector<Route> routes() {
  return {
      {RequestKind::generate, "/generate", {{"text", "Once"}, {"max_new_tokens", 3}}},
      {RequestKind::sampling_params, "/generate", {{"text", "Once"}, {"max_tokens", 3}}},
      {RequestKind::completion, "/v1/completions", {{"prompt", "Once"}, {"max_tokens", 3}}},
      {RequestKind::chat,
       "/v1/chat/completions",
       {{"messages", Json::array({{{"role", "user"}, {"content", "Once"}}})}, {"max_tokens", 3}}},
      {RequestKind::messages,
       "/v1/messages",
       {{"messages", Json::array({{{"role", "user"}, {"content", "Once"}}})}, {"max_tokens", 3}}},
      {RequestKind::responses, "/v1/responses", {{"input", "Once"}, {"max_output_tokens", 3}}}};
}

Json with(const Route& route, const std::string& name, const Json& value) {
  Json body = route.body;
  body["temperature"] = 0;
  (route.kind == RequestKind::sampling_params ? body["sampling_params"][name] : body[name]) = value;
  return body;
}

class EveryMember : public testing::Test {
 protected:
  /// Without what differs from call to call. Throws what the route does.
  Json answer(const Route& route, const Json& body) const {
    Json json = Json::parse(test::text_of(routes_.post(route.path, body.dump())));
    for (const char* name : {"choices", "output_ids", "content"})
      if (json.contains(name)) return json[name];
    for (Json& item : json["output"]) item.erase("id");
    return json["output"];
  }

  std::string refusal(const Route& route, const Json& body) const {
    try {
      static_cast<void>(answer(route, body));
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  }

  test::OfflineRoutes routes_{64};
};

TEST_F(EveryMember, IsNamedOnce) {
  for (const Route& route : routes()) {
    std::set<std::string> names;
    for (const Member& member : members_of(route.kind))
      EXPECT_TRUE(names.insert(member.name).second) << route.path << " " << member.name;
  }
}

TEST_F(EveryMember, ThatIsDoneIsRead) {
  for (const Route& route : routes()) {
    for (const Member& member : members_of(route.kind)) {
      if (member.fate != Member::Fate::done) continue;
      // Of no member's type.
      const Json wrong = Json::array({Json::array({1e99})});
      EXPECT_NE(refusal(route, with(route, member.name, wrong)), "")
          << route.path << " " << member.name;
    }
  }
}

TEST_F(EveryMember, ThatIsHarmlessChangesNothing) {
  for (const Route& route : routes()) {
    const Json plain = answer(route, with(route, "seed", 1));
    for (const Member& member : members_of(route.kind)) {
      if (member.fate != Member::Fate::harmless) continue;
      for (const Json& value : {Json(7), Json("text"), Json(true), Json{{"a", 1}}})
        EXPECT_EQ(answer(route, with(route, member.name, value)), plain)
            << route.path << " " << member.name << " " << value;
    }
  }
}

TEST_F(EveryMember, ThatIsRefusedIsNamedUnlessItAsksForNothing) {
  for (const Route& route : routes()) {
    const Json plain = answer(route, with(route, "seed", 1));
    for (const Member& member : members_of(route.kind)) {
      if (member.fate != Member::Fate::refused) continue;
      for (const Json& value : {Json(7), Json("text"), Json{{"a", 1}}, Json::array({7})}) {
        const std::string message = refusal(route, with(route, member.name, value));
        EXPECT_NE(message.find(member.name), std::string::npos) << member.name << ": " << message;
      }
      std::vector<Json> nothing = {nullptr, "", Json::array(), Json::object()};
      if (member.nothing != nullptr) nothing.push_back(Json::parse(member.nothing));
      for (const Json& value : nothing)
        EXPECT_EQ(answer(route, with(route, member.name, value)), plain)
            << route.path << " " << member.name << " " << value;
    }
  }
}

TEST_F(EveryMember, ThatIsNullIsAbsent) {
  for (const Route& route : routes()) {
    const Json plain = answer(route, with(route, "seed", 1));
    for (const Member& member : members_of(route.kind)) {
      if (route.body.contains(member.name) || member.name == std::string("temperature")) continue;
      EXPECT_EQ(answer(route, with(route, member.name, nullptr)), plain)
          << route.path << " " << member.name;
    }
  }
}

TEST_F(EveryMember, ThatIsAnEmptyListAsksForNothing) {
  for (const Route& route : routes()) {
    const Json plain = answer(route, with(route, "seed", 1));
    for (const char* name :
         {"stop", "stop_token_ids", "allowed_token_ids", "suppress_tokens", "bad_words"})
      EXPECT_EQ(answer(route, with(route, name, Json::array())), plain)
          << route.path << " " << name;
  }
}

}  // namespace
}  // namespace ferry
