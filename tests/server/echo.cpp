#include "server/echo.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <optional>
#include <thread>

#include "ferry/core/error.h"

namespace ferry::test {

Echo::Echo(const HttpOptions& options) : server(options) {
  server.post("/echo", [](const HttpRequest& r) -> HttpReply { return {.body = r.body}; });
  server.post("/bad", [](const HttpRequest&) -> HttpReply { fail<ConfigError>("no such thing"); });
  server.post(
      "/other",
      [](const HttpRequest&) -> HttpReply { fail<ConfigError>("no such thing"); },
      [](const HttpError& error) { return fmt::format("[{}]", error.status()); });
  server.post("/busy", [](const HttpRequest&) -> HttpReply {
    throw HttpError(429, "too much", /*retry=*/true);
  });
  server.get("/endless", [this](const HttpRequest&) -> HttpReply {
    const std::shared_ptr<void> mark(nullptr, [this](void*) { ++streams_ended; });
    return {.content_type = "text/event-stream", .next = [mark]() -> std::optional<std::string> {
              std::this_thread::sleep_for(std::chrono::milliseconds(5));
              return std::string(10000, 'x');
            }};
  });
  server.get(
      "/open", [](const HttpRequest&) -> HttpReply { return {.body = "{}"}; }, /*open=*/true);
  server.start();
}

UniqueFd Echo::connect() const {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(server.port()));
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

std::string Echo::read_all(const UniqueFd& fd) {
  std::string all;
  std::array<char, 4096> part{};
  for (ssize_t n; (n = recv(fd.get(), part.data(), part.size(), 0)) > 0;)
    all.append(part.data(), static_cast<std::size_t>(n));
  return all;
}

void send_text(const UniqueFd& fd, std::string_view text) {
  EXPECT_EQ(send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), std::ssize(text));
}

}  // namespace ferry::test
