// HTTP on sockets: connections, deadlines, threads. What requests mean is the routes' affair.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ferry/server/http_error.h"

namespace ferry {

struct HttpRequest {
  std::string body;
  std::string peer;  ///< address of the client
  /// Whether the client has hung up. Only while the handler runs, on its thread.
  std::function<bool()> gone;
};

struct HttpReply {
  std::string body;
  std::string content_type = "application/json";
  /// If given, it makes the body: each call gives the next piece, "" = none yet (it came back to
  /// let the server look whether the client is still there), none = the end. It may block for a
  /// fraction of a second. Destroyed when the client goes away.
  std::function<std::optional<std::string>()> next;
};

using HttpHandler = std::function<HttpReply(const HttpRequest&)>;

/// Where handlers are registered under their paths.
class RouteTable {
 public:
  virtual ~RouteTable() = default;

  /// `open`: also for those who have no key.
  virtual void get(const std::string& path, HttpHandler handler, bool open) = 0;
  /// `errors`: how errors of this path look, whoever finds them.
  virtual void post(const std::string& path, HttpHandler handler, ErrorForm errors) = 0;

  void get(const std::string& path, HttpHandler handler) {
    get(path, std::move(handler), /*open=*/false);
  }

  void post(const std::string& path, HttpHandler handler) {
    post(path, std::move(handler), error_body);
  }
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 30000;     ///< 0: any that is free
  std::string api_key;  ///< empty: nobody is asked
  /// Whose pages browsers let call; "*": everybody's.
  std::vector<std::string> allowed_origins = {};
  int max_connections = 512;
  std::size_t max_body_bytes = 16U << 20;
  std::chrono::milliseconds request_timeout{20000};  ///< for a request to arrive whole
  std::chrono::milliseconds write_timeout{10000};    ///< for a client to take what it is sent
  std::chrono::milliseconds idle_timeout{5000};      ///< of a connection between two requests
  bool access_log = true;
  /// Hears of every answer, on any thread: its route ("other" for what is none) and its status.
  std::function<void(const std::string& route, int status)> on_answer = {};
};

/// A thread for each connection, up to max_connections; those beyond get 503 at once. No client can
/// hold a thread for longer than the timeouts without taking part. Threads: handlers run on many at
/// once; the methods here are the owner's.
class HttpServer : public RouteTable {
 public:
  /// Takes the port. Throws ConfigError where it cannot.
  explicit HttpServer(const HttpOptions& options);
  /// Stops.
  ~HttpServer() override;
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  using RouteTable::get;
  using RouteTable::post;
  /// Only before start(), as post().
  void get(const std::string& path, HttpHandler handler, bool open) override;
  void post(const std::string& path, HttpHandler handler, ErrorForm errors) override;

  /// Answers on threads of its own from now on.
  void start();

  /// Accepts nobody any more, breaks off what streams, and waits for the handlers.
  void stop();

  int port() const;

  /// Requests that are being handled or whose replies are under way.
  int busy() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
