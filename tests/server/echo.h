// A server without a model, and sockets that say to it whatever a test wants.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include "ferry/server/http_server.h"
#include "ferry/transport/unique_fd.h"

namespace ferry::test {

inline HttpOptions quick() {
  return {.port = 0,
          .max_body_bytes = 1000,
          .request_timeout = std::chrono::milliseconds(500),
          .write_timeout = std::chrono::milliseconds(500),
          .idle_timeout = std::chrono::milliseconds(500),
          .access_log = false};
}

/// A server with a route that echoes and one that streams until its client goes.
class Echo {
 public:
  explicit Echo(const HttpOptions& options = quick());

  UniqueFd connect() const;

  /// What comes until the server closes the connection.
  static std::string read_all(const UniqueFd& fd);

  std::atomic<int> streams_ended{0};
  HttpServer server;
};

void send_text(const UniqueFd& fd, std::string_view text);

}  // namespace ferry::test
