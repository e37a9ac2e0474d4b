#include "ferry/transport/sockets.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

constexpr std::chrono::milliseconds kRetry{50};
constexpr std::chrono::seconds kPatience{10};  // with a caller that says nothing
constexpr std::size_t kMaxCallers = 512;
constexpr std::size_t kMaxMessage = std::size_t{64} << 20;

[[noreturn]] void fail_io(const std::string& what, int error) {
  throw TransportError(Kind::io, -1, fmt::format("{}: {}", what, std::strerror(error)));
}

int milliseconds_until(Deadline deadline) {
  if (deadline == kNoDeadline) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30));
}

/// False: the deadline is over.
bool wait_for(int fd, short events, Deadline deadline) {
  pollfd p{.fd = fd, .events = events, .revents = 0};
  for (;;) {
    const int n = poll(&p, 1, milliseconds_until(deadline));
    if (n > 0) return true;
    if (n == 0 && Clock::now() >= deadline) return false;
  }
}

const sockaddr* raw(const SocketAddress& a) {
  return reinterpret_cast<const sockaddr*>(&a.storage);
}

UniqueFd open_socket(const SocketAddress& address) {
  UniqueFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) fail_io("cannot open a socket", errno);
  return fd;
}

void set_option(const UniqueFd& fd, int level, int option, int value) {
  setsockopt(fd.get(), level, option, &value, sizeof value);
}

/// 0 or the reason why not.
int try_connect(const UniqueFd& fd, const SocketAddress& address, Deadline deadline) {
  if (connect(fd.get(), raw(address), address.length) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  if (!wait_for(fd.get(), POLLOUT, deadline)) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

void send_all(const UniqueFd& fd, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (errno != EAGAIN && errno != EINTR) {
      fail_io("the connection broke", errno);
    } else if (!wait_for(fd.get(), POLLOUT, deadline)) {
      throw TransportError(Kind::timeout, -1, "the other side takes no bytes");
    }
  }
}

}  // namespace

bool SocketAddress::is_loopback() const {
  if (storage.ss_family == AF_INET) {
    const auto* in = reinterpret_cast<const sockaddr_in*>(&storage);
    return ntohl(in->sin_addr.s_addr) >> 24 == 127;
  }
  const auto* in6 = reinterpret_cast<const sockaddr_in6*>(&storage);
  return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

std::string SocketAddress::host() const {
  std::array<char, NI_MAXHOST> text{};
  getnameinfo(raw(*this), length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
  return text.data();
}

int SocketAddress::port() const {
  // Both families have it at the same place.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

std::string SocketAddress::text() const { return fmt::format("{}:{}", host(), port()); }

SocketAddress resolve(const std::string& host, int port) {
  const addrinfo hints{.ai_flags = AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    throw TransportError(
        Kind::io, -1, fmt::format("no host \"{}\": {}", host, gai_strerror(error)));
  }
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

SocketAddress own_address(const UniqueFd& socket) {
  SocketAddress address;
  address.length = sizeof address.storage;
  getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length);
  return address;
}

std::string peer_host(const UniqueFd& socket) {
  SocketAddress address;
  address.length = sizeof address.storage;
  getpeername(socket.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length);
  return address.host();
}

std::vector<std::string> host_addresses() {
  std::vector<std::string> hosts;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return hosts;
  for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
    const bool usable = each->ifa_addr != nullptr && each->ifa_addr->sa_family == AF_INET &&
                        (each->ifa_flags & IFF_UP) != 0 && (each->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable) continue;
    SocketAddress address;
    std::memcpy(&address.storage, each->ifa_addr, sizeof(sockaddr_in));
    address.length = sizeof(sockaddr_in);
    hosts.push_back(address.host());
  }
  freeifaddrs(all);
  return hosts;
}

void fill_random(std::span<std::byte> bytes) {
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size())) !=
      1) {
    fail<Error>("the system has no random bytes");
  }
}

UniqueFd listen_at(const SocketAddress& address) {
  UniqueFd fd = open_socket(address);
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  int bound = bind(fd.get(), raw(address), address.length);
  if (bound != 0 && errno == EADDRNOTAVAIL) {
    SocketAddress any = address;
    if (any.storage.ss_family == AF_INET) {
      reinterpret_cast<sockaddr_in*>(&any.storage)->sin_addr.s_addr = htonl(INADDR_ANY);
    } else {
      reinterpret_cast<sockaddr_in6*>(&any.storage)->sin6_addr = in6addr_any;
    }
    bound = bind(fd.get(), raw(any), any.length);
  }
  if (bound != 0 || listen(fd.get(), SOMAXCONN) != 0) {
    fail_io(fmt::format("cannot listen at {}", address.text()), errno);
  }
  return fd;
}

UniqueFd connect_to(const SocketAddress& address, Deadline deadline) {
  for (;;) {
    UniqueFd fd = open_socket(address);
    const int error = try_connect(fd, address, deadline);
    if (error == 0) return fd;
    if (Clock::now() + kRetry >= deadline) {
      throw TransportError(
          Kind::timeout,
          -1,
          fmt::format("cannot reach {}: {}", address.text(), std::strerror(error)));
    }
    std::this_thread::sleep_for(kRetry);
  }
}

void receive_exactly(const UniqueFd& fd, std::span<std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t n = recv(fd.get(), bytes.data(), bytes.size(), 0);
    if (n > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (n == 0) {
      throw TransportError(Kind::io, -1, "the connection was closed");
    } else if (errno != EAGAIN && errno != EINTR) {
      fail_io("the connection broke", errno);
    } else if (!wait_for(fd.get(), POLLIN, deadline)) {
      throw TransportError(Kind::timeout, -1, "no answer came in time");
    }
  }
}

void send_message(const UniqueFd& socket, std::span<const std::byte> message, Deadline deadline) {
  const ByteWriter framed = ByteWriter().blob(message);
  send_all(socket, framed.bytes(), deadline);
}

Bytes receive_message(const UniqueFd& socket, Deadline deadline) {
  std::uint32_t bytes = 0;
  receive_exactly(socket, std::as_writable_bytes(std::span(&bytes, 1)), deadline);
  if (bytes > kMaxMessage) throw TransportError(Kind::io, -1, "it does not speak our language");
  Bytes message(bytes);
  receive_exactly(socket, message, deadline);
  return message;
}

void tune_connection(const UniqueFd& socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 5);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, 15'000);
}

// --- Doorman -----------------------------------------------------------------------------------

Doorman::Doorman(UniqueFd listener) : listener_(std::move(listener)) {}

Doorman::~Doorman() = default;

void Doorman::admit() {
  for (;;) {
    SocketAddress from;
    from.length = sizeof from.storage;
    UniqueFd socket(accept4(listener_.get(),
                            reinterpret_cast<sockaddr*>(&from.storage),
                            &from.length,
                            SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;
    Caller caller{.guest = {.socket = std::move(socket),
                            .greeting = Bytes(kGreetingBytes),
                            .from = from.text()},
                  .until = Clock::now() + kPatience};
    fill_random(caller.guest.greeting);
    // A fresh connection takes 32 bytes at once.
    const ssize_t sent =
        send(caller.guest.socket.get(), caller.guest.greeting.data(), kGreetingBytes, MSG_NOSIGNAL);
    if (sent != static_cast<ssize_t>(kGreetingBytes)) continue;
    if (callers_.size() == kMaxCallers) callers_.erase(callers_.begin());
    callers_.push_back(std::move(caller));
  }
}

bool Doorman::listen_to(Caller& caller, bool& complete) {
  Bytes& said = caller.guest.message;
  for (;;) {
    // Not a byte more than the message: what follows belongs to whoever gets the connection.
    std::uint32_t length = 0;
    std::size_t wanted = sizeof length;
    if (said.size() >= sizeof length) {
      std::memcpy(&length, said.data(), sizeof length);
      if (length > kMaxGuestMessage) return false;
      wanted += length;
    }
    if (said.size() == wanted) {
      said.erase(said.begin(), said.begin() + sizeof length);
      complete = true;
      return true;
    }
    const std::size_t had = said.size();
    said.resize(wanted);
    const ssize_t n = recv(caller.guest.socket.get(), said.data() + had, wanted - had, 0);
    said.resize(had + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
    if (n < 0) return (errno == EAGAIN || errno == EINTR) && Clock::now() < caller.until;
    if (n == 0) return false;
  }
}

std::optional<Doorman::Guest> Doorman::take() {
  admit();
  for (std::size_t i = 0; i < callers_.size();) {
    bool complete = false;
    const bool stays = listen_to(callers_[i], complete);
    if (stays && !complete) {
      ++i;
      continue;
    }
    Caller caller = std::move(callers_[i]);
    callers_.erase(callers_.begin() + static_cast<std::ptrdiff_t>(i));
    if (complete) return std::move(caller.guest);
  }
  return std::nullopt;
}

void Doorman::watch(std::vector<pollfd>& awaited, Deadline& until) const {
  awaited.push_back({.fd = listener_.get(), .events = POLLIN, .revents = 0});
  for (const Caller& caller : callers_) {
    awaited.push_back({.fd = caller.guest.socket.get(), .events = POLLIN, .revents = 0});
    until = std::min(until, caller.until);
  }
}

std::optional<Doorman::Guest> Doorman::next(Deadline deadline) {
  for (;;) {
    if (auto guest = take()) return guest;
    if (Clock::now() >= deadline) return std::nullopt;
    std::vector<pollfd> awaited;
    Deadline first = deadline;
    watch(awaited, first);
    poll(awaited.data(), awaited.size(), milliseconds_until(first));
  }
}

}  // namespace ferry
