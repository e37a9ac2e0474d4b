// TCP as the bootstrap needs it: addresses, connections with a deadline, and a doorman that takes
// one message from each caller without ever waiting for one of them.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  bool is_loopback() const;
  std::string host() const;  ///< numeric
  int port() const;
  std::string text() const;  ///< "host:port"
};

/// Throws TransportError when the name is unknown.
SocketAddress resolve(const std::string& host, int port);

/// The own end of a connection or listener.
SocketAddress own_address(const UniqueFd& socket);
/// The other end of a connection, numeric.
std::string peer_host(const UniqueFd& socket);

/// Addresses of this host that other hosts may reach, numeric.
std::vector<std::string> host_addresses();

/// Bytes that nobody can guess.
void fill_random(std::span<std::byte> bytes);

/// Port 0: any. Where the address is not one of this host's (behind a translation), listens on all.
/// Throws TransportError.
UniqueFd listen_at(const SocketAddress& address);

/// Tries again until the deadline, since the other side may not be up yet. Throws TransportError
/// that says why the last try failed.
UniqueFd connect_to(const SocketAddress& address, Deadline deadline);

/// A message is a 32-bit length and that many bytes. These throw TransportError{timeout or io}.
void receive_exactly(const UniqueFd& socket, std::span<std::byte> bytes, Deadline deadline);
void send_message(const UniqueFd& socket, std::span<const std::byte> message, Deadline deadline);
Bytes receive_message(const UniqueFd& socket, Deadline deadline);

/// No delay for small messages; a host that vanished shows within about 15 s.
void tune_connection(const UniqueFd& socket);

inline constexpr std::size_t kMaxGuestMessage = std::size_t{64} << 10;

/// Opens a listener's door to anybody. Every caller is greeted with 32 random bytes of its own and
/// may say one message of at most kMaxGuestMessage bytes. Callers that say nothing, too much or
/// nonsense cost a descriptor for ten seconds and delay nobody.
class Doorman {
 public:
  static constexpr std::size_t kGreetingBytes = 32;

  struct Guest {
    UniqueFd socket;
    Bytes greeting;
    Bytes message;
    std::string from;
  };

  explicit Doorman(UniqueFd listener);
  ~Doorman();

  /// The next guest that has said its message; nothing when the deadline is over.
  std::optional<Guest> next(Deadline deadline);

  /// The same for who waits for other things too: the next guest that is ready now, if any.
  std::optional<Guest> take();
  /// What take() should be called after, and when at the latest.
  void watch(std::vector<pollfd>& awaited, Deadline& until) const;

 private:
  struct Caller {
    Guest guest;
    Deadline until;
  };

  void admit();
  /// False: the caller is to be shown out.
  static bool listen_to(Caller& caller, bool& complete);

  UniqueFd listener_;
  std::vector<Caller> callers_;
};

}  // namespace ferry
