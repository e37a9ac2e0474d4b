// Many clients at once, and those that go away.
#include <arpa/inet.h>
#include <httplib.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <thread>

#include "ferry/transport/unique_fd.h"
#include "server/routes_fixture.h"
#include "support/long_tests.h"

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

/// Threads of this process, in which the server is.
std::ptrdiff_t threads_now() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"),
                       std::filesystem::directory_iterator());
}

UniqueFd connect_to(const test::Served& served) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(served.port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

std::string read_to_end(const UniqueFd& fd) {
  std::string all;
  std::array<char, 65536> part{};
  for (ssize_t n; (n = recv(fd.get(), part.data(), part.size(), 0)) > 0;)
    all.append(part.data(), static_cast<std::size_t>(n));
  return all;
}

TEST(Load, IdleConnectionsAndStreamsNeedNoThreads) {
  const test::Served served({.max_sequences_per_rank = 16, .max_waiting = 256},
                            {.port = 0, .idle_timeout = 60s, .access_log = false});
  const int streams = slow_run() ? 16 : 64;
  const auto post = [](int seed) {
    const std::string body = Json{
        {"text", kPrompt},
        {"max_tokens", 20 + seed % 20},
        {"temperature", 0.9},
        {"seed", seed},
        {"stream", true}}.dump();
    return "POST /generate HTTP/1.1\r\nConnection: close\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body;
  };
  const auto ask = [&](int seed) {
    UniqueFd fd = connect_to(served);
    const std::string text = post(seed);
    EXPECT_EQ(send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), std::ssize(text));
    return fd;
  };
  std::vector<std::vector<Json>> solo;
  for (int i = 0; i < streams; ++i) solo.push_back(tokens_of(read_to_end(ask(i))));
  std::vector<UniqueFd> idle, running;
  for (int i = 0; i < 300; ++i) idle.push_back(connect_to(served));
  for (int i = 0; i < streams; ++i) running.push_back(ask(i));
  EXPECT_LT(threads_now(), 32);
  for (int i = 0; i < streams; ++i) {
    const std::vector<Json> tokens = tokens_of(read_to_end(running[static_cast<std::size_t>(i)]));
    EXPECT_FALSE(tokens.empty());
    EXPECT_EQ(tokens, solo[static_cast<std::size_t>(i)]) << "stream " << i;
    EXPECT_LT(threads_now(), 32);
  }
  const std::string_view last = "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n";
  for (const UniqueFd& fd : idle) {  // still there, and of use
    ASSERT_EQ(send(fd.get(), last.data(), last.size(), MSG_NOSIGNAL), std::ssize(last));
    EXPECT_TRUE(read_to_end(fd).starts_with("HTTP/1.1 200"));
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
