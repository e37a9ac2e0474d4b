#include "ferry/transport/store_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <list>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/tcp_store.h"
#include "ferry/transport/proof.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/store_values.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kLanguage = 0x46535431;  // changes when what travels does
/// Of a request: key, value and what stands around them.
constexpr std::size_t kMaxRequest = TcpStore::kMaxBytes + 64;

Bytes text_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Bytes store_greeting() { return ByteWriter().number(kLanguage).bytes(); }

StoreRequest StoreRequest::read(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  StoreRequest request;
  request.kind = reader.number<Kind>();
  request.key = reader.text();
  request.number = reader.number<std::int64_t>();
  request.value = reader.copy();
  if (request.kind > Kind::remove || !reader.done()) throw Error("a request that is none");
  return request;
}

StoreAnswer StoreAnswer::read(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  StoreAnswer answer;
  answer.kind = reader.number<Kind>();
  answer.number = reader.number<std::int64_t>();
  answer.value = reader.copy();
  return answer;
}

/// Everything happens on its thread; nobody is ever waited for.
class StoreServer::Loop {
 public:
  Loop(UniqueFd listener, std::string secret)
      : secret_(std::move(secret)),
        doorman_(std::move(listener)),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!stop_.valid()) fail<Error>("store: no descriptor is left: {}", std::strerror(errno));
  }

  void run() {
    for (;;) {
      Deadline until = kNoDeadline;
      std::vector<pollfd> awaited{{.fd = stop_.get(), .events = POLLIN, .revents = 0}};
      doorman_.watch(awaited, until);
      for (const Guest& guest : guests_) {
        const short events = guest.out.empty() ? POLLIN : POLLOUT;
        awaited.push_back({.fd = guest.socket.get(), .events = events, .revents = 0});
        if (guest.waits) until = std::min(until, guest.until);
      }
      poll(awaited.data(), awaited.size(), milliseconds_until(until));
      if (awaited.front().revents) return;
      while (auto caller = doorman_.take()) admit(std::move(*caller));
      for (Guest& guest : guests_) attend(guest);
      std::erase_if(guests_, [](const Guest& guest) { return !guest.socket.valid(); });
    }
  }

  void stop() const {
    const std::uint64_t one = 1;
    if (write(stop_.get(), &one, sizeof one) < 0) return;  // it is set already
  }

 private:
  struct Guest {
    UniqueFd socket;
    Bytes in, out;
    std::optional<std::string> waits = {};  // the key
    Deadline until = {};
  };

  static int milliseconds_until(Deadline deadline) {
    if (deadline == kNoDeadline) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30));
  }

  void admit(Doorman::Guest caller) {
    Guest guest{.socket = std::move(caller.socket)};
    try {
      const auto words = believed(caller, secret_, {});
      if (!words) {
        refuse(guest, "its FERRY_TOKEN is not that of the store; give all ranks the same");
        push(guest);
        return;  // the answer is on its way; the connection ends
      }
      if (*words != store_greeting()) {
        refuse(guest, "it has another version of this program");
        push(guest);
        return;
      }
    } catch (const Error&) {
      return;  // a stranger
    }
    answer(guest, {});
    guests_.push_back(std::move(guest));
  }

  static void answer(Guest& guest, const StoreAnswer& answer) {
    guest.out = ByteWriter().blob(answer.bytes()).bytes();
    guest.waits.reset();
  }

  static void refuse(Guest& guest, std::string_view why) {
    answer(guest, {.kind = StoreAnswer::Kind::refused, .value = text_bytes(why)});
  }

  /// Does all that can be done for a guest now.
  void attend(Guest& guest) {
    for (;;) {
      if (!guest.out.empty()) {
        push(guest);
        if (!guest.out.empty()) return;
      }
      if (guest.waits) {
        look_again(guest);
        if (guest.waits) return hear_end(guest);
        continue;
      }
      if (!receive(guest)) return;
      try {
        const auto message = std::span<const std::byte>(guest.in).subspan(sizeof(std::uint32_t));
        serve(guest, StoreRequest::read(message));
      } catch (const std::exception&) {
        return close(guest);  // it does not speak our language, or is too much for this host
      }
      guest.in.clear();
    }
  }

  void serve(Guest& guest, const StoreRequest& request) {
    using Kind = StoreRequest::Kind;
    if (request.kind == Kind::wait) {
      const auto most = std::chrono::milliseconds(std::clamp<std::int64_t>(
          request.number, 0, std::chrono::milliseconds(std::chrono::hours(1)).count()));
      guest.waits = request.key;
      guest.until = Clock::now() + most;
      return;
    }
    StoreAnswer done;
    if (request.kind == Kind::set) values_.insert_or_assign(request.key, request.value);
    if (request.kind == Kind::remove) values_.erase(request.key);
    if (request.kind == Kind::add) {
      try {
        done.number = add_to_value(request.key, values_[request.key], request.number);
      } catch (const Error& e) {
        return refuse(guest, e.what());
      }
    }
    answer(guest, done);
    if (request.kind == Kind::remove) return;
    for (Guest& other : guests_) {
      if (other.waits != request.key) continue;
      look_again(other);
      push(other);
    }
  }

  void look_again(Guest& guest) {
    if (const auto found = values_.find(*guest.waits); found != values_.end()) {
      answer(guest, {.kind = StoreAnswer::Kind::value, .value = found->second});
    } else if (Clock::now() >= guest.until) {
      answer(guest, {.kind = StoreAnswer::Kind::nothing});
    }
  }

  static void close(Guest& guest) {
    guest.socket = {};
    guest.waits.reset();
    guest.out.clear();
  }

  static void push(Guest& guest) {
    if (guest.out.empty()) return;
    const ssize_t n =
        send(guest.socket.get(), guest.out.data(), guest.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return close(guest);
    if (n > 0) guest.out.erase(guest.out.begin(), guest.out.begin() + n);
  }

  /// Whoever waits says nothing; when it is gone its place is free.
  static void hear_end(Guest& guest) {
    char byte = 0;
    const ssize_t n = recv(guest.socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n >= 0 || (errno != EAGAIN && errno != EINTR)) close(guest);
  }

  /// True when a whole message is there.
  static bool receive(Guest& guest) {
    while (guest.socket.valid()) {
      std::uint32_t length = 0;
      std::size_t wanted = sizeof length;
      if (guest.in.size() >= sizeof length) {
        std::memcpy(&length, guest.in.data(), sizeof length);
        if (length > kMaxRequest) {
          close(guest);
          return false;
        }
        wanted += length;
        if (guest.in.size() == wanted) return true;
      }
      const std::size_t had = guest.in.size();
      // A length alone is no reason to reserve memory.
      const std::size_t piece = std::min<std::size_t>(wanted - had, 64 << 10);
      guest.in.resize(had + piece);
      const ssize_t n = recv(guest.socket.get(), guest.in.data() + had, piece, MSG_DONTWAIT);
      guest.in.resize(had + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
      if (n <= 0) close(guest);
    }
    return false;
  }

  const std::string secret_;
  Doorman doorman_;
  UniqueFd stop_;
  std::list<Guest> guests_;
  std::map<std::string, Store::Value> values_;

 public:
  std::thread thread;
};

StoreServer::StoreServer(UniqueFd listener, std::string secret)
    : loop_(std::make_unique<Loop>(std::move(listener), std::move(secret))) {
  // Signals are for the program's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  try {
    loop_->thread = std::thread([loop = loop_.get()] { loop->run(); });
  } catch (const std::system_error& e) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    fail<Error>("store: no thread can be started to serve it: {}", e.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

StoreServer::~StoreServer() {
  loop_->stop();
  loop_->thread.join();
}

}  // namespace ferry
