// Speculation behind the server: the same replies as without, whatever a call asks for.
#include <gtest/gtest.h>

#include "ferry/text/grammars.h"
#include "server/routes_fixture.h"

namespace ferry {
namespace {

using test::get_from;
using test::Json;
using test::kPrompt;
using test::post_to;
using test::Served;

double metric(const Served& server, const std::string& name) {
  const std::string all = get_from(server, "/metrics")->body;
  const std::size_t at = all.find("\n" + name + " ");
  EXPECT_NE(at, std::string::npos) << name;
  return std::stod(all.substr(at + name.size() + 2));
}

class Drafts : public test::Routes {
 protected:
  static Json completion(const Served& server, Json body) {
    if (!body.contains("prompt")) body["prompt"] = kPrompt;
    body["seed"] = 5;
    const auto reply = post_to(server, "/v1/completions", body.dump());
    EXPECT_EQ(reply->status, 200) << reply->body;
    const Json all = Json::parse(reply->body);
    return {{"choices", all["choices"]}, {"usage", all["usage"]}};
  }
};

TEST_F(Drafts, GiveTheSameReplies) {
  const Served drafting({.max_waiting = 8, .drafts = {.tokens = 4, .shortest_run = 1}},
                        {.port = 0, .access_log = false},
                        2);
  std::vector<Json> bodies = {
      {{"temperature", 0}, {"max_tokens", 60}, {"logprobs", 2}},
      {{"temperature", 0.8}, {"max_tokens", 60}, {"n", 3}},
      {{"temperature", 0.8}, {"max_tokens", 60}, {"frequency_penalty", 0.3}, {"logprobs", 1}},
      {{"temperature", 0}, {"max_tokens", 60}, {"stop", {"."}}},
      {{"temperature", 0}, {"max_tokens", 60}, {"stop", {"e"}}},
      {{"temperature", 0}, {"max_tokens", 1}},
      {{"prompt", "la la la la la la la la"}, {"temperature", 0}, {"max_tokens", 40}}};
  if (Grammars::built_in()) {
    bodies.push_back({{"temperature", 0.8}, {"max_tokens", 60}, {"regex", "(ab|ba|abc){9,19}"}});
    const Json schema = {{"type", "array"}, {"items", {{"enum", {"one", "two"}}}}, {"minItems", 5}};
    bodies.push_back({{"temperature", 0.8}, {"max_tokens", 60}, {"guided_json", schema}});
  }
  for (const Json& body : bodies)
    EXPECT_EQ(completion(drafting, body), completion(*served, body)) << body;
  const double drafted = metric(drafting, "ferry_drafted_tokens_total");
  const double accepted = metric(drafting, "ferry_accepted_tokens_total");
  EXPECT_GT(accepted, 20);
  EXPECT_GT(drafted, accepted);
  EXPECT_EQ(metric(*served, "ferry_drafted_tokens_total"), 0);
  EXPECT_EQ(metric(*served, "ferry_accepted_tokens_total"), 0);
}

}  // namespace
}  // namespace ferry
