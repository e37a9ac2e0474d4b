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
  std::string peer;        ///< address of the client
  std::string id = {};     ///< what stands in the path where its route has "*"
  std::string query = {};  ///< what follows "?", as it came
};

struct HttpReply {
  std::string body;
  std::string content_type = "application/json";
  /// If given, it makes the body: each call gives the next piece, "" = none yet, none = the end.
  /// Never waits. Called and destroyed on any thread, one at a time; destroyed when the client goes
  /// away.
  std::function<std::optional<std::string>()> next = {};
  /// REQUIRED where next() may give "": takes what must be called whenever there may be more since.
  /// That only leaves a note, and may be called on any thread, under any lock.
  std::function<void(std::function<void()> wake)> listen = {};
  /// The pieces leave as one answer at their end, and what next() throws is answered as what a
  /// handler throws. Otherwise they leave as they come, and next() does not throw.
  bool whole = false;
};

/// Runs on one of a few threads, so it waits for no client and for no token: replies do that.
using HttpHandler = std::function<HttpReply(const HttpRequest&)>;

/// Where handlers are registered under their paths. One part of a path may be "*", which stands for
/// any; a path without it goes before one with it.
class RouteTable {
 public:
  virtual ~RouteTable() = default;

  /// `open`: also for those who have no key.
  virtual void get(const std::string& path, HttpHandler handler, bool open) = 0;
  /// `errors`: how errors of this path look, whoever finds them.
  virtual void post(const std::string& path, HttpHandler handler, ErrorForm errors) = 0;

  /// DELETE.
  virtual void del(const std::string& path, HttpHandler handler) = 0;

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
  /// TLS, where a certificate is given: files in PEM. Without `ssl_keyfile` the key stands in
  /// `ssl_certfile`.
  std::string ssl_certfile = {};
  std::string ssl_keyfile = {};
  std::string ssl_keyfile_password = {};
  int max_connections = 4096;
  std::size_t max_body_bytes = 16U << 20;
  std::size_t max_arriving_bytes = 1U << 30;  ///< of requests of all clients that are not whole
  std::chrono::milliseconds request_timeout{20000};  ///< for a request to arrive whole
  std::chrono::milliseconds write_timeout{10000};    ///< for a client to take 64 KiB
  std::chrono::milliseconds idle_timeout{5000};      ///< of a connection between two requests
  bool access_log = true;
  /// Hears of every answer, on any thread: its route ("other" for what is none) and its status.
  std::function<void(const std::string& route, int status)> on_answer = {};
};

/// A few threads for all connections, of which there are up to max_connections; those beyond get
/// 503 at once. Handlers run on threads beside those. No client that is slow or takes no part holds
/// anything for longer than the timeouts. Threads: handlers run on several at once; the methods
/// here are the owner's.
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
  /// Only before start(), as the others.
  void get(const std::string& path, HttpHandler handler, bool open) override;
  void post(const std::string& path, HttpHandler handler, ErrorForm errors) override;
  void del(const std::string& path, HttpHandler handler) override;

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
