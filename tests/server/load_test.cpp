// Many clients at once, and those that go away.
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "server/routes_fixture.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using test::Json;
using test::kPrompt;
using Clock = std::chrono::steady_clock;

httplib::Client client_of(const test::Served& served) {
  httplib::Client client("127.0.0.1", served.port());
  client.set_read_timeout(60, 0);
  return client;
}

/// Events of one stream as text.
std::string stream_text(const test::Served& served, const Json& body) {
  const httplib::Result result =
      client_of(served).Post("/generate", body.dump(), "application/json");
  return result && result->status == 200 ? result->body : "failed";
}

/// Without what differs from call to call.
std::vector<Json> tokens_of(const std::string& body) {
  std::vector<Json> ids;
  std::istringstream in(body);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("data: {")) ids.push_back(Json::parse(line.substr(6)).at("output_ids"));
  return ids;
}

TEST(Load, SixtyFourStreamsAtOnceEqualTheirSoloRuns) {
  const test::Served served({.max_sequences_per_rank = 16, .max_waiting = 256});
  std::vector<Json> bodies;
  for (int i = 0; i < 64; ++i) {
    bodies.push_back(
        {{"text", std::string(kPrompt).substr(0, 10 + static_cast<std::size_t>(i) % 40)},
         {"max_tokens", 20 + i % 30},
         {"temperature", i % 2 == 0 ? 0.0 : 0.9},
         {"seed", i},
         {"stream", true}});
  }
  std::vector<std::vector<Json>> solo;
  for (const Json& body : bodies) solo.push_back(tokens_of(stream_text(served, body)));
  std::vector<std::vector<Json>> together(bodies.size());
  std::vector<std::thread> clients;
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    clients.emplace_back([&, i] { together[i] = tokens_of(stream_text(served, bodies[i])); });
  }
  for (std::thread& client : clients) client.join();
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    EXPECT_FALSE(solo[i].empty());
    EXPECT_EQ(together[i], solo[i]) << "stream " << i;
  }
}

Json endless(int seed) {
  return {{"text", kPrompt},
          {"max_tokens", 400},
          {"ignore_eos", true},
          {"seed", seed},
          {"temperature", 1}};
}

double metric(const test::Served& served, const std::string& name) {
  const httplib::Result result = client_of(served).Get("/metrics");
  const std::size_t at = result->body.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::stod(result->body.substr(at + name.size() + 2));
}

TEST(Load, ClientsThatGoAwayCancelTheirRequests) {
  const test::Served served({.max_sequences_per_rank = 1, .max_waiting = 8});
  for (const bool streams : {true, false}) {
    const double before = metric(served, "ferry_requests_cancelled_total");
    httplib::Client client("127.0.0.1", served.port());
    if (!streams) client.set_read_timeout(0, 20000);
    Json body = endless(1);
    body["stream"] = streams;
    body["n"] = 8;
    httplib::Request request;
    request.method = "POST";
    request.path = "/generate";
    request.body = body.dump();
    request.content_receiver = [](const char*, std::size_t, std::uint64_t, std::uint64_t) {
      return false;
    };
    static_cast<void>(client.send(request));
    client.stop();
    for (int i = 0; i < 500 && metric(served, "ferry_requests_cancelled_total") == before; ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_GT(metric(served, "ferry_requests_cancelled_total"), before) << streams;
    EXPECT_EQ(metric(served, "ferry_requests_running"), 0) << streams;
  }
}

TEST(Load, OverloadIsAnsweredAtOnce) {
  const test::Served served(
      {.max_sequences_per_rank = 1, .max_waiting = 1}, {.port = 0, .access_log = false}, 1);
  std::vector<std::thread> clients;
  std::atomic<bool> over{false};
  std::atomic<int> answered{0}, others{0};
  for (int i = 0; i < 3; ++i) {  // one more than there is room for
    clients.emplace_back([&, i] {
      while (!over) {
        const auto result =
            client_of(served).Post("/generate", endless(i).dump(), "application/json");
        if (result && result->status == 200)
          ++answered;
        else if (!result || result->status != 429)
          ++others;
      }
    });
  }
  int refused = 0;
  const Clock::time_point end = Clock::now() + 30s;
  while ((refused == 0 || answered == 0) && Clock::now() < end) {
    const Clock::time_point begin = Clock::now();
    const auto result = client_of(served).Post(
        "/generate", R"({"text": "a", "max_tokens": 1})", "application/json");
    if (result->status != 429) continue;
    ++refused;
    EXPECT_LT(Clock::now() - begin, 9s);
    EXPECT_EQ(result->get_header_value("Retry-After"), "1");
    EXPECT_EQ(Json::parse(result->body).at("error").at("type"), "rate_limit_error");
  }
  over = true;
  for (std::thread& client : clients) client.join();
  EXPECT_GT(refused, 0);
  EXPECT_GT(answered, 0);
  EXPECT_EQ(others, 0);
}

}  // namespace
}  // namespace ferry
