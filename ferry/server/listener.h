// The port that clients connect to, and the threads on which everything happens to them.
#pragma once

#include <functional>
#include <memory>

#include "ferry/server/connection.h"
#include "ferry/server/http_server.h"

namespace ferry {

/// Threads: its owner's.
class Listener {
 public:
  /// Takes the port, and with `ssl_certfile` reads what TLS needs. Throws ConfigError where it
  /// cannot.
  explicit Listener(const HttpOptions& options);
  /// REQUIRES: stopped, or never started.
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int port() const;

  /// From now on `accepted` gets all connections, one call at a time; it opens or drops them.
  void start(int threads, std::function<void(std::shared_ptr<Connection>)> accepted);

  /// Nobody is accepted any more. Returns when `accepted` is not being called.
  void refuse();

  /// Waits until all connections are closed, which is for their users to do, and nothing is left to
  /// happen.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
