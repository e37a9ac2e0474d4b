#include "ferry/transport/mesh.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

/// More than any message between ranks has; whoever sends more does not speak our language.
constexpr std::uint32_t kMaxMessage = 1U << 24;

epoll_event interest(Rank peer, bool to_send) {
  epoll_event event{};
  event.events = EPOLLIN | (to_send ? EPOLLOUT : 0U);
  event.data.u32 = static_cast<std::uint32_t>(peer);
  return event;
}

}  // namespace

Mesh::Mesh(Rank rank, std::vector<UniqueFd> sockets)
    : rank_(rank), links_(sockets.size()), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_.valid()) fail<Error>("cannot watch connections: {}", std::strerror(errno));
  for (Rank r = 0; r < size(); ++r) {
    Link& link = links_[static_cast<std::size_t>(r)];
    link.socket = std::move(sockets[static_cast<std::size_t>(r)]);
    if (!link.socket.valid()) continue;
    epoll_event event = interest(r, false);
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, link.socket.get(), &event);
  }
}

void Mesh::close(Link& link) {
  link.socket = UniqueFd();  // also leaves the epoll set
  link.out.clear();
  link.sent = 0;
}

void Mesh::push(Rank peer) {
  Link& link = links_[static_cast<std::size_t>(peer)];
  while (link.socket.valid() && link.sent < link.out.size()) {
    const ssize_t n = ::send(
        link.socket.get(), link.out.data() + link.sent, link.out.size() - link.sent, MSG_NOSIGNAL);
    if (n >= 0) {
      link.sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      // What the peer had sent before may still be there to read.
      link.out.clear();
      link.sent = 0;
    }
  }
  if (link.sent == link.out.size()) {
    link.out.clear();
    link.sent = 0;
  }
  const bool waits = !link.out.empty();
  if (link.socket.valid() && waits != link.waits_to_send) {
    epoll_event event = interest(peer, waits);
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, link.socket.get(), &event);
    link.waits_to_send = waits;
  }
}

void Mesh::send(Rank peer, std::span<const std::byte> message) {
  Link& link = links_[static_cast<std::size_t>(peer)];
  if (!link.socket.valid()) return;
  const ByteWriter framed = ByteWriter().blob(message);
  link.out.insert(link.out.end(), framed.bytes().begin(), framed.bytes().end());
  push(peer);
}

void Mesh::receive(Link& link) {
  std::array<std::byte, 16384> piece;
  bool open = true;
  for (;;) {
    const ssize_t n = recv(link.socket.get(), piece.data(), piece.size(), 0);
    if (n > 0) {
      link.in.insert(link.in.end(), piece.begin(), piece.begin() + n);
      continue;
    }
    open = n < 0 && (errno == EAGAIN || errno == EINTR);
    break;
  }
  std::size_t at = 0;
  std::uint32_t length = 0;
  while (link.in.size() - at >= sizeof length) {
    std::memcpy(&length, link.in.data() + at, sizeof length);
    if (length > kMaxMessage) {
      open = false;
      break;
    }
    if (link.in.size() - at - sizeof length < length) break;
    const auto begin = link.in.begin() + static_cast<std::ptrdiff_t>(at + sizeof length);
    link.messages.emplace_back(begin, begin + length);
    at += sizeof length + length;
  }
  link.in.erase(link.in.begin(), link.in.begin() + static_cast<std::ptrdiff_t>(at));
  if (!open) close(link);
}

void Mesh::poll(std::chrono::nanoseconds at_most) {
  std::array<epoll_event, 64> events;
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(at_most).count();
  const int n = epoll_wait(epoll_.get(), events.data(), events.size(), static_cast<int>(ms));
  for (int i = 0; i < n; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    const auto peer = static_cast<Rank>(event.data.u32);
    if (event.events & EPOLLOUT) push(peer);
    Link& link = links_[static_cast<std::size_t>(peer)];
    if (link.socket.valid() && (event.events & ~static_cast<std::uint32_t>(EPOLLOUT))) {
      receive(link);
    }
  }
}

std::optional<Bytes> Mesh::take(Rank peer) {
  std::deque<Bytes>& messages = links_[static_cast<std::size_t>(peer)].messages;
  if (messages.empty()) return std::nullopt;
  Bytes message = std::move(messages.front());
  messages.pop_front();
  return message;
}

bool Mesh::ended(Rank peer) const {
  const Link& link = links_[static_cast<std::size_t>(peer)];
  return peer != rank_ && !link.socket.valid() && link.messages.empty();
}

bool Mesh::has_unsent() const {
  return std::any_of(links_.begin(), links_.end(), [](const Link& l) { return !l.out.empty(); });
}

std::vector<Bytes> Mesh::all_gather(std::span<const std::byte> own, Deadline deadline) {
  std::vector<Bytes> all(links_.size());
  std::vector<bool> here(links_.size(), false);
  all[static_cast<std::size_t>(rank_)].assign(own.begin(), own.end());
  for (Rank r = 0; r < size(); ++r) {
    if (r != rank_) send(r, own);
  }
  for (Rank r = 0; r < size(); ++r) {
    while (r != rank_ && !here[static_cast<std::size_t>(r)]) {
      if (auto message = take(r)) {
        all[static_cast<std::size_t>(r)] = std::move(*message);
        here[static_cast<std::size_t>(r)] = true;
      } else if (ended(r)) {
        throw TransportError(
            TransportError::Kind::peer_died, r, fmt::format("rank {} ended while starting", r));
      } else if (Clock::now() >= deadline) {
        throw TransportError(
            TransportError::Kind::timeout, r, fmt::format("rank {} did not start in time", r));
      } else {
        poll(std::chrono::milliseconds(10));
      }
    }
  }
  return all;
}

}  // namespace ferry
