// The HTTP server by itself: what clients may do wrong.
#include "ferry/server/http_server.h"

#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/echo.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using test::Echo;
using test::quick;
using test::send_text;
using Clock = std::chrono::steady_clock;

httplib::Client echo_client(const Echo& echo) {
  httplib::Client client("127.0.0.1", echo.server.port());
  client.set_read_timeout(10, 0);
  return client;
}

nlohmann::json error_of(const httplib::Result& result) {
  return nlohmann::json::parse(result->body).at("error");
}

TEST(HttpServer, AnswersAndTurnsErrorsIntoJson) {
  Echo echo;
  auto client = echo_client(echo);
  EXPECT_EQ(client.Post("/echo", "{\"a\":1}", "application/json")->body, "{\"a\":1}");
  const auto bad = client.Post("/bad", "x", "application/json");
  EXPECT_EQ(bad->status, 400);
  EXPECT_EQ(error_of(bad).at("message"), "no such thing");
  EXPECT_EQ(error_of(bad).at("type"), "invalid_request_error");
  const auto busy = client.Post("/busy", "x", "application/json");
  EXPECT_EQ(busy->status, 429);
  EXPECT_EQ(busy->get_header_value("Retry-After"), "1");
}

TEST(HttpServer, UnknownRoutesAndWrongMethods) {
  Echo echo;
  EXPECT_EQ(echo_client(echo).Get("/nowhere")->status, 404);
  EXPECT_NE(std::string(error_of(echo_client(echo).Get("/nowhere")).at("message")).find("/nowhere"),
            std::string::npos);
  EXPECT_EQ(echo_client(echo).Get("/echo")->status, 405);
}

TEST(HttpServer, OversizedBodiesGet413) {
  Echo echo;
  const auto large = echo_client(echo).Post("/echo", std::string(2000, 'x'), "application/json");
  ASSERT_TRUE(large);
  EXPECT_EQ(large->status, 413);
  EXPECT_NE(std::string(error_of(large).at("message")).find("1000"), std::string::npos);
}

TEST(HttpServer, EndlessChunkedBodiesGet413) {
  HttpOptions options = quick();
  options.request_timeout = 10s;
  Echo echo(options);
  const UniqueFd fd = echo.connect();
  send_text(fd, "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "400\r\n" + std::string(1024, 'x') + "\r\n";
  for (int i = 0; i < 200; ++i)
    if (send(fd.get(), chunk.data(), chunk.size(), MSG_NOSIGNAL) < 0) break;
  EXPECT_EQ(echo_client(echo).Post("/echo", "ok", "text/plain")->body, "ok");
}

TEST(HttpServer, PackedBodiesAreRefused) {
  Echo echo;
  const auto reply =
      echo_client(echo).Post("/echo", {{"Content-Encoding", "gzip"}}, "x", "application/json");
  EXPECT_EQ(reply->status, 415);
}

TEST(HttpServer, SilentAndSlowClientsAreSentAway) {
  Echo echo;
  const UniqueFd silent = echo.connect();
  const UniqueFd slow_head = echo.connect();
  const UniqueFd slow_body = echo.connect();
  send_text(slow_head, "POST /echo HT");
  send_text(slow_body, "POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc");
  const Clock::time_point begin = Clock::now();
  std::thread trickle([&] {  // a byte now and then does not help
    for (int i = 0; i < 15; ++i) {
      std::this_thread::sleep_for(100ms);
      static_cast<void>(send(slow_body.get(), "x", 1, MSG_NOSIGNAL));
    }
  });
  EXPECT_EQ(Echo::read_all(silent), "");
  EXPECT_NE(Echo::read_all(slow_body).find("408"), std::string::npos);
  static_cast<void>(Echo::read_all(slow_head));
  EXPECT_LT(Clock::now() - begin, 9s);
  trickle.join();
}

TEST(HttpServer, GarbageGets400) {
  Echo echo;
  const UniqueFd fd = echo.connect();
  send_text(fd, "\x16\x03\x01 hello\r\n\r\n");
  EXPECT_NE(Echo::read_all(fd).find("HTTP/1.1 400"), std::string::npos);
}

TEST(HttpServer, StreamsEndWhenTheirClientGoes) {
  Echo echo;
  for (const bool reads : {true, false}) {
    const int before = echo.streams_ended;
    UniqueFd fd = echo.connect();
    send_text(fd, "GET /endless HTTP/1.1\r\n\r\n");
    std::array<char, 4096> part{};
    EXPECT_GT(recv(fd.get(), part.data(), part.size(), 0), 0);
    if (reads) fd = UniqueFd();  // the other one stays, but takes nothing any more
    for (int i = 0; i < 1000 && echo.streams_ended == before; ++i)
      std::this_thread::sleep_for(10ms);
    EXPECT_EQ(echo.streams_ended, before + 1) << reads;
  }
}

TEST(HttpServer, TooManyConnectionsAreRefusedAtOnce) {
  HttpOptions options = quick();
  options.max_connections = 2;
  options.idle_timeout = 10s;
  Echo echo(options);
  const UniqueFd first = echo.connect();
  const UniqueFd second = echo.connect();
  std::this_thread::sleep_for(200ms);  // both have their threads
  const Clock::time_point begin = Clock::now();
  const auto refused = echo_client(echo).Get("/open");
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->status, 503);
  EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
  EXPECT_LT(Clock::now() - begin, options.idle_timeout / 2);
}

TEST(HttpServer, KeyIsNeededButForOpenRoutes) {
  HttpOptions options = quick();
  options.api_key = "secret";
  Echo echo(options);
  auto client = echo_client(echo);
  EXPECT_EQ(client.Post("/echo", "x", "text/plain")->status, 401);
  EXPECT_EQ(client.Post("/echo", {{"Authorization", "Bearer wrong!"}}, "x", "text/plain")->status,
            401);
  EXPECT_EQ(client.Post("/echo", {{"Authorization", "Bearer secret"}}, "x", "text/plain")->status,
            200);
  EXPECT_EQ(client.Post("/echo", {{"Authorization", "bEARER secret"}}, "x", "text/plain")->status,
            200);
  for (const char* wrong : {"Bearer", "Bearer ", "secret", "Basic secret", "Bearer secretX"})
    EXPECT_EQ(client.Post("/echo", {{"Authorization", wrong}}, "x", "text/plain")->status, 401);
  // As Anthropic's clients send it.
  EXPECT_EQ(client.Post("/echo", {{"x-api-key", "secret"}}, "x", "text/plain")->status, 200);
  for (const char* wrong : {"", "secre", "secretX", "Bearer secret"})
    EXPECT_EQ(client.Post("/echo", {{"x-api-key", wrong}}, "x", "text/plain")->status, 401);
  EXPECT_EQ(client.Get("/open")->status, 200);
}

TEST(HttpServer, ErrorsLookAsTheirPathWants) {
  HttpOptions options = quick();
  options.api_key = "secret";
  Echo echo(options);
  const auto answer = [&](const httplib::Headers& headers, const std::string& body) {
    return echo_client(echo).Post("/other", headers, body, "text/plain")->body;
  };
  const std::pair<std::string, std::string> key{"x-api-key", "secret"};
  EXPECT_EQ(answer({}, "x"), "[401]");
  EXPECT_EQ(answer({key}, "x"), "[400]");
  EXPECT_EQ(answer({key, {"Content-Encoding", "gzip"}}, "x"), "[415]");
  EXPECT_EQ(answer({key}, std::string(options.max_body_bytes + 1, 'x')), "[413]");
  EXPECT_EQ(echo_client(echo).Get("/other", {key})->body, "[405]");
}

/// What curl -d sends where nobody says what it is.
TEST(HttpServer, FormsMayBeOfAnySize) {
  HttpOptions options = quick();
  options.max_body_bytes = 100000;
  Echo echo(options);
  for (const std::size_t size : {1U, 8192U, 8193U, 99999U}) {
    const std::string body(size, 'a');
    const auto result = echo_client(echo).Post("/echo", body, "application/x-www-form-urlencoded");
    EXPECT_EQ(result->status, 200) << size;
    EXPECT_EQ(result->body, body) << size;
  }
}

TEST(HttpServer, PostsWithoutALengthAreEmpty) {
  HttpOptions options = quick();
  options.idle_timeout = options.request_timeout = 10s;
  Echo echo(options);
  const UniqueFd fd = echo.connect();
  const Clock::time_point begin = Clock::now();
  send_text(fd, "POST /echo HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string answer = Echo::read_all(fd);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
  EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
  EXPECT_LT(Clock::now() - begin, options.idle_timeout / 2);
}

TEST(HttpServer, HeadHasTheHeadersOfGetAlone) {
  Echo echo;
  const auto result = echo_client(echo).Head("/open");
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Length"), "2");
  EXPECT_EQ(echo_client(echo).Head("/nowhere")->status, 404);
}

TEST(HttpServer, PagesOfAllowedOriginsMayCall) {
  HttpOptions options = quick();
  options.api_key = "secret";
  options.allowed_origins = {"https://a.example"};
  Echo echo(options);
  const auto origin = [&](const char* from) {
    const auto asked = echo_client(echo).Options(
        "/echo", {{"Origin", from}, {"Access-Control-Request-Headers", "x-one"}});
    EXPECT_EQ(asked->status, 204);
    const auto posted = echo_client(echo).Post(
        "/echo", {{"Origin", from}, {"Authorization", "Bearer secret"}}, "x", "text/plain");
    EXPECT_EQ(posted->status, 200);
    EXPECT_EQ(posted->get_header_value("Access-Control-Allow-Origin"),
              asked->get_header_value("Access-Control-Allow-Origin"));
    EXPECT_EQ(asked->has_header("Access-Control-Allow-Headers"),
              asked->has_header("Access-Control-Allow-Origin"));
    return asked->get_header_value("Access-Control-Allow-Origin");
  };
  EXPECT_EQ(origin("https://a.example"), "https://a.example");
  EXPECT_EQ(origin("https://b.example"), "");
  // So that a page can read what went wrong.
  const auto refused =
      echo_client(echo).Post("/echo", {{"Origin", "https://a.example"}}, "x", "text/plain");
  EXPECT_EQ(refused->status, 401);
  EXPECT_EQ(refused->get_header_value("Access-Control-Allow-Origin"), "https://a.example");
  EXPECT_EQ(echo_client(echo).Options("/nowhere")->status, 404);
}

TEST(HttpServer, AnnouncesTheIdleTimeoutThatItHas) {
  HttpOptions options = quick();
  options.idle_timeout = 7000ms;
  Echo echo(options);
  auto client = echo_client(echo);
  client.set_keep_alive(true);
  const auto result = client.Get("/open");
  EXPECT_NE(result->get_header_value("Keep-Alive").find("timeout=7"), std::string::npos)
      << result->get_header_value("Keep-Alive");
}

TEST(HttpServer, StopsWhileClientsHoldConnections) {
  auto echo = std::make_unique<Echo>();
  const UniqueFd idle = echo->connect();
  const UniqueFd streaming = echo->connect();
  send_text(streaming, "GET /endless HTTP/1.1\r\n\r\n");
  std::this_thread::sleep_for(100ms);
  const Clock::time_point begin = Clock::now();
  echo.reset();
  EXPECT_LT(Clock::now() - begin, 9s);
}

TEST(HttpServer, PortInUseIsRefused) {
  Echo echo;
  HttpOptions options = quick();
  options.port = echo.server.port();
  EXPECT_THROW(HttpServer{options}, ConfigError);
}

}  // namespace
}  // namespace ferry
