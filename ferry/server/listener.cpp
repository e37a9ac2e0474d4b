// The one file that knows Asio.
#include "ferry/server/listener.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <spdlog/spdlog.h>

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <fstream>
#include <future>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Strand = asio::strand<asio::io_context::executor_type>;

/// Connections that the kernel holds until they are accepted.
constexpr int kBacklog = 1024;
/// Before the next try where no descriptor is left.
constexpr std::chrono::milliseconds kAcceptPause{100};
constexpr std::size_t kReadBytes = 65536;
constexpr std::size_t kTlsReadBytes = 16384;  // one record's

/// What the two kinds of connection share: the strand on which their user is called, the deadline.
class SocketConnection : public Connection, public std::enable_shared_from_this<SocketConnection> {
 public:
  SocketConnection(Strand strand, const tcp::endpoint& peer)
      : strand_(std::move(strand)), timer_(strand_), peer_(peer.address().to_string()) {}

  void set_deadline(Clock::time_point when) override {
    deadline_ = when;
    // A timer that rings too early is wound up again. Mostly it never rings, and a token costs no
    // change of the timer.
    if (when != kNever && (!armed_ || when < armed_for_)) arm(when);
  }

  void post(std::function<void()> task) override {
    asio::post(strand_, [self = shared_from_this(), task = std::move(task)] {
      guard(std::shared_ptr(self->user_), task);
    });
  }

  const std::string& peer() const override { return peer_; }

 protected:
  /// What the system says when something has come to its end.
  template <class Handle>
  auto handler(Handle handle) {
    return [self = shared_from_this(), handle = std::move(handle)](const error_code& error,
                                                                   std::size_t bytes = 0) {
      // Owned here as well, since close() lets it go.
      if (const std::shared_ptr<ConnectionUser> user = self->user_)
        guard(user, [&] { handle(*user, error, bytes); });
    };
  }

  void end_reading(ConnectionUser& user, const error_code& error) {
    if (error == asio::error::eof || error == asio::ssl::error::stream_truncated)
      user.on_no_more();
    else
      user.on_broken();
  }

  /// A write keeps it, and so the bytes that it writes: behind close() it may still be at them.
  const std::shared_ptr<ConnectionUser>& user() const { return user_; }

  void take(std::shared_ptr<ConnectionUser> user) { user_ = std::move(user); }

  void let_go() {
    timer_.cancel();
    deadline_ = kNever;
    user_.reset();
  }

 private:
  /// Where there is no memory, say, one connection is lost and the others go on.
  template <class Task>
  static void guard(const std::shared_ptr<ConnectionUser>& user, const Task& task) {
    try {
      task();
    } catch (const std::exception& e) {
      spdlog::error("a connection is lost: {}", e.what());
      if (user) user->on_broken();
    }
  }

  void arm(Clock::time_point when) {
    armed_ = true;
    armed_for_ = when;
    timer_.expires_at(when);
    timer_.async_wait(handler([this](ConnectionUser& user, const error_code& error, std::size_t) {
      if (error) return;  // another time has been set
      armed_ = false;
      if (deadline_ == kNever) return;
      if (Clock::now() < deadline_) return arm(deadline_);
      deadline_ = kNever;
      user.on_deadline();
    }));
  }

  Strand strand_;
  asio::steady_timer timer_;
  const std::string peer_;
  std::shared_ptr<ConnectionUser> user_;
  Clock::time_point deadline_ = kNever;
  bool armed_ = false;
  Clock::time_point armed_for_;
};

class PlainConnection final : public SocketConnection {
 public:
  PlainConnection(const Strand& strand, const tcp::endpoint& peer, tcp::socket socket)
      : SocketConnection(strand, peer), socket_(std::move(socket)) {
    error_code ignored;
    socket_.non_blocking(true, ignored);
  }

  void open(std::shared_ptr<ConnectionUser> user) override {
    take(std::move(user));
    post([self = shared_from_this(), this] {
      handler([](ConnectionUser& u, const error_code&, std::size_t) { u.on_open(); })({});
    });
  }

  /// Waits without a buffer, which thousands that are idle would have for nothing.
  void read() override {
    socket_.async_wait(tcp::socket::wait_read,
                       handler([this](ConnectionUser& user, error_code error, std::size_t) {
                         static thread_local std::array<char, kReadBytes> buffer;
                         const std::size_t bytes =
                             error ? 0 : socket_.read_some(asio::buffer(buffer), error);
                         if (error == asio::error::would_block) return read();
                         if (error) return end_reading(user, error);
                         user.on_bytes({buffer.data(), bytes});
                       }));
  }

  void write(std::string_view bytes) override {
    asio::async_write(
        socket_,
        asio::buffer(bytes.data(), bytes.size()),
        handler([keep = user()](ConnectionUser& to, const error_code& error, std::size_t) {
          error ? to.on_broken() : to.on_written();
        }));
  }

  void finish_sending() override {
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
  }

  void close() override {
    let_go();
    error_code ignored;
    socket_.close(ignored);
  }

 private:
  tcp::socket socket_;
};

class TlsConnection final : public SocketConnection {
 public:
  TlsConnection(const Strand& strand,
                const tcp::endpoint& peer,
                tcp::socket socket,
                asio::ssl::context& context)
      : SocketConnection(strand, peer), stream_(std::move(socket), context) {}

  void open(std::shared_ptr<ConnectionUser> user) override {
    take(std::move(user));
    post([self = shared_from_this(), this] {
      stream_.async_handshake(asio::ssl::stream_base::server,
                              handler([](ConnectionUser& u, const error_code& error, std::size_t) {
                                error ? u.on_broken() : u.on_open();
                              }));
    });
  }

  void read() override {
    stream_.async_read_some(
        asio::buffer(buffer_),
        handler([this](ConnectionUser& user, const error_code& error, std::size_t bytes) {
          if (error) return end_reading(user, error);
          user.on_bytes({buffer_.data(), bytes});
        }));
  }

  void write(std::string_view bytes) override {
    asio::async_write(
        stream_,
        asio::buffer(bytes.data(), bytes.size()),
        handler([keep = user()](ConnectionUser& to, const error_code& error, std::size_t) {
          error ? to.on_broken() : to.on_written();
        }));
  }

  void finish_sending() override {
    stream_.async_shutdown([self = shared_from_this()](const error_code&) {});
  }

  void close() override {
    let_go();
    error_code ignored;
    stream_.lowest_layer().close(ignored);
  }

 private:
  asio::ssl::stream<tcp::socket> stream_;
  std::array<char, kTlsReadBytes> buffer_{};
};

/// What OpenSSL has against a file.
std::string problem(const std::string& file, const error_code& error) {
  if (!std::ifstream(file)) return "it cannot be read";
  const char* reason = ERR_reason_error_string(static_cast<unsigned long>(error.value()));
  return reason == nullptr ? "it is not as it should be" : reason;
}

/// None where nobody asks for TLS.
std::optional<asio::ssl::context> tls_context(const HttpOptions& options) {
  if (options.ssl_certfile.empty()) {
    if (!options.ssl_keyfile.empty())
      fail<ConfigError>("--ssl-keyfile is of no use without --ssl-certfile; give both");
    return std::nullopt;
  }
  asio::ssl::context context(asio::ssl::context::tls_server);
  context.set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                      asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                      asio::ssl::context::no_tlsv1_1);
  // Without a callback OpenSSL would ask on the terminal.
  context.set_password_callback(
      [password = options.ssl_keyfile_password](std::size_t, asio::ssl::context::password_purpose) {
        return password;
      });
  error_code error;
  context.use_certificate_chain_file(options.ssl_certfile, error);
  if (error)
    fail<ConfigError>(
        "--ssl-certfile {}: {}; give a file of certificates in PEM, the server's own first",
        options.ssl_certfile,
        problem(options.ssl_certfile, error));
  const std::string& key = options.ssl_keyfile.empty() ? options.ssl_certfile : options.ssl_keyfile;
  context.use_private_key_file(key, asio::ssl::context::pem, error);
  if (error || SSL_CTX_check_private_key(context.native_handle()) != 1)
    fail<ConfigError>(
        "--ssl-keyfile {}: {}; give the certificate's private key in PEM, and its password by "
        "--ssl-keyfile-password",
        key,
        error ? problem(key, error) : "the key is not the certificate's");
  return context;
}

}  // namespace

class Listener::Impl {
 public:
  explicit Impl(const HttpOptions& options)
      : tls_(tls_context(options)),
        strand_(asio::make_strand(io_)),
        acceptor_(strand_),
        pause_(strand_) {
    error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(options.host,
                                        std::to_string(options.port),
                                        tcp::resolver::passive | tcp::resolver::numeric_service,
                                        error);
    for (auto place = found.begin(); !error && place != found.end(); ++place)
      if (take(place->endpoint())) return;
    fail<ConfigError>(
        "cannot listen on {} port {}: it is in use or not ours; choose another --host or --port",
        options.host,
        options.port);
  }

  int port() const { return acceptor_.local_endpoint().port(); }

  void start(int threads, std::function<void(std::shared_ptr<Connection>)> accepted) {
    accepted_ = std::move(accepted);
    asio::post(strand_, [this] { accept(); });
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { io_.run(); });
  }

  void refuse() {
    if (threads_.empty()) return;
    std::promise<void> done;
    asio::post(strand_, [&] {
      error_code ignored;
      acceptor_.close(ignored);
      pause_.cancel();
      done.set_value();
    });
    done.get_future().wait();
  }

  void stop() {
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  /// Without SO_REUSEPORT: two servers on one port would share its clients.
  bool take(const tcp::endpoint& endpoint) {
    error_code error;
    if (acceptor_.is_open()) acceptor_.close(error);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kBacklog, error);
    return !error;
  }

  void accept() {
    if (!acceptor_.is_open()) return;
    const Strand strand = asio::make_strand(io_);
    acceptor_.async_accept(strand, [this, strand](const error_code& error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error == asio::error::no_descriptors || error == asio::error::no_buffer_space ||
          error == asio::error::no_memory) {
        pause_.expires_after(kAcceptPause);
        return pause_.async_wait([this](const error_code&) { accept(); });
      }
      if (!error) hand_over(strand, std::move(socket));
      accept();
    });
  }

  void hand_over(const Strand& strand, tcp::socket socket) {
    error_code error;
    const tcp::endpoint peer = socket.remote_endpoint(error);
    if (error) return;  // gone already
    socket.set_option(tcp::no_delay(true), error);
    if (tls_)
      accepted_(std::make_shared<TlsConnection>(strand, peer, std::move(socket), *tls_));
    else
      accepted_(std::make_shared<PlainConnection>(strand, peer, std::move(socket)));
  }

  std::optional<asio::ssl::context> tls_;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_ = asio::make_work_guard(io_);
  Strand strand_;  // of what follows
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::function<void(std::shared_ptr<Connection>)> accepted_;
  std::vector<std::thread> threads_;
};

Listener::Listener(const HttpOptions& options) : impl_(std::make_unique<Impl>(options)) {}

Listener::~Listener() = default;

int Listener::port() const { return impl_->port(); }

void Listener::start(int threads, std::function<void(std::shared_ptr<Connection>)> accepted) {
  impl_->start(threads, std::move(accepted));
}

void Listener::refuse() { impl_->refuse(); }

void Listener::stop() { impl_->stop(); }

}  // namespace ferry
