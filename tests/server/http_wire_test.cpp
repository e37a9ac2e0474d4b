// What comes over the wire: requests in all their forms, cut anywhere, and those that only look
// like some.
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/echo.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using test::Echo;
using test::quick;
using test::send_text;
using Clock = std::chrono::steady_clock;

httplib::Client wire_client(const Echo& echo) {
  httplib::Client client("127.0.0.1", echo.server.port());
  client.set_read_timeout(10, 0);
  return client;
}

/// What cannot be read in one way alone is refused, and nothing behind it is taken for a request.
TEST(HttpWire, RequestsOfTwoLengthsAreRefused) {
  Echo echo;
  for (const char* fields : {"Content-Length: 4\r\nContent-Length: 5\r\n",
                             "Content-Length: 5\r\nContent-Length: 5\r\n",
                             "Content-Length: 5, 5\r\n",
                             "Content-Length: +5\r\n",
                             "Content-Length: -1\r\n",
                             "Content-Length: 5x\r\n",
                             "Content-Length:\r\n",
                             "Content-Length : 5\r\n",
                             "Content-Length: 99999999999999999999999\r\n",
                             "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                             "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                             "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                             "Transfer-Encoding: identity\r\n",
                             "Transfer-Encoding: chunked, gzip\r\n",
                             "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
                             "Transfer-Encoding : chunked\r\n",
                             "X-One: a\nContent-Length: 5\r\n"}) {
    const UniqueFd fd = echo.connect();
    send_text(fd,
              std::string("POST /echo HTTP/1.1\r\n") + fields + "\r\n" + "hello" +
                  "GET /open HTTP/1.1\r\n\r\n");
    const std::string answer = Echo::read_all(fd);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400")) << fields << answer;
    EXPECT_EQ(answer.find("HTTP/1.1", 1), std::string::npos) << fields << answer;
  }
}

TEST(HttpWire, ChunkedBodiesArriveWhole) {
  Echo echo;
  const UniqueFd fd = echo.connect();
  for (const char* part : {"POST /echo HTTP/1.1\r\nTransfer-Enc",
                           "oding: Chunked\r\nConnection: close",
                           "\r\n\r\n3\r\nab",
                           "c\r\n1",
                           "0;name=value\r\n0123456789abcdef\r\n0\r\n",
                           "X-Sum: 3\r\n\r\n"}) {
    send_text(fd, part);
    std::this_thread::sleep_for(10ms);
  }
  const std::string answer = Echo::read_all(fd);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
  EXPECT_TRUE(answer.ends_with("\r\n\r\nabc0123456789abcdef")) << answer;
}

TEST(HttpWire, BodiesThatAreAnnouncedAreAwaited) {
  Echo echo;
  const UniqueFd fd = echo.connect();
  send_text(fd,
            "POST /echo HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n"
            "Connection: close\r\n\r\n");
  std::array<char, 100> part{};
  const ssize_t n = recv(fd.get(), part.data(), part.size(), 0);
  EXPECT_EQ(std::string(part.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))),
            "HTTP/1.1 100 Continue\r\n\r\n");
  send_text(fd, "ok");
  EXPECT_TRUE(Echo::read_all(fd).ends_with("\r\n\r\nok"));
  // What will be refused anyway need not be sent.
  for (const auto& [head, status] :
       {std::pair("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n",
                  "413"),
        std::pair("POST /echo HTTP/1.1\r\nExpect: a miracle\r\nContent-Length: 2\r\n\r\n", "417"),
        std::pair("POST /nowhere HTTP/1.1\r\nContent-Length: 2\r\n\r\n", "404")}) {
    const UniqueFd refused = echo.connect();
    send_text(refused, head);
    EXPECT_TRUE(Echo::read_all(refused).starts_with(std::string("HTTP/1.1 ") + status)) << head;
  }
}

TEST(HttpWire, RequestsThatComeTogetherAreAnsweredInTurn) {
  Echo echo;
  const UniqueFd fd = echo.connect();
  std::string all;
  for (int i = 0; i < 20; ++i)
    all += "POST /echo?n=1 HTTP/1.1\r\nContent-Length: 2\r\n\r\n" + std::to_string(10 + i) +
           "GET /nowhere HTTP/1.1\r\n\r\n\r\n";
  send_text(fd, all + "GET /open HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string answers = Echo::read_all(fd);
  std::size_t at = 0;
  for (int i = 0; i < 20; ++i) {
    at = answers.find("\r\n\r\n" + std::to_string(10 + i) + "HTTP/1.1 404", at);
    ASSERT_NE(at, std::string::npos) << i << answers;
  }
  EXPECT_TRUE(answers.ends_with("\r\n\r\n{}")) << answers;
}

TEST(HttpWire, OldClientsGetBodiesThatEndWithTheConnection) {
  Echo echo;
  const UniqueFd once = echo.connect();
  send_text(once, "GET http://any.example/op%65n?x HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(Echo::read_all(once).ends_with("\r\n\r\n{}"));
  const UniqueFd stream = echo.connect();
  send_text(stream, "GET /endless HTTP/1.0\r\n\r\n");
  std::string got;
  std::array<char, 4096> part{};
  while (got.find("xxxx") == std::string::npos) {
    const ssize_t n = recv(stream.get(), part.data(), part.size(), 0);
    ASSERT_GT(n, 0);
    got.append(part.data(), static_cast<std::size_t>(n));
  }
  EXPECT_EQ(got.find("chunked"), std::string::npos) << got;
  EXPECT_NE(got.find("\r\n\r\nxxxx"), std::string::npos) << got;
}

/// A client that asks on and on and reads nothing is not listened to any further, and sent away.
TEST(HttpWire, SlowReadersHoldNeitherOthersNorMemory) {
  HttpOptions options = quick();
  options.write_timeout = 1s;
  options.idle_timeout = 10s;
  Echo echo(options);
  const UniqueFd fd = echo.connect();
  const std::string ask =
      "POST /echo HTTP/1.1\r\nContent-Length: 900\r\n\r\n" + std::string(900, 'x');
  std::string all;
  while (all.size() < 1000 * ask.size()) all += ask;
  const Clock::time_point end = Clock::now() + 20s;
  std::size_t sent = 0;
  int waits = 0;
  for (; Clock::now() < end; sent %= all.size()) {
    const ssize_t n =
        send(fd.get(), all.data() + sent, all.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN) break;
    sent += static_cast<std::size_t>(std::max<ssize_t>(n, 0));
    if (n > 0 || waits++ % 20 != 0) continue;
    EXPECT_EQ(wire_client(echo).Get("/open")->status, 200);  // others are answered meanwhile
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_LT(Clock::now(), end);
  EXPECT_GT(waits, 0);
  for (int i = 0; i < 500 && echo.server.busy() > 0; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(echo.server.busy(), 0);
}

TEST(HttpWire, RequestsThatArriveHaveSoMuchMemoryInAll) {
  HttpOptions options = quick();
  options.max_arriving_bytes = 3000;
  options.request_timeout = 5s;
  Echo echo(options);
  std::vector<UniqueFd> slow;
  for (int i = 0; i < 4; ++i) {
    slow.push_back(echo.connect());
    send_text(slow.back(),
              "POST /echo HTTP/1.1\r\nContent-Length: 950\r\n\r\n" + std::string(900, 'x'));
    std::this_thread::sleep_for(50ms);
  }
  EXPECT_TRUE(Echo::read_all(slow.back()).starts_with("HTTP/1.1 503"));
  slow.clear();
  for (int i = 0; i < 500 && echo.server.busy() > 0; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(wire_client(echo).Post("/echo", std::string(900, 'x'), "text/plain")->status, 200);
}

}  // namespace
}  // namespace ferry
