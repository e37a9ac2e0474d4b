#include "ferry/server/connection.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace ferry {

namespace {

constexpr std::size_t kBufferBytes = 16384;
/// Request line and headers beside the body.
constexpr std::size_t kHeadBytes = 65536;
/// How long a connection that waits for its next request may take to notice a stop.
constexpr std::chrono::milliseconds kStopLook{50};
/// How often a stream looks whether its client has gone.
constexpr std::chrono::milliseconds kGoneLook{20};

int milliseconds_until(Connection::Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - Connection::Clock::now() + std::chrono::microseconds(999));
  return static_cast<int>(std::max<std::int64_t>(left.count(), 0));
}

}  // namespace

Connection::Connection(int fd, const HttpOptions& options)
    : fd_(fd), options_(options), buffer_(kBufferBytes) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
      getnameinfo(reinterpret_cast<sockaddr*>(&address),
                  size,
                  host.data(),
                  host.size(),
                  port.data(),
                  port.size(),
                  NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
    peer_ = host.data();
    peer_port_ = std::atoi(port.data());
  }
}

bool Connection::wait(short events, Clock::time_point deadline) const {
  pollfd p{.fd = fd_.get(), .events = events, .revents = 0};
  for (;;) {
    const int ready = poll(&p, 1, milliseconds_until(deadline));
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return false;
  }
}

bool Connection::wait_for_request(const std::function<bool()>& stopping) {
  const Clock::time_point deadline = Clock::now() + options_.idle_timeout;
  while (begin_ == end_ && !wait(POLLIN, std::min(deadline, Clock::now() + kStopLook)))
    if (stopping() || Clock::now() >= deadline) return false;
  began_ = Clock::now();
  received_ = end_ - begin_;
  trouble_ = Trouble::none;
  return true;
}

bool Connection::fill() {
  if (received_ > options_.max_body_bytes + kHeadBytes) {
    trouble_ = Trouble::too_large;
    return false;
  }
  if (!wait(POLLIN, began_ + options_.request_timeout)) {
    trouble_ = Trouble::too_slow;
    return false;
  }
  const ssize_t n = recv(fd_.get(), buffer_.data(), buffer_.size(), 0);
  if (n <= 0) return false;
  begin_ = 0;
  end_ = static_cast<std::size_t>(n);
  received_ += end_;
  return true;
}

ssize_t Connection::read(char* to, std::size_t size) {
  if (begin_ == end_ && !fill()) return -1;
  const std::size_t n = std::min(size, end_ - begin_);
  std::memcpy(to, buffer_.data() + begin_, n);
  begin_ += n;
  return static_cast<ssize_t>(n);
}

ssize_t Connection::write(const char* from, std::size_t size) {
  const Clock::time_point deadline = Clock::now() + options_.write_timeout;
  for (;;) {  // there is room mostly, and asking first would double the system calls of a token
    const ssize_t sent = send(fd_.get(), from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0 || (errno != EAGAIN && errno != EINTR)) return sent;
    if (!wait(POLLOUT, deadline)) return -1;
  }
}

bool Connection::seems_gone() {
  const Clock::time_point now = Clock::now();
  if (now < next_look_) return false;
  next_look_ = now + kGoneLook;
  return gone();
}

bool Connection::gone() const {
  pollfd p{.fd = fd_.get(), .events = POLLRDHUP, .revents = 0};
  return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace ferry
