#include "ferry/transport/handover.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport/proof.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

constexpr std::size_t kSecretBytes = 32;
/// How long a death may go unnoticed.
constexpr std::chrono::milliseconds kLookInterval{20};

UniqueFd open_unix_socket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) fail<Error>("shm: cannot open a socket: {}", std::strerror(errno));
  return fd;
}

/// At an address that the kernel picks; it lives in no file system.
UniqueFd listen_without_a_name() {
  UniqueFd fd = open_unix_socket();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address.sun_family) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    fail<Error>("shm: cannot listen for the other ranks: {}", std::strerror(errno));
  }
  return fd;
}

Bytes address_of(const UniqueFd& socket) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length);
  Bytes bytes(length);
  std::memcpy(bytes.data(), &address, length);
  return bytes;
}

std::string random_secret() {
  std::string secret(kSecretBytes, '\0');
  fill_random(std::as_writable_bytes(std::span(secret)));
  return secret;
}

ucred peer_of(const UniqueFd& socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    credentials.pid = -1;
  return credentials;
}

/// Room for one descriptor beside a message.
struct Control {
  alignas(cmsghdr) char bytes[CMSG_SPACE(sizeof(int))] = {};
};

bool send_descriptor(const UniqueFd& to, const UniqueFd& descriptor) {
  char word = 1;
  iovec data{.iov_base = &word, .iov_len = 1};
  Control control;
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = descriptor.get();
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(to.get(), &message, MSG_NOSIGNAL) == 1;
}

[[noreturn]] void fail_about_rank_0(Kind kind, const std::string& why) {
  throw TransportError(kind, 0, "shm: rank 0, which has the shared memory, " + why);
}

/// Waits until the socket has something to read.
void await_answer(const UniqueFd& socket, Deadline deadline) {
  pollfd p{.fd = socket.get(), .events = POLLIN, .revents = 0};
  while (poll(&p, 1, static_cast<int>(kLookInterval.count())) <= 0) {
    if (Clock::now() >= deadline) fail_about_rank_0(Kind::timeout, "did not hand it over in time");
  }
}

UniqueFd take_descriptor(const UniqueFd& from, Deadline deadline) {
  await_answer(from, deadline);
  char word = 0;
  iovec data{.iov_base = &word, .iov_len = 1};
  Control control;
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  const ssize_t n = recvmsg(from.get(), &message, MSG_CMSG_CLOEXEC);
  const cmsghdr* header = n == 1 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int)))
    fail_about_rank_0(Kind::peer_died, "ended or gave up before it handed it over");
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return UniqueFd(fd);
}

UniqueFd connect_to_giver(std::span<const std::byte> address, Deadline deadline) {
  UniqueFd fd = open_unix_socket();
  sockaddr_un to{};
  std::memcpy(&to, address.data(), address.size());
  while (connect(fd.get(),
                 reinterpret_cast<const sockaddr*>(&to),
                 static_cast<socklen_t>(address.size())) != 0) {
    // EAGAIN: others stand in line.
    if (errno != EAGAIN && errno != EINTR)
      fail_about_rank_0(Kind::peer_died, fmt::format("is gone: {}", std::strerror(errno)));
    if (Clock::now() >= deadline) fail_about_rank_0(Kind::timeout, "opens no door in time");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return fd;
}

/// Watches those who still have to come.
class Awaited {
 public:
  explicit Awaited(std::span<const ProcessId> ranks) {
    for (const ProcessId& rank : ranks) {
      processes_.push_back(open_process(rank));
      missing_.push_back(true);
    }
    missing_.front() = false;
  }

  Rank first_missing() const {
    const auto at = std::find(missing_.begin(), missing_.end(), true);
    return at == missing_.end() ? -1 : static_cast<Rank>(at - missing_.begin());
  }

  bool misses(Rank rank) const {
    return rank > 0 && static_cast<std::size_t>(rank) < missing_.size() &&
           missing_[static_cast<std::size_t>(rank)];
  }

  void came(Rank rank) { missing_[static_cast<std::size_t>(rank)] = false; }

  void throw_if_dead() const {
    for (std::size_t r = 0; r < missing_.size(); ++r) {
      if (!missing_[r] || (processes_[r].valid() && !has_ended(processes_[r]))) continue;
      throw TransportError(
          Kind::peer_died, static_cast<Rank>(r), fmt::format("rank {} died while joining", r));
    }
  }

 private:
  std::vector<UniqueFd> processes_;
  std::vector<bool> missing_;
};

}  // namespace

Handover::Handover() : Handover(listen_without_a_name()) {}

Handover::Handover(UniqueFd listener)
    : secret_(random_secret()), address_(address_of(listener)), doorman_(std::move(listener)) {}

Bytes Handover::invitation() const { return ByteWriter().blob(address_).text(secret_).bytes(); }

void Handover::give(const UniqueFd& descriptor,
                    std::span<const ProcessId> ranks,
                    Deadline deadline) {
  Awaited awaited(ranks);
  while (awaited.first_missing() >= 0) {
    const Deadline now = Clock::now();
    const auto guest = doorman_.next(std::min(deadline, now + kLookInterval));
    if (!guest) {
      awaited.throw_if_dead();
      if (now < deadline) continue;
      const Rank late = awaited.first_missing();
      throw TransportError(
          Kind::timeout, late, fmt::format("rank {} did not come for the shared memory", late));
    }
    try {
      const auto words = believed(*guest, secret_, {});
      if (!words) continue;
      const Rank rank = ByteReader(*words).number<Rank>();
      if (!awaited.misses(rank)) continue;
      const ucred peer = peer_of(guest->socket);
      const bool is_it =
          peer.uid == geteuid() && peer.pid == ranks[static_cast<std::size_t>(rank)].pid;
      if (is_it && send_descriptor(guest->socket, descriptor)) awaited.came(rank);
    } catch (const Error&) {
      continue;  // a stranger
    }
  }
}

UniqueFd receive_descriptor(std::span<const std::byte> invitation,
                            const ProcessId& giver,
                            Rank own,
                            Deadline deadline) {
  ByteReader reader(invitation);
  const auto address = reader.blob();
  const std::string secret = reader.text();
  if (address.size() > sizeof(sockaddr_un))
    fail_about_rank_0(Kind::io, "has sent an address that is damaged");
  const UniqueFd socket = connect_to_giver(address, deadline);
  const ucred peer = peer_of(socket);
  if (peer.pid != giver.pid || peer.uid != geteuid())
    fail_about_rank_0(Kind::io, "is another process, or another user's, than it says");
  try {
    say(socket, secret, {}, ByteWriter().number(own).bytes(), deadline);
  } catch (const TransportError& e) {
    fail_about_rank_0(e.kind(), fmt::format("does not answer: {}", e.what()));
  }
  return take_descriptor(socket, deadline);
}

}  // namespace ferry
