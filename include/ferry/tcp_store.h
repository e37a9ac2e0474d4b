// A store that one process serves over TCP, to those that prove that they know its secret.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "ferry/export.h"
#include "ferry/store.h"
#include "ferry/world.h"

namespace ferry {

struct TcpStoreOptions {
  std::string host = "127.0.0.1";  ///< where it is served
  int port = 0;                    ///< who serves may pass 0: any
  bool serve = false;              ///< this process serves it, as long as the object lives
  std::string secret;              ///< the same for all; must not be empty beyond loopback
  /// Until the store can be reached, and of every answer that it does not have to wait for.
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
  Rank server = -1;  ///< the rank that serves it, which errors are then about
};

/// Threads: any. Serving takes a thread. Strangers and what they send have no effect but a closed
/// connection. Errors: TransportError that names the store's address when it cannot be reached, has
/// ended, or has another secret; ConfigError when there is no secret where one is needed.
class FERRY_API TcpStore final : public Store {
 public:
  /// Keys and values together must stay below this.
  static constexpr std::size_t kMaxBytes = std::size_t{4} << 20;

  explicit TcpStore(const TcpStoreOptions& options);
  ~TcpStore() override;

  int port() const;

  void set(const std::string& key, std::span<const std::byte> value) override;
  std::optional<Value> wait(const std::string& key, Deadline deadline) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  void remove(const std::string& key) override;

 private:
  class Server;
  class Client;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
  int port_ = 0;
};

/// The store at MASTER_ADDR:MASTER_PORT with FERRY_TOKEN as its secret, which rank 0 serves: with
/// join_options() all that ranks need that a shell loop or torchrun has started. Throws ConfigError
/// where the launcher did not say where.
FERRY_API TcpStoreOptions store_options(const World& world);

}  // namespace ferry
