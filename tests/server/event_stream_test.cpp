#include "ferry/server/event_stream.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/offline_routes.h"

namespace ferry {
namespace {

using Json = nlohmann::json;

/// Tokens lie there before anybody reads them: the engine has given a later request more of them.
class EventsThatLieThere : public testing::Test {
 protected:
  std::vector<std::string> read(Json body) {
    body["stream"] = true;
    body["temperature"] = 0;
    const HttpReply reply = routes_.post("/v1/completions", body.dump());
    const Json later{{"prompt", "The"}, {"max_tokens", 30}, {"ignore_eos", true}};
    test::text_of(routes_.post("/v1/completions", later.dump()));
    return test::pieces_of(reply);
  }

  test::OfflineRoutes routes_{64};
};

TEST_F(EventsThatLieThere, LeaveInOnePiece) {
  const auto pieces = read({{"prompt", "Once upon"}, {"max_tokens", 9}, {"ignore_eos", true}});
  ASSERT_EQ(pieces.size(), 1U);
  EXPECT_TRUE(pieces[0].ends_with("data: [DONE]\n\n")) << pieces[0];
}

TEST_F(EventsThatLieThere, EndAtAStopStringThoughMoreHasCome) {
  const Json body{
      {"prompt", "Once upon"}, {"max_tokens", 9}, {"temperature", 0}, {"ignore_eos", true}};
  const Json whole = Json::parse(test::text_of(routes_.post("/v1/completions", body.dump())));
  const std::string text = whole.at("choices").at(0).at("text");
  const std::string stop = text.substr(text.size() / 3, 2);
  const auto pieces =
      read({{"prompt", "Once upon"}, {"max_tokens", 9}, {"ignore_eos", true}, {"stop", stop}});
  ASSERT_EQ(pieces.size(), 1U);
  EXPECT_NE(pieces[0].find(R"("finish_reason":"stop")"), std::string::npos) << pieces[0];
  EXPECT_TRUE(pieces[0].ends_with("data: [DONE]\n\n")) << pieces[0];
}

}  // namespace
}  // namespace ferry
