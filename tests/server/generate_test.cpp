// What SGLang's /generate has beside the values that all routes share.
#include <atomic>
#include <thread>

#include "server/routes_fixture.h"

namespace ferry {
namespace {

using test::Json;
using test::kPrompt;
using test::Routes;

TEST_F(Routes, PromptsOfABatchAreAbortedEachByItsName) {
  for (const bool streams : {false, true}) {
    std::string answer;
    std::thread client([&] {
      answer = post("/generate",
                    Json{{"text", {kPrompt, kPrompt}},
                         {"sampling_params",
                          {{{"max_new_tokens", 900}, {"ignore_eos", true}},
                           {{"max_new_tokens", 30}, {"ignore_eos", true}}}},
                         {"rid", {"long", "short"}},
                         {"stream", streams}}
                        .dump())
                   ->body;
    });
    std::atomic<bool> over = false;
    std::thread aborter([&] {
      while (!over) ok("/abort_request", {{"rid", {"nobody's", "long"}}});
    });
    client.join();
    over = true;
    aborter.join();
    std::vector<Json> last(2);  // of each prompt
    if (streams) {
      std::istringstream in(answer);
      for (std::string line; std::getline(in, line);) {
        if (!line.starts_with("data: {")) continue;
        const Json event = Json::parse(line.substr(6));
        last.at(event.at("index").get<std::size_t>()) = event;
      }
    } else {
      last = Json::parse(answer).get<std::vector<Json>>();
    }
    EXPECT_EQ(last[0].at("meta_info").at("id"), "long");
    EXPECT_EQ(last[0].at("meta_info").at("finish_reason").at("type"), "abort");
    EXPECT_EQ(last[1].at("meta_info").at("id"), "short");
    EXPECT_EQ(last[1].at("meta_info").at("finish_reason").at("type"), "length")
        << "it was not named";
    EXPECT_EQ(last[1].at("output_ids").size(), 30U);
  }
  for (const Json& rid : {Json{"a"}, Json{"a", "b", "c"}, Json(7), Json{"a", 7}})
    EXPECT_EQ(post("/generate", Json{{"text", {"x", "y"}}, {"rid", rid}}.dump())->status, 400)
        << rid;
  EXPECT_EQ(post("/abort_request", R"({"rid": ["a", ""]})")->status, 400);
  EXPECT_EQ(ok("/v1/completions", {{"prompt", {"x", "y"}}, {"rid", {"a", "b"}}, {"max_tokens", 1}})
                .at("choices")
                .size(),
            2U);
}

/// What judges and rerankers read: the probabilities of a few tokens, wherever they stand.
TEST_F(Routes, LogprobsOfGivenIdsAreToldAtEveryPosition) {
  Json body = {{"text", kPrompt},
               {"sampling_params", {{"max_new_tokens", 6}, {"temperature", 0}}},
               {"return_logprob", true},
               {"top_logprobs_num", 3},
               {"logprob_start_len", 4}};
  const Json plain = ok("/generate", body).at("meta_info");
  EXPECT_FALSE(plain.contains("output_token_ids_logprobs"));
  // Of those that are told anyway, in an order of their own.
  const std::int32_t most = plain.at("output_top_logprobs")[0][0][1];
  const std::int32_t third = plain.at("output_top_logprobs")[0][2][1];
  body["token_ids_logprob"] = {third, most, third};
  const Json meta = ok("/generate", body).at("meta_info");
  EXPECT_EQ(meta.at("output_token_logprobs"), plain.at("output_token_logprobs"));
  EXPECT_EQ(meta.at("output_top_logprobs"), plain.at("output_top_logprobs"));
  const Json output = meta.at("output_token_ids_logprobs");
  ASSERT_EQ(output.size(), 6U);
  for (const Json& position : output) {
    ASSERT_EQ(position.size(), 3U);
    EXPECT_EQ(position[0][1], third);
    EXPECT_EQ(position[1][1], most);
    EXPECT_EQ(position[2], position[0]);
  }
  EXPECT_EQ(output[0][0], plain.at("output_top_logprobs")[0][2]);
  EXPECT_EQ(output[0][1], plain.at("output_top_logprobs")[0][0]);
  const Json input = meta.at("input_token_ids_logprobs");
  ASSERT_EQ(input.size(), meta.at("input_token_logprobs").size());
  EXPECT_EQ(input[0], nullptr);
  for (std::size_t i = 1; i < input.size(); ++i) {
    for (const Json& told : meta.at("input_top_logprobs")[i]) {
      EXPECT_TRUE(told[1] != third || input[i][0] == told) << i;
      EXPECT_TRUE(told[1] != most || input[i][1] == told) << i;
    }
    EXPECT_LE(input[i][0][0].get<double>(), 0);
  }
  EXPECT_EQ(stream("/generate", body).back().at("meta_info").at("output_token_ids_logprobs"),
            output);
  EXPECT_EQ(stream("/generate", body).back().at("meta_info").at("input_token_ids_logprobs"), input);

  Json batch = body;
  batch["text"] = {kPrompt, "Question:"};
  const Json both = ok("/generate", batch);
  EXPECT_EQ(both[0].at("meta_info").at("output_token_ids_logprobs"), output);
  EXPECT_EQ(both[1].at("meta_info").at("output_token_ids_logprobs")[0].size(), 3U);
  batch["token_ids_logprob"] = {{third, most, third}, nullptr};
  const Json first = ok("/generate", batch);
  EXPECT_EQ(first[0].at("meta_info").at("input_token_ids_logprobs"), input);
  EXPECT_FALSE(first[1].at("meta_info").contains("output_token_ids_logprobs"));
  batch["token_ids_logprob"] = {{most}, {third, most}};
  EXPECT_EQ(ok("/generate", batch)[1].at("meta_info").at("output_token_ids_logprobs")[0].size(),
            2U);
  batch["return_logprob"] = false;
  EXPECT_FALSE(ok("/generate", batch)[0].at("meta_info").contains("output_token_ids_logprobs"));
  for (const Json& ids :
       {Json(7), Json{"a"}, Json{1 << 30}, Json{-1}, Json{{1}}, Json{{1}, {2}}, Json(129, 1)}) {
    body["token_ids_logprob"] = ids;
    EXPECT_EQ(post("/generate", body.dump())->status, ids == Json{{1}} ? 200 : 400) << ids;
  }
}

}  // namespace
}  // namespace ferry
