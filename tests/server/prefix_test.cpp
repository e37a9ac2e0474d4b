// Prompts that the server has seen before: what replies, metrics and flushing tell of them.
#include <numeric>

#include "server/routes_fixture.h"

namespace ferry {
namespace {

using test::get_from;
using test::Json;
using test::MaybeAnswer;
using test::Routes;

/// 40 ids that no other test sends: two full pages, and a rest.
std::vector<int> prompt_of(int first) {
  std::vector<int> ids(40);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

class Prefix : public Routes {
 protected:
  static Json generate(int first, const Json& more = Json::object()) {
    Json body = {{"input_ids", prompt_of(first)},
                 {"max_new_tokens", 4},
                 {"temperature", 0},
                 {"ignore_eos", true}};
    body.update(more);
    return ok("/generate", body);
  }

  static int cached(const Json& reply) { return reply.at("meta_info").at("cached_tokens"); }

  static double metric(const std::string& name) {
    const std::string all = get_from(*served, "/metrics")->body;
    const std::size_t at = all.find("\n" + name + " ");
    EXPECT_NE(at, std::string::npos) << name;
    return std::stod(all.substr(at + name.size() + 2));
  }
};

TEST_F(Prefix, RepliesTellWhatWasThere) {
  const double asked = metric("ferry_prefix_cache_queries_total");
  const double hits = metric("ferry_prefix_cache_hits_total");
  const Json first = generate(100);
  const Json again = generate(100);
  EXPECT_EQ(cached(first), 0);
  EXPECT_EQ(cached(again), 32);
  EXPECT_EQ(again.at("output_ids"), first.at("output_ids"));
  const Json completion = ok("/v1/completions", {{"prompt", prompt_of(100)}, {"max_tokens", 1}});
  EXPECT_EQ(completion.at("usage").at("prompt_tokens_details").at("cached_tokens"), 32);
  EXPECT_EQ(metric("ferry_prefix_cache_queries_total") - asked, 120);
  EXPECT_EQ(metric("ferry_prefix_cache_hits_total") - hits, 64);
  EXPECT_GE(metric("ferry_kv_idle_tokens"), 32);
  EXPECT_EQ(metric("ferry_kv_tokens"), 0);
}

TEST_F(Prefix, EachPromptCountsOnceWhateverItsChoices) {
  const auto details = [](int n) {
    const Json reply =
        ok("/v1/completions",
           {{"prompt", {prompt_of(150), prompt_of(151)}}, {"n", n}, {"max_tokens", 1}});
    return reply.at("usage").at("prompt_tokens_details").at("cached_tokens").get<int>();
  };
  EXPECT_EQ(details(3), 0) << "two of three found what the first has computed";
  EXPECT_EQ(details(2), 64);
}

TEST_F(Prefix, SaltsKeepTenantsApart) {
  const Json a{{"cache_salt", "a"}}, b{{"cache_salt", "b"}};
  const Json c{{"cache_salt", "a"}, {"extra_key", "b"}}, d{{"extra_key", "ab"}};
  for (const Json& salt : {a, b, c, d}) {
    EXPECT_EQ(cached(generate(200, salt)), 0) << salt;
    EXPECT_EQ(cached(generate(200, salt)), 32) << salt;
  }
  EXPECT_EQ(cached(generate(200, {{"cache_salt", nullptr}})), 0);
  EXPECT_EQ(post("/generate", R"({"input_ids": [1], "cache_salt": 5})")->status, 400);
}

TEST_F(Prefix, LogProbabilitiesOfThePromptAreComputedAnew) {
  const Json asks{{"return_logprob", true}, {"logprob_start_len", 0}};
  const Json first = generate(250, asks);
  const Json again = generate(250, asks);
  EXPECT_EQ(cached(again), 0);
  EXPECT_EQ(again.at("meta_info").at("input_token_logprobs"),
            first.at("meta_info").at("input_token_logprobs"));
  const Json late = generate(250, {{"return_logprob", true}, {"logprob_start_len", 20}});
  EXPECT_EQ(cached(late), 16) << "the row of position 20 speaks for 21";
}

TEST_F(Prefix, FlushingForgetsThem) {
  for (const char* path : {"/flush_cache", "/reset_prefix_cache"}) {
    generate(300);
    EXPECT_EQ(cached(generate(300)), 32);
    ok(path, Json::object());
    EXPECT_EQ(metric("ferry_kv_idle_tokens"), 0);
    EXPECT_EQ(cached(generate(300)), 0) << path;
  }
  EXPECT_EQ(get_from(*served, "/flush_cache")->status, 200);
}

}  // namespace
}  // namespace ferry
