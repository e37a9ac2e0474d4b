// ferry serve --elastic: a process of the group is killed and started again while clients listen.
#include <algorithm>
#include <array>
#include <future>
#include <memory>
#include <optional>

#include "apps/server.h"
#include "ferry/launch.h"
#include "ferry/transport/sockets.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using test::Arguments;
using test::operator+;
using test::Program;
using test::Server;

constexpr int kStreams = 4;

class ElasticServe : public test::LongServe, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    if (!available(GetParam())) GTEST_SKIP() << "this build or machine has no " << GetParam();
    LongServe::SetUp();
    port_ = own_address(listen_at(resolve("127.0.0.1", 0))).port();
  }

  static bool available(std::string_view transport) {
    const auto all = list_transports();
    return std::ranges::any_of(
        all, [&](const TransportInfo& t) { return t.name == transport && t.available; });
  }

  Arguments variables(int rank, int size) const {
    return {"RANK=" + std::to_string(rank),
            "WORLD_SIZE=" + std::to_string(size),
            "MASTER_ADDR=127.0.0.1",
            "MASTER_PORT=" + std::to_string(port_)};
  }

  Arguments arguments() const {
    return {"--model", model_, "--elastic", "--transport", GetParam(), "--timeout", "20"};
  }

  std::unique_ptr<Program> start(int rank, int size) const {
    return std::make_unique<Program>(
        Arguments{"serve", "--port", "0", "--threads", "1"} + arguments(), variables(rank, size));
  }

  static std::string completion(int i, int tokens) {
    return nlohmann::json{{"prompt", "hello " + std::to_string(i)},
                          {"max_tokens", tokens},
                          {"ignore_eos", true},
                          {"stream", true},
                          {"temperature", 0.8},
                          {"seed", i}}
        .dump();
  }

  /// The text of a stream, or all of it where that is something else.
  static std::string text_of(const std::string& stream) {
    std::string text;
    for (std::size_t at = 0; (at = stream.find("data: {", at)) != std::string::npos;) {
      at += 6;
      const auto event = nlohmann::json::parse(
          stream.substr(at, stream.find('\n', at) - at), nullptr, /*allow_exceptions=*/false);
      if (!event.is_object() || !event.contains("choices")) return stream;
      for (const auto& choice : event["choices"]) text += choice.value("text", "");
    }
    return stream.find("data: [DONE]") == std::string::npos ? stream : text;
  }

  static std::vector<std::string> texts(Server& server, int tokens) {
    std::vector<std::future<std::string>> all;
    for (int i = 0; i < kStreams; ++i) {
      all.push_back(std::async(std::launch::async, [&server, i, tokens] {
        return text_of(server.curl("/v1/completions", completion(i, tokens), "-N"));
      }));
    }
    std::vector<std::string> heard;
    for (auto& one : all) heard.push_back(one.get());
    return heard;
  }

  static nlohmann::json members(Server& server) {
    return nlohmann::json::parse(server.curl("/elastic_members", ""), nullptr, false);
  }

  static void wait_for_members(Server& server, std::size_t count, int epoch) {
    for (int i = 0; i < 1500; ++i) {
      const auto state = members(server);
      if (state.is_object() && state["members"].size() == count && state["epoch"] >= epoch) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << members(server).dump();
  }

  int port_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         ElasticServe,
                         testing::Values("shm", "fabric"),
                         [](const auto& p) { return std::string(p.param); });

TEST_P(ElasticServe, AKilledRankComesBackAndStreamsGoOn) {
  const int tokens = slow_run() ? 300 : 1500;
  std::vector<std::string> expected;
  {
    Server alone({"--model", model_});
    expected = texts(alone, tokens);
  }
  std::array<std::unique_ptr<Program>, 3> others{nullptr, start(1, 3), start(2, 3)};
  Server server(arguments(), variables(0, 3));
  auto heard = std::async(std::launch::async, [&] { return texts(server, tokens); });
  wait_for_running(server, kStreams);
  kill(others[1]->pid(), SIGKILL);
  wait_for_members(server, 2, 1);
  others[1] = start(1, 3);
  wait_for_members(server, 3, 2);
  EXPECT_EQ(heard.get(), expected);
  EXPECT_NE(server.curl("/metrics", "").find("ferry_ranks_lost_total 1"), std::string::npos);
  EXPECT_EQ(texts(server, 20).size(), static_cast<std::size_t>(kStreams));
  kill(server.program().pid(), SIGTERM);
  EXPECT_EQ(server.program().wait().status, 0);
  for (const int rank : {1, 2})
    EXPECT_EQ(others[static_cast<std::size_t>(rank)]->wait().status, 0) << rank;
}

TEST_P(ElasticServe, AGroupGrowsAndShrinksByARoute) {
  const int tokens = slow_run() ? 200 : 800;
  std::vector<std::string> expected;
  {
    Server alone({"--model", model_});
    expected = texts(alone, tokens);
  }
  Server server(arguments(), variables(0, 1));
  auto heard = std::async(std::launch::async, [&] { return texts(server, tokens); });
  const auto newcomer = start(1, 2);
  EXPECT_NE(server.curl("/scale_elastic_ep", R"({"new_data_parallel_size": 0})").find("1 to 1024"),
            std::string::npos);
  server.curl("/scale_elastic_ep", R"({"new_data_parallel_size": 2})");
  wait_for_members(server, 2, 1);
  EXPECT_EQ(server.curl("/is_scaling_elastic_ep", ""), R"({"is_scaling_elastic_ep":false})");
  server.curl("/scale_elastic_ep", R"({"new_data_parallel_size": 1})");
  wait_for_members(server, 1, 2);
  EXPECT_EQ(newcomer->wait().status, 0);
  EXPECT_EQ(heard.get(), expected);
}

TEST_P(ElasticServe, WhatDoesNotGoWithItIsRefused) {
  const auto refused = [&](const Arguments& more, const Arguments& environment, const char* text) {
    const auto outcome = test::run_program(
        Arguments{"serve", "--model", model_, "--elastic", "--port", "0"} + more, environment);
    test::expect_one_line(outcome, 2, text);
  };
  refused({"--transport", "shm"}, {}, "set RANK, WORLD_SIZE");
  refused({"--transport", "shm", "--ep", "3"}, variables(0, 2), "begins with 2 (WORLD_SIZE)");
  refused({"--transport", "shm", "--tp", "2"}, variables(0, 2), "--tp 2");
  refused({"--transport", "shm", "--init-expert-location", "plan.json"},
          variables(0, 2),
          "plan.json places experts for one number of ranks");
  refused({"--transport", "shm", "--choose-by", "measured"},
          variables(0, 2),
          "has nobody to measure with");
  refused({"--transport", "inproc"}, variables(0, 2), "use --transport shm or fabric");
}

}  // namespace
}  // namespace ferry
