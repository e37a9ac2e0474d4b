#include "ferry/server/http_server.h"

#include <httplib.h>
#include <openssl/crypto.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <regex>
#include <set>
#include <string_view>
#include <thread>

#include "ferry/server/connection.h"

namespace ferry {

namespace {

/// Connections that the kernel holds until a thread takes them; httplib's own 5 would make a crowd
/// wait a second for its second try.
constexpr int kBacklog = 1024;
/// Threads that tell those beyond max_connections to come again.
constexpr int kRefusers = 4;
/// httplib selects on descriptors, which ends at FD_SETSIZE; some are needed for other things.
constexpr int kMostConnections = FD_SETSIZE - 128;
constexpr const char* kRetryAfterSeconds = "1";

/// A connection as httplib reads and writes it.
class Stream : public httplib::Stream {
 public:
  explicit Stream(Connection& connection) : connection_(connection) {}

  bool is_readable() const override { return true; }  // read() waits

  bool is_writable() const override { return !connection_.seems_gone(); }

  ssize_t read(char* to, std::size_t size) override { return connection_.read(to, size); }

  ssize_t write(const char* from, std::size_t size) override {
    return connection_.write(from, size);
  }

  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    ip = connection_.peer();
    port = connection_.peer_port();
  }

  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}

  socket_t socket() const override { return connection_.fd(); }

 private:
  Connection& connection_;
};

/// The connection whose request this thread handles; null between connections.
thread_local Connection* current = nullptr;

/// Starts a thread where all are busy, up to a limit, since most of the time few are needed.
class Threads : public httplib::TaskQueue {
 public:
  explicit Threads(std::size_t most) : most_(most) {}

  void enqueue(std::function<void()> task) override {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    if (tasks_.size() > idle_ && threads_.size() < most_) threads_.emplace_back([this] { run(); });
    changed_.notify_one();
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      --idle_;
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const std::size_t most_;
  std::mutex mutex_;  // guards what follows; threads_ only grows, and only in enqueue()
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool stopping_ = false;
};

std::string default_message(int status, const std::string& path, std::size_t max_body) {
  switch (status) {
    case 400:
      return "the request is not HTTP as it should be, or broke off";
    case 404:
      return "no such route: " + path;
    case 405:
      return "wrong method for " + path;
    case 408:
      return "the request did not arrive in time";
    case 413:
      return fmt::format("the body is larger than {} bytes", max_body);
    case 414:
      return "the URI is too long";
    default:
      return fmt::format("failed with status {}", status);
  }
}

}  // namespace

class HttpServer::Impl : private httplib::Server {
 public:
  explicit Impl(const HttpOptions& options) : options_(options) {
    options_.max_connections = std::min(options.max_connections, kMostConnections);
    new_task_queue = [this] {
      return new Threads(static_cast<std::size_t>(options_.max_connections + kRefusers));
    };
    set_payload_max_length(options_.max_body_bytes);
    // What its header Keep-Alive announces. No number of requests ends a connection.
    set_keep_alive_timeout(
        std::chrono::duration_cast<std::chrono::seconds>(options_.idle_timeout).count());
    set_keep_alive_max_count(std::numeric_limits<int>::max());
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      return before_routing(request, response);
    });
    set_error_handler([this](const httplib::Request& request, httplib::Response& response) {
      explain(request, response);
    });
    set_logger([this](const httplib::Request& request, const httplib::Response& response) {
      log(request, response);
    });
    take_port();
  }

  ~Impl() override { end(); }

  void route(const std::string& path, HttpHandler handler, bool open) {
    paths_.insert(path);
    if (open) open_paths_.insert(path);
    Get(pattern_of(path),
        [this, handler = std::move(handler)](const httplib::Request& request,
                                             httplib::Response& response) {
          handle(handler, request, "", response);
        });
  }

  void route(const std::string& path, HttpHandler handler, ErrorForm errors) {
    paths_.insert(path);
    error_forms_[path] = std::move(errors);
    // Bodies are ours to read: httplib wants forms, as which curl announces all it sends, to be
    // short, and reads a body without a length until the client hangs up.
    Post(pattern_of(path),
         [this, handler = std::move(handler)](const httplib::Request& request,
                                              httplib::Response& response,
                                              const httplib::ContentReader& reader) {
           std::string body;
           if (read_body(request, reader, body))
             handle(handler, request, std::move(body), response);
         });
  }

  void begin() {
    thread_ = std::thread([this] { listen_after_bind(); });
  }

  void end() {
    stopping_ = true;
    if (thread_.joinable()) {
      while (!is_running()) std::this_thread::yield();  // stop() before that would be lost
      Server::stop();
      thread_.join();
    } else if (svr_sock_ != INVALID_SOCKET) {
      close(svr_sock_.exchange(INVALID_SOCKET));
    }
  }

  int port() const { return port_; }

  int busy() const { return busy_; }

 private:
  /// httplib reads paths as patterns.
  static std::string pattern_of(const std::string& path) {
    static const std::regex special(R"([.^$|()\[\]{}*+?\\])");
    return std::regex_replace(path, special, R"(\$&)");
  }

  void take_port() {
    // Without SO_REUSEPORT, which is httplib's default: two servers on one port would share its
    // clients.
    set_socket_options([](socket_t socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    set_tcp_nodelay(true);
    port_ = options_.port;
    if (options_.port == 0)
      port_ = bind_to_any_port(options_.host);
    else if (!bind_to_port(options_.host, options_.port))
      port_ = -1;
    if (port_ < 0) {
      fail<ConfigError>(
          "cannot listen on {} port {}: it is in use or not ours; choose another --host or --port",
          options_.host,
          options_.port);
    }
    ::listen(svr_sock_, kBacklog);
  }

  bool process_and_close_socket(socket_t socket) override {
    Connection connection(socket, options_);
    if (++connections_ > options_.max_connections) {
      refuse(connection);
    } else {
      serve(connection);
    }
    --connections_;
    ::shutdown(socket, SHUT_RDWR);
    return true;
  }

  static void refuse(Connection& connection) {
    const std::string body = error_body(HttpError(503, "too many connections; try again"));
    const std::string answer = fmt::format(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: {}\r\n"
        "Connection: close\r\nContent-Length: {}\r\n\r\n{}",
        kRetryAfterSeconds,
        body.size(),
        body);
    connection.write(answer.data(), answer.size());
    // Unread bytes would make the kernel reset the connection before the client has the answer.
    ::shutdown(connection.fd(), SHUT_WR);
    std::array<char, 4096> rest{};
    recv(connection.fd(), rest.data(), rest.size(), MSG_DONTWAIT);
  }

  void serve(Connection& connection) {
    current = &connection;
    Stream stream(connection);
    bool closed = false;
    while (!closed && connection.wait_for_request([this] { return stopping_.load(); })) {
      ++busy_;
      const bool goes_on = process_request(
          stream, /*close_connection=*/stopping_, closed, /*setup_request=*/nullptr);
      --busy_;
      if (!goes_on) break;
    }
    current = nullptr;
  }

  /// Where it fails, httplib or explain() says why.
  bool read_body(const httplib::Request& request,
                 const httplib::ContentReader& reader,
                 std::string& body) const {
    if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
      return true;
    return reader([&](const char* data, std::size_t size) {
      if (body.size() + size > options_.max_body_bytes) return false;
      body.append(data, size);
      return true;
    });
  }

  /// What browsers ask before, and look for in, what a page of another origin fetches.
  void allow_origin(const httplib::Request& request, httplib::Response& response) const {
    const std::string origin = request.get_header_value("Origin");
    const auto allowed = [&](const std::string& one) { return one == "*" || one == origin; };
    if (origin.empty() ||
        std::none_of(options_.allowed_origins.begin(), options_.allowed_origins.end(), allowed))
      return;
    response.set_header("Access-Control-Allow-Origin", origin);
    response.set_header("Vary", "Origin");
    if (request.method != "OPTIONS") return;
    const std::string headers = request.get_header_value("Access-Control-Request-Headers");
    response.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
    response.set_header("Access-Control-Allow-Headers",
                        headers.empty() ? "Authorization, Content-Type" : headers);
    response.set_header("Access-Control-Max-Age", "600");
  }

  HandlerResponse before_routing(const httplib::Request& request, httplib::Response& response) {
    allow_origin(request, response);
    if (!paths_.contains(request.path)) {
      response.status = 404;
      // The body is left unread, so this connection is of no further use.
      response.set_header("Connection", "close");
      return HandlerResponse::Handled;
    }
    if (request.method == "OPTIONS") {  // before any key: browsers ask without
      response.status = 204;
      response.set_header("Allow", "GET, HEAD, POST, OPTIONS");
      return HandlerResponse::Handled;
    }
    if (!open_paths_.contains(request.path) && !has_key(request)) {
      response.status = 401;
      response.set_header("WWW-Authenticate", "Bearer");
      response.set_header("Connection", "close");
      set_error(
          request,
          response,
          {401, "a valid API key is needed: \"Authorization: Bearer KEY\" or \"x-api-key: KEY\""});
      return HandlerResponse::Handled;
    }
    if (request.has_header("Content-Encoding")) {  // a few bytes could unpack to any size
      set_error(request, response, {415, "bodies must come without Content-Encoding"});
      response.set_header("Connection", "close");
      return HandlerResponse::Handled;
    }
    return HandlerResponse::Unhandled;
  }

  bool is_key(std::string_view given) const {
    const std::string& wanted = options_.api_key;
    return given.size() == wanted.size() &&
           CRYPTO_memcmp(given.data(), wanted.data(), wanted.size()) == 0;
  }

  /// As OpenAI's clients or Anthropic's give it.
  bool has_key(const httplib::Request& request) const {
    if (options_.api_key.empty() || is_key(request.get_header_value("x-api-key"))) return true;
    constexpr std::string_view kScheme = "bearer ";  // in any case
    const std::string given = request.get_header_value("Authorization");
    const bool scheme =
        given.size() > kScheme.size() &&
        std::equal(kScheme.begin(), kScheme.end(), given.begin(), [](char a, char b) {
          return a == std::tolower(static_cast<unsigned char>(b));
        });
    return scheme && is_key(std::string_view(given).substr(kScheme.size()));
  }

  void set_error(const httplib::Request& request,
                 httplib::Response& response,
                 const HttpError& error) const {
    const auto form = error_forms_.find(request.path);
    response.status = error.status();
    response.set_content(form == error_forms_.end() ? error_body(error) : form->second(error),
                         "application/json");
    if (error.retry()) response.set_header("Retry-After", kRetryAfterSeconds);
  }

  /// Gives errors that httplib found a body.
  void explain(const httplib::Request& request, httplib::Response& response) const {
    if (!response.body.empty()) return;
    if (current != nullptr && current->trouble() == Connection::Trouble::too_slow)
      response.status = 408;
    if (current != nullptr && current->trouble() == Connection::Trouble::too_large)
      response.status = 413;
    if (response.status == 404 && paths_.contains(request.path)) response.status = 405;
    // What is left of the body would be taken for the next request.
    if (response.status != 404 && response.status != 405)
      response.set_header("Connection", "close");
    set_error(
        request,
        response,
        {response.status, default_message(response.status, request.path, options_.max_body_bytes)});
  }

  void handle(const HttpHandler& handler,
              const httplib::Request& request,
              std::string body,
              httplib::Response& response) const {
    const Connection* connection = current;
    try {
      HttpReply reply = handler({.body = std::move(body), .peer = request.remote_addr, .gone = [=] {
                                   return connection->gone();
                                 }});
      if (!reply.next) return response.set_content(reply.body, reply.content_type);
      stream(std::move(reply), *connection, response);
    } catch (const std::exception&) {
      set_error(request, response, current_http_error());
    }
  }

  static void stream(HttpReply reply, const Connection& connection, httplib::Response& response) {
    // httplib copies the provider, so its copies own the reply together.
    const auto shared = std::make_shared<HttpReply>(std::move(reply));
    response.set_chunked_content_provider(
        shared->content_type, [shared, &connection](std::size_t, httplib::DataSink& sink) {
          const std::optional<std::string> piece = shared->next();
          if (!piece) {
            sink.done();
            return true;
          }
          if (piece->empty()) return !connection.gone();
          return sink.write(piece->data(), piece->size());
        });
  }

  void log(const httplib::Request& request, const httplib::Response& response) const {
    if (options_.on_answer)
      options_.on_answer(paths_.contains(request.path) ? request.path : "other", response.status);
    if (!options_.access_log) return;
    spdlog::info("{} {} {} {} {:.3f} s",
                 current ? current->peer() : "-",
                 request.method,
                 request.path,
                 response.status,
                 current ? current->request_time().count() : 0.0);
  }

  HttpOptions options_;
  int port_ = -1;
  std::set<std::string> paths_, open_paths_;
  std::map<std::string, ErrorForm> error_forms_;  // of paths
  std::atomic<int> connections_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

HttpServer::HttpServer(const HttpOptions& options) : impl_(std::make_unique<Impl>(options)) {}

HttpServer::~HttpServer() = default;

void HttpServer::get(const std::string& path, HttpHandler handler, bool open) {
  impl_->route(path, std::move(handler), open);
}

void HttpServer::post(const std::string& path, HttpHandler handler, ErrorForm errors) {
  impl_->route(path, std::move(handler), std::move(errors));
}

void HttpServer::start() { impl_->begin(); }

void HttpServer::stop() { impl_->end(); }

int HttpServer::port() const { return impl_->port(); }

int HttpServer::busy() const { return impl_->busy(); }

}  // namespace ferry
