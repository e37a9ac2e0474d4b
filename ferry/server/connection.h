// One accepted socket, with deadlines for everything that waits for the client.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ferry/server/http_server.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

/// Owned and used by the connection's thread.
class Connection {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Trouble : std::uint8_t { none, too_slow, too_large };

  /// `options`: borrowed.
  Connection(int fd, const HttpOptions& options);

  /// True when a request begins to arrive within the idle timeout; looks often at `stopping`.
  bool wait_for_request(const std::function<bool()>& stopping);

  /// As recv() and send(), but all of a request must come before its deadline and within the
  /// greatest size, and every write within the write timeout.
  ssize_t read(char* to, std::size_t size);
  ssize_t write(const char* from, std::size_t size);

  /// Whether the client has hung up, also its sending half.
  bool gone() const;

  /// The same for who asks before every write: looks only now and then.
  bool seems_gone();

  /// Why reading failed.
  Trouble trouble() const { return trouble_; }

  std::chrono::duration<double> request_time() const { return Clock::now() - began_; }

  const std::string& peer() const { return peer_; }

  int peer_port() const { return peer_port_; }

  int fd() const { return fd_.get(); }

 private:
  bool fill();
  bool wait(short events, Clock::time_point deadline) const;

  UniqueFd fd_;
  const HttpOptions& options_;
  std::string peer_;
  int peer_port_ = 0;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // of what is in it
  std::size_t received_ = 0;         // bytes of this request
  Clock::time_point began_ = Clock::now();
  Trouble trouble_ = Trouble::none;
  Clock::time_point next_look_;
};

}  // namespace ferry
