#include "ferry/transport/bootstrap.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

#include "ferry/core/error.h"
#include "ferry/transport/proof.h"
#include "ferry/transport/sockets.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

// What travels. All numbers are little-endian; a message stands behind its length (u32).
//
//   rank 0 -> caller    32 random bytes
//   caller -> rank 0    proof, hello         proof: HMAC-SHA256(secret, random bytes, hello)
//   rank 0 -> caller    verdict              why it is turned away, or, once all are here:
//                                            the session and where each rank listens
//   rank r -> rank q    proof, r             to each 0 < q < r, answering q's 32 random bytes;
//                                            the proof also covers the session
constexpr std::uint32_t kLanguage = 0x46524d31;  // changes when the above does
constexpr std::size_t kSessionBytes = 32;
/// Rank 0 gives its verdict at its deadline; the others may have begun a little earlier.
constexpr std::chrono::seconds kVerdictMargin{1};

struct Hello {
  Rank rank = 0;
  int size = 0;
  int port = 0;  // where this rank listens
  std::string node;
  Agreement agreement;

  Bytes bytes() const {
    ByteWriter w;
    w.number(kLanguage).number(rank).number(size).number(port).text(node);
    w.number(static_cast<std::uint32_t>(agreement.size()));
    for (const auto& [name, value] : agreement) w.text(name).text(value);
    return w.bytes();
  }

  static Hello read(std::span<const std::byte> bytes) {
    ByteReader r(bytes);
    Hello h;
    if (r.number<std::uint32_t>() != kLanguage)
      throw Error("it has another version of this program");
    h.rank = r.number<Rank>();
    h.size = r.number<int>();
    h.port = r.number<int>();
    h.node = r.text();
    const auto pairs = r.number<std::uint32_t>();
    for (std::uint32_t i = 0; i < pairs; ++i) {
      std::string name = r.text();
      h.agreement.emplace_back(std::move(name), r.text());
    }
    return h;
  }
};

struct Place {
  std::string host;
  int port = 0;
  std::string node;
};

struct Verdict {
  std::string error;  // empty: all are here
  Bytes session;
  std::vector<Place> places;

  Bytes bytes() const {
    ByteWriter w;
    w.text(error).blob(session).number(static_cast<std::uint32_t>(places.size()));
    for (const Place& p : places) w.text(p.host).number(p.port).text(p.node);
    return w.bytes();
  }

  static Verdict read(std::span<const std::byte> bytes) {
    ByteReader r(bytes);
    Verdict v;
    v.error = r.text();
    const auto session = r.blob();
    v.session.assign(session.begin(), session.end());
    v.places.resize(std::min<std::uint32_t>(r.number<std::uint32_t>(), 1U << 16));
    for (Place& p : v.places) {
      p.host = r.text();
      p.port = r.number<int>();
      p.node = r.text();
    }
    return v;
  }
};

[[noreturn]] void fail_meeting(Rank rank, Kind kind, Rank about, const std::string& why) {
  throw TransportError(kind, about, fmt::format("rank {} cannot join: {}", rank, why));
}

// --- Rank 0 ------------------------------------------------------------------------------------

/// Rank 0's list of guests. Collects them, then gives all the same verdict.
class Reception {
 public:
  Reception(const MeetingOptions& options, UniqueFd listener)
      : options_(options),
        doorman_(std::move(listener)),
        sockets_(static_cast<std::size_t>(options.size)),
        hellos_(static_cast<std::size_t>(options.size)),
        hosts_(static_cast<std::size_t>(options.size)) {
    hellos_[0] = Hello{.rank = 0,
                       .size = options.size,
                       .port = 0,
                       .node = options.node,
                       .agreement = options.agreement};
  }

  /// The sockets to all ranks and the verdict that they got.
  std::pair<std::vector<UniqueFd>, Verdict> receive_all() {
    const Deadline begun = Clock::now();
    std::string error;
    while (error.empty() && !missing().empty()) {
      auto guest = doorman_.next(options_.deadline);
      error = guest ? admit(std::move(*guest)) : missing_text(begun);
    }
    if (error.empty()) error = difference();
    Verdict verdict{.error = error};
    if (error.empty()) {
      verdict.session.resize(kSessionBytes);
      fill_random(verdict.session);
      for (Rank r = 0; r < options_.size; ++r) {
        const Hello& hello = *hellos_[static_cast<std::size_t>(r)];
        verdict.places.push_back({hosts_[static_cast<std::size_t>(r)], hello.port, hello.node});
      }
    }
    tell_all(verdict);
    if (!error.empty()) {
      if (kind_ != Kind::timeout) tell_the_late(verdict);
      fail_meeting(0, kind_, about_, error);
    }
    return {std::move(sockets_), std::move(verdict)};
  }

 private:
  std::vector<Rank> missing() const {
    std::vector<Rank> ranks;
    for (Rank r = 0; r < options_.size; ++r) {
      if (!hellos_[static_cast<std::size_t>(r)]) ranks.push_back(r);
    }
    return ranks;
  }

  std::string missing_text(Deadline begun) {
    kind_ = Kind::timeout;
    about_ = missing().front();
    std::string text = fmt::format("{} did not come within {:.1f} s",
                                   ranks_text(missing()),
                                   std::chrono::duration<double>(Clock::now() - begun).count());
    if (turned_away_ > 0) {
      text += fmt::format(" ({} with a wrong FERRY_TOKEN turned away, the last from {})",
                          turned_away_,
                          last_turned_away_);
    }
    return text;
  }

  /// An error for everybody, or nothing.
  std::string admit(Doorman::Guest guest) {
    std::optional<Hello> hello;
    try {
      const auto words = believed(guest, options_.secret, {});
      if (words) hello = Hello::read(*words);
    } catch (const Error& e) {
      answer(guest.socket, {.error = e.what()});
      return "";
    }
    if (!hello) {
      ++turned_away_;
      last_turned_away_ = guest.from;
      answer(guest.socket,
             {.error = "its FERRY_TOKEN is not that of rank 0; give all ranks the same"});
      return "";
    }
    const Rank rank = hello->rank;
    about_ = rank;
    std::string error;
    if (hello->size != options_.size || rank < 0 || rank >= options_.size) {
      error = fmt::format("rank {} was started as one of {} ranks, rank 0 as one of {}",
                          rank,
                          hello->size,
                          options_.size);
    } else if (hellos_[static_cast<std::size_t>(rank)]) {
      error = fmt::format(
          "two processes say that they are rank {}, the second at {}", rank, guest.from);
    }
    if (!error.empty()) {
      answer(guest.socket, {.error = error});
      if (rank >= 0 && rank < options_.size) hellos_[static_cast<std::size_t>(rank)] = hello;
      return error;
    }
    const auto at = static_cast<std::size_t>(rank);
    hosts_[at] = peer_host(guest.socket);
    hellos_[at] = std::move(hello);
    sockets_[at] = std::move(guest.socket);
    return "";
  }

  std::string difference() {
    std::vector<Agreement> agreements;
    for (const auto& hello : hellos_) agreements.push_back(hello->agreement);
    const Difference difference = find_difference(agreements);
    kind_ = Kind::io;
    about_ = difference.rank;
    return difference.text;
  }

  void answer(const UniqueFd& socket, const Verdict& verdict) const {
    try {
      send_message(socket, verdict.bytes(), Clock::now() + kVerdictMargin);
    } catch (const TransportError&) {
      // Who is gone needs no answer; the mesh will miss it.
    }
  }

  void tell_all(const Verdict& verdict) const {
    for (const UniqueFd& socket : sockets_) {
      if (socket.valid()) answer(socket, verdict);
    }
  }

  /// Those who come in the next second shall know why, too.
  void tell_the_late(const Verdict& verdict) {
    const Deadline until = Clock::now() + kVerdictMargin;
    while (!missing().empty()) {
      const auto guest = doorman_.next(until);
      if (!guest) return;
      try {
        const auto words = believed(*guest, options_.secret, {});
        if (!words) continue;
        const Rank rank = Hello::read(*words).rank;
        answer(guest->socket, verdict);
        if (rank >= 0 && rank < options_.size) hellos_[static_cast<std::size_t>(rank)] = Hello{};
      } catch (const Error&) {
        continue;  // a stranger
      }
    }
  }

  const MeetingOptions& options_;
  Doorman doorman_;
  std::vector<UniqueFd> sockets_;
  std::vector<std::optional<Hello>> hellos_;
  std::vector<std::string> hosts_;
  int turned_away_ = 0;
  std::string last_turned_away_;
  Kind kind_ = Kind::io;
  Rank about_ = -1;
};

// --- The others --------------------------------------------------------------------------------

Verdict ask_to_join(const MeetingOptions& options, const UniqueFd& master, int own_port) {
  const Hello hello{.rank = options.rank,
                    .size = options.size,
                    .port = own_port,
                    .node = options.node,
                    .agreement = options.agreement};
  Verdict verdict;
  try {
    say(master, options.secret, {}, hello.bytes(), options.deadline);
    const Deadline patient =
        options.deadline == kNoDeadline ? kNoDeadline : options.deadline + kVerdictMargin;
    verdict = Verdict::read(receive_message(master, patient));
  } catch (const TransportError& e) {
    fail_meeting(options.rank,
                 e.kind(),
                 0,
                 fmt::format("rank 0 at {}:{}: {}", options.host, options.port, e.what()));
  }
  if (!verdict.error.empty()) fail_meeting(options.rank, Kind::io, 0, verdict.error);
  if (verdict.places.size() != static_cast<std::size_t>(options.size)) {
    fail_meeting(options.rank, Kind::io, 0, "rank 0 sent a list of ranks that is damaged");
  }
  return verdict;
}

/// Connections to the ranks between rank 0 and this one, which come from this one, and from those
/// behind it.
void join_mesh(const MeetingOptions& options,
               const Verdict& verdict,
               Doorman& doorman,
               std::vector<UniqueFd>& sockets) {
  for (Rank r = 1; r < options.rank; ++r) {
    const Place& place = verdict.places[static_cast<std::size_t>(r)];
    UniqueFd socket = connect_to(resolve(place.host, place.port), options.deadline);
    say(socket,
        options.secret,
        verdict.session,
        ByteWriter().number(options.rank).bytes(),
        options.deadline);
    sockets[static_cast<std::size_t>(r)] = std::move(socket);
  }
  for (int awaited = options.size - 1 - options.rank; awaited > 0;) {
    auto guest = doorman.next(options.deadline);
    if (!guest) {
      Rank missing = options.rank + 1;
      while (sockets[static_cast<std::size_t>(missing)].valid()) ++missing;
      throw TransportError(
          Kind::timeout, missing, fmt::format("rank {} did not connect in time", missing));
    }
    try {
      const auto words = believed(*guest, options.secret, verdict.session);
      if (!words) continue;
      const Rank rank = ByteReader(*words).number<Rank>();
      if (rank <= options.rank || rank >= options.size) continue;
      UniqueFd& socket = sockets[static_cast<std::size_t>(rank)];
      awaited -= socket.valid() ? 0 : 1;
      socket = std::move(guest->socket);
    } catch (const Error&) {
      continue;  // a stranger
    }
  }
}

void check_secret(const MeetingOptions& options, const SocketAddress& address) {
  if (!options.secret.empty() || address.is_loopback()) return;
  fail<ConfigError>(
      "FERRY_TOKEN is not set, but rank 0 listens at {}, which others can reach; set it to the "
      "same secret text on all ranks",
      address.host());
}

}  // namespace

Meeting meet(MeetingOptions options) {
  const auto finish = [&](std::vector<UniqueFd> sockets,
                          const std::vector<Place>& places,
                          std::string own_host) {
    for (const UniqueFd& socket : sockets) {
      if (socket.valid()) tune_connection(socket);
    }
    std::vector<std::string> nodes;
    for (const Place& place : places) nodes.push_back(place.node);
    return Meeting{std::move(nodes), std::move(own_host), Mesh(options.rank, std::move(sockets))};
  };
  try {
    if (options.rank == 0) {
      UniqueFd listener = std::move(options.listener);
      if (!listener.valid()) {
        const SocketAddress address = resolve(options.host, options.port);
        check_secret(options, address);
        listener = listen_at(address);
      }
      std::string own_host = own_address(listener).host();
      auto [sockets, verdict] = Reception(options, std::move(listener)).receive_all();
      // It may listen on all addresses; this one is known to be reached.
      if (options.size > 1) own_host = own_address(sockets[1]).host();
      return finish(std::move(sockets), verdict.places, own_host);
    }
    const SocketAddress address = resolve(options.host, options.port);
    check_secret(options, address);
    std::vector<UniqueFd> sockets(static_cast<std::size_t>(options.size));
    sockets[0] = connect_to(address, options.deadline);
    const std::string own_host = own_address(sockets[0]).host();
    UniqueFd listener = listen_at(resolve(own_host, 0));
    const int own_port = own_address(listener).port();
    Doorman doorman(std::move(listener));
    const Verdict verdict = ask_to_join(options, sockets[0], own_port);
    join_mesh(options, verdict, doorman, sockets);
    return finish(std::move(sockets), verdict.places, own_host);
  } catch (const TransportError& e) {
    if (std::string_view(e.what()).starts_with("rank ")) throw;
    fail_meeting(options.rank, e.kind(), e.peer(), e.what());
  }
}

}  // namespace ferry
