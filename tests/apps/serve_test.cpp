// ferry serve as a process: start, signals, ranks that die, and curl.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "apps/server.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using test::Arguments;
using test::kEndless;
using test::long_stream;
using test::LongServe;
using test::Server;
using test::operator+;
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

std::string end_of(const std::string& text) {
  return text.substr(std::max<std::size_t>(text.size(), 300) - 300);
}

TEST(Serve, TheBodyOfTheWholeIdeaOverRanksOfAnyTransport) {
  std::string first;
  for (const char* transport : {"inproc", "shm"}) {
    Server server({"--moe-a2a-backend", "pplx", "--ep", "4", "--transport", transport});
    const Json json =
        Json::parse(server.curl("/generate", R"({"text": "Hello", "max_tokens": 10})"));
    EXPECT_GE(json.at("output_ids").size(), 1U);
    if (first.empty()) first = json.at("text");
    EXPECT_EQ(json.at("text"), first);
    kill(server.program().pid(), SIGTERM);
    const auto outcome = server.program().wait();
    EXPECT_EQ(outcome.status, 0) << transport << outcome.err;
    EXPECT_NE(outcome.err.find("POST /generate 200"), std::string::npos) << outcome.err;
  }
}

TEST_F(LongServe, TermLetsRunningRequestsFinishAndRefusesNewOnes) {
  Server server({"--model", model_, "--shutdown-timeout", "180"});
  std::string streamed;
  std::thread client([&] { streamed = server.curl("/v1/completions", long_stream(10000), "-N"); });
  wait_for_running(server, 1);
  kill(server.program().pid(), SIGTERM);
  client.join();
  EXPECT_NE(streamed.find("data: [DONE]"), std::string::npos) << end_of(streamed);
  EXPECT_EQ(server.program().wait().status, 0);
}

TEST_F(LongServe, WhatIsLeftAtTheDeadlineGetsAnError) {
  Server server({"--model", model_, "--ep", "2", "--shutdown-timeout", "0"});
  std::string streamed;
  std::thread client(
      [&] { streamed = server.curl("/v1/completions", long_stream(kEndless), "-N"); });
  wait_for_running(server, 1);
  kill(server.program().pid(), SIGTERM);
  client.join();
  EXPECT_NE(streamed.find("shutting down"), std::string::npos) << end_of(streamed);
  EXPECT_EQ(server.program().wait().status, 0);
}

TEST_F(LongServe, ClientsAreToldWhenARankIsKilled) {
  Server server({"--model", model_, "--ep", "3", "--transport", "shm", "--timeout", "5"});
  const std::vector<pid_t> ranks = server.program().children();
  ASSERT_EQ(ranks.size(), 3U);
  std::vector<std::string> answers(4);
  std::vector<std::thread> clients;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    clients.emplace_back([&, i] {
      std::string body = long_stream(kEndless);
      if (i % 2 == 1) body.replace(body.find("stream\": true") + 9, 4, "false");
      answers[i] = server.curl("/v1/completions", body, "-N");
    });
  }
  wait_for_running(server, 4);
  const Clock::time_point begin = Clock::now();
  kill(ranks[1], SIGKILL);
  for (std::thread& client : clients) client.join();
  EXPECT_LT(Clock::now() - begin, 20s);
  for (const std::string& answer : answers)
    EXPECT_NE(answer.find("\"error\""), std::string::npos) << end_of(answer);
  EXPECT_EQ(server.program().wait().status, 1);
  for (const pid_t rank : ranks) EXPECT_NE(kill(rank, 0), 0) << "a rank is left behind";
}

/// A client of a stream that never ends by itself; it hangs up when it is destroyed.
class Reader {
 public:
  Reader(const Server& server, int seed)
      : pipe_(popen(("exec curl -sSN -m 280 " + server.url("/v1/completions") + " -d '" +
                     R"({"temperature": 0.9, "seed": )" + std::to_string(seed) + ", " +
                     long_stream(kEndless).substr(1) + "' 2>&1")
                        .c_str(),
                    "r")) {}

  ~Reader() {
    pclose(pipe_);
    std::free(line_);
  }

  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// The text of the next event; a failure where it is an error, or the stream has ended.
  std::string next() {
    while (getline(&line_, &capacity_, pipe_) > 0) {
      const std::string_view line = line_;
      if (!line.starts_with("data: ")) continue;
      const Json event = Json::parse(line.substr(6), nullptr, /*allow_exceptions=*/false);
      if (!event.contains("choices")) throw std::runtime_error("no token: " + std::string(line));
      return event.at("choices").at(0).at("text");
    }
    throw std::runtime_error("the stream broke off");
  }

 private:
  std::FILE* pipe_;
  char* line_ = nullptr;
  std::size_t capacity_ = 0;
};

void wait_for_metric(Server& server, const std::string& line) {
  for (int i = 0; i < 600; ++i) {
    if (server.curl("/metrics", "").find(line) != std::string::npos) return;
    std::this_thread::sleep_for(20ms);
  }
  FAIL() << server.curl("/metrics", "");
}

/// Three processes, of which two go on when one dies, as far as experts have replicas.
Arguments three_that_mask(const std::string& model, int redundant) {
  return {"--model",
          model,
          "--ep",
          "3",
          "--transport",
          "shm",
          "--moe-a2a-backend",
          "mooncake",
          "--ep-num-redundant-experts",
          std::to_string(redundant)};
}

TEST_F(LongServe, StreamsGoOnWithoutARankThatIsKilled) {
  constexpr int kClients = 6;
  constexpr int kEventsAfter = 300;
  std::vector<std::vector<std::string>> texts(kClients);
  {
    Server server(three_that_mask(model_, 8));
    std::atomic<bool> lost{false};
    std::vector<std::thread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&, i, &own = texts[static_cast<std::size_t>(i)]] {
        try {
          Reader reader(server, i);
          while (!lost) own.push_back(reader.next());
          for (int n = 0; n < kEventsAfter; ++n) own.push_back(reader.next());
        } catch (const std::exception& e) {
          ADD_FAILURE() << "client " << i << ": " << e.what();
        }
      });
    }
    wait_for_running(server, kClients);
    kill(server.program().children()[1], SIGKILL);
    wait_for_metric(server, "ferry_ranks_lost_total 1");
    lost = true;
    for (std::thread& client : clients) client.join();
    wait_for_metric(server, "ferry_restarts_total 2");
    kill(server.program().pid(), SIGTERM);
    const auto outcome = server.program().wait();
    EXPECT_EQ(outcome.status, 1) << "a rank was lost";
    EXPECT_NE(outcome.err.find("without rank 1 from now on: 2 of 3"), std::string::npos)
        << outcome.err;
  }
  Server alone({"--model", model_});
  for (int i = 0; i < kClients; ++i) {
    Reader reader(alone, i);
    const auto& together = texts[static_cast<std::size_t>(i)];
    for (std::size_t n = 0; n < together.size(); ++n)
      ASSERT_EQ(reader.next(), together[n]) << "client " << i << ", event " << n;
  }
}

TEST_F(LongServe, ALostExpertEndsTheStreamsWithAnError) {
  Server server(three_that_mask(model_, 2));
  std::string streamed;
  std::thread client(
      [&] { streamed = server.curl("/v1/completions", long_stream(kEndless), "-N"); });
  wait_for_running(server, 1);
  kill(server.program().children()[1], SIGKILL);
  client.join();
  EXPECT_NE(streamed.find("has no replica on another rank"), std::string::npos) << end_of(streamed);
  EXPECT_EQ(server.program().wait().status, 1);
}

TEST(Serve, LimitsCountAllRanksTogetherAlsoInGroups) {
  Server server({"--ep", "2", "--tp", "2", "--max-total-tokens", "64"});
  const std::string fits = server.curl("/generate", R"({"text": "Hello", "max_tokens": 50})");
  EXPECT_NE(fits.find("output_ids"), std::string::npos) << fits;
  const std::string never = server.curl("/generate", R"({"text": "Hello", "max_tokens": 100})");
  EXPECT_NE(never.find("--max-total-tokens"), std::string::npos) << never;
}

TEST_F(LongServe, KeysAndValuesHaveThePartOfTheMemoryThatIsAskedFor) {
  Server little({"--model", model_, "--ep", "2", "--mem-fraction-static", "0.001"});
  Server much({"--model", model_, "--ep", "2", "--mem-fraction-static", "0.5"});
  const std::int64_t positions = positions_of(little);
  EXPECT_GE(positions, 32) << "a page a rank is the least";
  EXPECT_LT(positions, positions_of(much));
}

TEST(Serve, WrongUsageIsOneLine) {
  test::expect_one_line(
      test::run_program({"serve", "--host", "192.0.2.1", "--quiet"}), 2, "--host");
  test::expect_one_line(
      test::run_program({"serve", "--port", "0", "--max-total-tokens", "3", "--quiet"}),
      2,
      "at least 16");
  EXPECT_EQ(test::run_program({"serve", "--port", "99999"}).status, 2);
}

}  // namespace
}  // namespace ferry
