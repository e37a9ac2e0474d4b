#include "ferry/server/http_server.h"

#include <algorithm>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "ferry/server/http_session.h"
#include "ferry/server/listener.h"

namespace ferry {

namespace {

/// That read, write, and turn tokens into text.
constexpr int kNetworkThreads = 2;
/// That run handlers, and so read prompts and compile grammars.
constexpr std::size_t kWorkers = 8;
/// Clients beyond max_connections that are told so; those beyond these are dropped.
constexpr std::size_t kMostRefused = 64;

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(const HttpOptions& options)
      : options_(options),
        service_{.options = options_, .routes = HttpRoutes(options_), .workers = Workers(kWorkers)},
        listener_(options_) {
    service_.ended = [this](const std::shared_ptr<HttpSession>& session) { forget(session); };
  }

  ~Impl() { end(); }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  HttpRoutes& routes() { return service_.routes; }

  void begin() {
    listener_.start(kNetworkThreads, [this](std::shared_ptr<Connection> connection) {
      accept(std::move(connection));
    });
  }

  void end() {
    service_.stopping = true;
    listener_.refuse();
    service_.workers.stop();
    std::unordered_set<std::shared_ptr<HttpSession>> left;
    {
      const std::lock_guard lock(mutex_);
      left = sessions_;
    }
    for (const std::shared_ptr<HttpSession>& session : left) session->stop();
    left.clear();
    listener_.stop();
  }

  int port() const { return listener_.port(); }

  int busy() const { return service_.busy; }

 private:
  void accept(std::shared_ptr<Connection> connection) {
    std::shared_ptr<HttpSession> session;
    {
      const std::lock_guard lock(mutex_);
      const std::size_t served = sessions_.size() - refused_;
      const bool refuse = served >= static_cast<std::size_t>(std::max(0, options_.max_connections));
      if (refuse && refused_ >= kMostRefused) return;
      session = std::make_shared<HttpSession>(std::move(connection), service_, refuse);
      sessions_.insert(session);
      if (refuse) ++refused_;
    }
    session->start();
  }

  void forget(const std::shared_ptr<HttpSession>& session) {
    const std::lock_guard lock(mutex_);
    if (sessions_.erase(session) != 0 && session->refused()) --refused_;
  }

  const HttpOptions options_;
  HttpService service_;
  std::mutex mutex_;  // guards what follows
  std::unordered_set<std::shared_ptr<HttpSession>> sessions_;
  std::size_t refused_ = 0;  // of them
  Listener listener_;        // goes first, with all that could still be called
};

HttpServer::HttpServer(const HttpOptions& options) : impl_(std::make_unique<Impl>(options)) {}

HttpServer::~HttpServer() = default;

void HttpServer::get(const std::string& path, HttpHandler handler, bool open) {
  impl_->routes().get(path, std::move(handler), open);
}

void HttpServer::del(const std::string& path, HttpHandler handler) {
  impl_->routes().del(path, std::move(handler));
}

void HttpServer::post(const std::string& path, HttpHandler handler, ErrorForm errors) {
  impl_->routes().post(path, std::move(handler), std::move(errors));
}

void HttpServer::start() { impl_->begin(); }

void HttpServer::stop() { impl_->end(); }

int HttpServer::port() const { return impl_->port(); }

int HttpServer::busy() const { return impl_->busy(); }

}  // namespace ferry
