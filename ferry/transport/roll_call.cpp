#include "ferry/transport/roll_call.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "ferry/core/error.h"
#include "ferry/transport/sockets.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

constexpr std::uint32_t kLanguage = 0x464a4e31;  // changes when what ranks say does
constexpr std::size_t kNonceBytes = 16;
constexpr const char* kVerdict = "verdict";
constexpr std::chrono::milliseconds kLookInterval{50};

/// What a rank leaves in the store.
struct Hello {
  Bytes nonce;
  int size = 0;
  std::string transport;
  Agreement agreement;
  Bytes card;

  Bytes bytes() const {
    ByteWriter w;
    w.number(kLanguage).blob(nonce).number(size).text(transport);
    w.number(static_cast<std::uint32_t>(agreement.size()));
    for (const auto& [name, value] : agreement) w.text(name).text(value);
    return w.blob(card).bytes();
  }

  static Hello read(std::span<const std::byte> bytes) {
    ByteReader r(bytes);
    if (r.number<std::uint32_t>() != kLanguage)
      throw Error("it has another version of this program");
    Hello h;
    h.nonce = r.copy();
    h.size = r.number<int>();
    h.transport = r.text();
    const auto pairs = r.number<std::uint32_t>();
    for (std::uint32_t i = 0; i < pairs; ++i) {
      std::string name = r.text();
      h.agreement.emplace_back(std::move(name), r.text());
    }
    h.card = r.copy();
    return h;
  }
};

/// What rank 0 answers to all.
struct Verdict {
  std::string error;  // empty: all are here
  Kind kind = Kind::io;
  Rank about = -1;
  std::vector<Bytes> nonces;
  std::vector<Bytes> cards;

  Bytes bytes() const {
    ByteWriter w;
    w.text(error).number(kind).number(about).number(static_cast<std::uint32_t>(cards.size()));
    for (std::size_t r = 0; r < cards.size(); ++r) w.blob(nonces[r]).blob(cards[r]);
    return w.bytes();
  }

  static Verdict read(std::span<const std::byte> bytes) {
    ByteReader r(bytes);
    Verdict v;
    v.error = r.text();
    v.kind = r.number<Kind>();
    v.about = r.number<Rank>();
    const auto ranks = r.number<std::uint32_t>();
    for (std::uint32_t i = 0; i < ranks; ++i) {
      v.nonces.push_back(r.copy());
      v.cards.push_back(r.copy());
    }
    return v;
  }

  void refuse(Kind why, Rank rank, std::string text) {
    if (!error.empty()) return;
    kind = why;
    about = rank;
    error = std::move(text);
  }
};

/// Why a rank could not join, for the others.
struct Failure {
  Kind kind = Kind::io;
  Rank about = -1;
  std::string why;  // behind "rank r cannot join: "

  static Failure of(const TransportError& error) {
    constexpr std::string_view kMiddle = " cannot join: ";
    const std::string_view text = error.what();
    const auto at = text.starts_with("rank ") ? text.find(kMiddle) : std::string_view::npos;
    const std::size_t skip = at == std::string_view::npos ? 0 : at + kMiddle.size();
    return {error.kind(), error.peer(), std::string(text.substr(skip))};
  }

  Bytes bytes() const { return ByteWriter().number(kind).number(about).text(why).bytes(); }

  static Failure read(std::span<const std::byte> bytes) {
    ByteReader reader(bytes);
    Failure failure;
    failure.kind = reader.number<Kind>();
    failure.about = reader.number<Rank>();
    failure.why = reader.text();
    return failure;
  }

  TransportError error(Rank own) const {
    return {kind, about, fmt::format("rank {} cannot join: {}", own, why)};
  }
};

std::string seconds_text(std::chrono::nanoseconds time) {
  return fmt::format("{:.1f} s", std::chrono::duration<double>(time).count());
}

}  // namespace

void fail_joining(Rank rank, Kind kind, Rank about, const std::string& why) {
  throw TransportError(kind, about, fmt::format("rank {} cannot join: {}", rank, why));
}

WaitResult meet_again(Transport& transport, Deadline deadline) {
  try {
    return transport.barrier(deadline);
  } catch (const TransportError&) {
    return WaitResult::reached;
  }
}

std::string RollCall::key(const char* what, Rank rank) const {
  return fmt::format("{}/{}", what, rank);
}

std::vector<Bytes> RollCall::gather(const Bytes& card) {
  nonce_.resize(kNonceBytes);
  fill_random(nonce_);
  if (options_.rank == 0) return judge(card);
  store_.set(key("rank", options_.rank),
             Hello{.nonce = nonce_,
                   .size = options_.size,
                   .transport = options_.transport,
                   .agreement = options_.agreement,
                   .card = card}
                 .bytes());
  return hear_verdict();
}

/// What a rank says under a key, or nothing once the deadline is over. Throws where the rank is
/// known to say nothing any more.
std::optional<Store::Value> RollCall::await(const std::string& said, Rank rank, Deadline deadline) {
  if (!options_.has_left) return store_.wait(said, deadline);
  for (;;) {
    const Deadline look = std::min<Deadline>(deadline, Clock::now() + kLookInterval);
    if (auto value = store_.wait(said, look)) return value;
    if (look == deadline) return std::nullopt;
    if (!options_.has_left(rank)) continue;
    if (auto value = store_.get(said)) return value;  // its last word
    throw TransportError(Kind::peer_died, rank, fmt::format("rank {} ended before it came", rank));
  }
}

std::vector<Bytes> RollCall::judge(const Bytes& card) {
  Verdict verdict;
  std::vector<Agreement> agreements{options_.agreement};
  verdict.nonces.push_back(nonce_);
  verdict.cards.push_back(card);
  std::vector<Rank> missing;
  for (Rank r = 1; r < options_.size; ++r) {
    std::optional<Store::Value> said;
    try {
      said = await(key("rank", r), r, deadline_);
    } catch (const TransportError& e) {
      if (e.kind() != Kind::peer_died) throw;
      verdict.refuse(e.kind(), r, e.what());
      break;  // nobody needs to be waited for
    }
    if (!said) {
      missing.push_back(r);
      continue;
    }
    try {
      Hello hello = Hello::read(*said);
      if (hello.size != options_.size) {
        verdict.refuse(Kind::io,
                       r,
                       fmt::format("rank {} was started as one of {} ranks, rank 0 as one of {}",
                                   r,
                                   hello.size,
                                   options_.size));
      }
      if (hello.transport != options_.transport) {
        verdict.refuse(Kind::io,
                       r,
                       fmt::format("ranks differ in the transport: rank {} {}, rank 0 {}",
                                   r,
                                   hello.transport,
                                   options_.transport));
      }
      agreements.push_back(std::move(hello.agreement));
      verdict.nonces.push_back(std::move(hello.nonce));
      verdict.cards.push_back(std::move(hello.card));
    } catch (const Error& e) {
      verdict.refuse(
          Kind::io, r, fmt::format("what rank {} says in the store is damaged: {}", r, e.what()));
    }
  }
  if (!missing.empty()) {
    verdict.refuse(
        Kind::timeout,
        missing.front(),
        fmt::format(
            "{} did not come within {}", ranks_text(missing), seconds_text(options_.join_timeout)));
  }
  if (verdict.error.empty()) {
    const Difference difference = find_difference(agreements);
    if (!difference.text.empty()) verdict.refuse(Kind::io, difference.rank, difference.text);
  }
  if (options_.size > 1) store_.set(kVerdict, verdict.bytes());
  if (!verdict.error.empty()) fail_joining(0, verdict.kind, verdict.about, verdict.error);
  return std::move(verdict.cards);
}

std::vector<Bytes> RollCall::hear_verdict() {
  const Deadline patient = deadline_ == kNoDeadline ? kNoDeadline : deadline_ + kVerdictMargin;
  const auto said = await(kVerdict, 0, patient);
  if (!said) {
    fail_joining(options_.rank,
                 Kind::timeout,
                 0,
                 fmt::format("rank 0 did not come within {}", seconds_text(options_.join_timeout)));
  }
  Verdict verdict;
  try {
    verdict = Verdict::read(*said);
  } catch (const Error& e) {
    fail_joining(options_.rank,
                 Kind::io,
                 0,
                 fmt::format("what rank 0 says in the store is damaged: {}", e.what()));
  }
  if (!verdict.error.empty())
    fail_joining(options_.rank, verdict.kind, verdict.about, verdict.error);
  const auto own = static_cast<std::size_t>(options_.rank);
  if (verdict.cards.size() != static_cast<std::size_t>(options_.size) ||
      verdict.nonces[own] != nonce_) {
    fail_joining(
        options_.rank,
        Kind::io,
        options_.rank,
        fmt::format("group {} of epoch {} has a rank {} already, or was made before; every "
                    "rank joins once, and the next group needs another name or epoch",
                    options_.group,
                    options_.epoch,
                    options_.rank));
  }
  return std::move(verdict.cards);
}

void RollCall::report() {
  if (options_.size > 1) store_.set_text(key("joined", options_.rank), "");
}

void RollCall::give_up(const TransportError& error) noexcept {
  if (options_.size == 1) return;
  try {
    store_.set(key("failed", options_.rank), Failure::of(error).bytes());
    const Deadline until = Clock::now() + kVerdictMargin;
    for (Rank r = 1; r < options_.size && options_.rank == 0; ++r)
      static_cast<void>(store_.wait(key("failed", r), until));
  } catch (const std::exception&) {
    // Without the store nobody can be told.
  }
}

TransportError RollCall::cause(const TransportError& error) noexcept {
  const bool by_another = error.kind() == Kind::aborted || error.kind() == Kind::io;
  if (!by_another || error.peer() < 0 || error.peer() == options_.rank) return error;
  try {
    const auto said = store_.wait(key("failed", error.peer()), Clock::now() + kVerdictMargin);
    if (said) return Failure::read(*said).error(options_.rank);
  } catch (const std::exception&) {
    // Then what is known must do.
  }
  return error;
}

void RollCall::fail_about_missing() {
  for (Rank r = 0; r < options_.size; ++r) {
    if (const auto failed = store_.get(key("failed", r)))
      throw Failure::read(*failed).error(options_.rank);
    if (store_.get(key("joined", r))) continue;
    fail_joining(
        options_.rank,
        Kind::timeout,
        r,
        fmt::format("rank {} did not come within {}", r, seconds_text(options_.join_timeout)));
  }
  fail_joining(options_.rank, Kind::timeout, -1, "the other ranks came too late");
}

void RollCall::forget() {
  if (options_.size == 1) return;
  store_.remove(kVerdict);
  for (Rank r = 0; r < options_.size; ++r) {
    store_.remove(key("rank", r));
    store_.remove(key("joined", r));
  }
}

}  // namespace ferry
