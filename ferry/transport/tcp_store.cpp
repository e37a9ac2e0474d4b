#include "ferry/tcp_store.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport/proof.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/store_server.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

/// One wait that a server is asked for at a time; a longer one is asked for again.
constexpr std::chrono::minutes kLongestWait{1};

/// For a store that was there and is gone, as far as one can see.
constexpr std::chrono::nanoseconds kLostTimeout = std::chrono::milliseconds(300);

}  // namespace

class TcpStore::Server : public StoreServer {
 public:
  using StoreServer::StoreServer;
};

/// A connection for each call that is under way, since one may wait for what another sets.
class TcpStore::Client {
 public:
  Client(const TcpStoreOptions& options, const SocketAddress& address)
      : options_(options), address_(address) {
    put_back(connect());  // who cannot come in hears of it now
  }

  /// `waits`: how long the store itself may take.
  StoreAnswer ask(const StoreRequest& request, std::chrono::nanoseconds waits = {}) {
    UniqueFd socket = take();
    try {
      const Deadline deadline = deadline_in(options_.timeout + waits);
      send_message(socket, request.bytes(), deadline);
      StoreAnswer answer = StoreAnswer::read(receive_message(socket, deadline));
      put_back(std::move(socket));
      if (answer.kind == StoreAnswer::Kind::refused) fail<Error>("store: {}", answer.text());
      return answer;
    } catch (const TransportError& e) {
      is_lost_ = true;
      fail_about_store(e.kind(), e.what());
    }
  }

 private:
  UniqueFd connect() const {
    try {
      const Deadline deadline =
          deadline_in(is_lost_ ? std::min(options_.timeout, kLostTimeout) : options_.timeout);
      UniqueFd socket = connect_to(address_, deadline);
      tune_connection(socket);
      say(socket, options_.secret, {}, store_greeting(), deadline);
      const StoreAnswer answer = StoreAnswer::read(receive_message(socket, deadline));
      if (answer.kind == StoreAnswer::Kind::refused) fail_about_store(Kind::io, answer.text());
      return socket;
    } catch (const TransportError& e) {
      if (std::string_view(e.what()).starts_with("the store ")) throw;
      fail_about_store(e.kind(), e.what());
    }
  }

  [[noreturn]] void fail_about_store(Kind kind, const std::string& why) const {
    const std::string server =
        options_.server < 0 ? "" : fmt::format(", which rank {} serves", options_.server);
    throw TransportError(
        kind, options_.server, fmt::format("the store at {}{}: {}", address_.text(), server, why));
  }

  UniqueFd take() {
    {
      const std::lock_guard guard(lock_);
      if (!idle_.empty()) {
        UniqueFd socket = std::move(idle_.back());
        idle_.pop_back();
        return socket;
      }
    }
    return connect();
  }

  void put_back(UniqueFd socket) {
    const std::lock_guard guard(lock_);
    idle_.push_back(std::move(socket));
  }

  const TcpStoreOptions options_;
  const SocketAddress address_;
  std::atomic<bool> is_lost_ = false;  // it was there, and does not answer any more
  std::mutex lock_;
  std::vector<UniqueFd> idle_;
};

TcpStore::TcpStore(const TcpStoreOptions& options) {
  SocketAddress address = resolve(options.host, options.port);
  if (options.secret.empty() && !address.is_loopback()) {
    fail<ConfigError>(
        "FERRY_TOKEN is not set, but the store is at {}, which others can reach; set it to the "
        "same secret text on all ranks",
        address.host());
  }
  if (options.serve) {
    UniqueFd listener = listen_at(address);
    address = own_address(listener);
    server_ = std::make_unique<Server>(std::move(listener), options.secret);
  }
  client_ = std::make_unique<Client>(options, address);
  port_ = address.port();
}

TcpStore::~TcpStore() = default;

int TcpStore::port() const { return port_; }

void TcpStore::set(const std::string& key, std::span<const std::byte> value) {
  if (key.size() + value.size() > kMaxBytes) {
    fail<Error>("store: key {} with {} bytes is more than a store takes ({})",
                key.substr(0, 100),
                value.size(),
                kMaxBytes);
  }
  client_->ask(
      {.kind = StoreRequest::Kind::set, .key = key, .value = Value(value.begin(), value.end())});
}

std::optional<Store::Value> TcpStore::wait(const std::string& key, Deadline deadline) {
  for (;;) {
    const Deadline now = Clock::now();
    const auto left = deadline <= now
                          ? std::chrono::nanoseconds(0)
                          : std::min<std::chrono::nanoseconds>(kLongestWait, deadline - now);
    const auto at_most = std::chrono::ceil<std::chrono::milliseconds>(left);
    StoreAnswer answer = client_->ask(
        {.kind = StoreRequest::Kind::wait, .key = key, .number = at_most.count()}, at_most);
    if (answer.kind == StoreAnswer::Kind::value) return std::move(answer.value);
    if (Clock::now() >= deadline) return std::nullopt;
  }
}

std::int64_t TcpStore::add(const std::string& key, std::int64_t amount) {
  return client_->ask({.kind = StoreRequest::Kind::add, .key = key, .number = amount}).number;
}

void TcpStore::remove(const std::string& key) {
  client_->ask({.kind = StoreRequest::Kind::remove, .key = key});
}

TcpStoreOptions store_options(const World& world) {
  if (world.master_host.empty() || world.master_port == 0) {
    fail<ConfigError>(
        "MASTER_ADDR and MASTER_PORT are not set; the ranks need them to find each other");
  }
  return {.host = world.master_host,
          .port = world.master_port,
          .serve = world.rank == 0,
          .secret = world.secret,
          .server = 0};
}

}  // namespace ferry
