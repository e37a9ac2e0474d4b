#include "support/faulty_transport.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

class FaultyTransport::FaultyRegion final : public Region {
 public:
  FaultyRegion(FaultyTransport& owner, std::unique_ptr<Region> inner)
      : Region(inner->local(), inner->num_signals()), owner_(owner), inner_(std::move(inner)) {
    owner_.regions_.push_back(this);
  }

  ~FaultyRegion() override {
    try {
      owner_.deliver_all();
    } catch (const std::exception&) {
      owner_.held_.clear();  // the group has been aborted: nobody waits for them
    }
    std::erase(owner_.regions_, this);
  }

  Region& inner() const { return *inner_; }

  static FaultyRegion& of(Region& region) { return static_cast<FaultyRegion&>(region); }

 private:
  FaultyTransport& owner_;
  std::unique_ptr<Region> inner_;
};

FaultyTransport::FaultyTransport(Transport& inner, const Faults& faults)
    : inner_(inner),
      faults_(faults),
      random_(faults.seed * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(inner.rank())) {}

FaultyTransport::FaultyTransport(std::unique_ptr<Transport> inner, const Faults& faults)
    : owned_(std::move(inner)),
      inner_(*owned_),
      faults_(faults),
      random_(faults.seed * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(inner_.rank())) {}

FaultyTransport::~FaultyTransport() = default;  // regions are gone by now, and with them all puts

Capabilities FaultyTransport::capabilities() const {
  Capabilities capabilities = inner_.capabilities();
  if (faults_.network) capabilities.load_store = false;
  capabilities.pins_memory |= faults_.pins_memory;
  return capabilities;
}

std::unique_ptr<Region> FaultyTransport::allocate_region(std::size_t bytes, int num_signals) {
  deliver_all();
  return std::make_unique<FaultyRegion>(*this, inner_.allocate_region(bytes, num_signals));
}

std::unique_ptr<Region> FaultyTransport::register_region(std::span<std::byte> memory,
                                                         int num_signals) {
  deliver_all();
  return std::make_unique<FaultyRegion>(*this, inner_.register_region(memory, num_signals));
}

std::unique_ptr<Transport> FaultyTransport::split(int color, int key) {
  deliver_all();
  auto inner = inner_.split(color, key);
  return inner ? std::make_unique<FaultyTransport>(std::move(inner), faults_) : nullptr;
}

void FaultyTransport::check_source(const Put& put) const {
  const auto inside = [&](const FaultyRegion* region) {
    const std::span<std::byte> local = region->local();
    return put.source.data() >= local.data() &&
           put.source.data() + put.source.size() <= local.data() + local.size();
  };
  FERRY_CHECK(std::any_of(regions_.begin(), regions_.end(), inside),
              "the source of a put of {} bytes lies in no region of its rank",
              put.source.size());
}

void FaultyTransport::put(const Put& put) {
  FERRY_CHECK(put.region != nullptr, "put without a region");
  if (puts_++ == faults_.ends_at_put) {
    if (faults_.ends_by_signal) kill(getpid(), SIGKILL);
    held_.clear();
    throw RankEnded(fmt::format("rank {} ends at its put {}", rank(), faults_.ends_at_put));
  }
  const bool network = faults_.network ||
                       inner_.peer_window(FaultyRegion::of(*put.region).inner(), put.peer).empty();
  const bool watch = network && put.source.size() > kInlineBytes;
  if (watch) check_source(put);
  if (chance() < faults_.drop) return;
  Deadline due = Clock::now() + std::chrono::microseconds(static_cast<std::int64_t>(
                                    chance() * static_cast<double>(faults_.max_delay.count())));
  if (!faults_.reorder) last_due_ = due = std::max(due, last_due_);
  Held held{.put = put,
            .bytes = {put.source.begin(), put.source.end()},
            .watched = watch ? put.source : std::span<const std::byte>(),
            .due = due};
  held.put.source = {};
  if (faults_.corrupt > 0 && chance() < faults_.corrupt) change_a_word(held);
  held_.push_back(std::move(held));
}

/// To something near, to one of the ends, or to anything.
void FaultyTransport::change_a_word(Held& held) {
  const std::size_t words = held.bytes.size() / sizeof(std::uint32_t);
  if (words == 0) return;
  std::byte* at = held.bytes.data() + random_() % words * sizeof(std::uint32_t);
  std::uint32_t word = 0;
  std::memcpy(&word, at, sizeof word);
  const auto any = static_cast<std::uint32_t>(random_());
  const std::uint32_t others[] = {word + 1, word - 1, word + 8, 0, 1, ~0U, any % 32, any};
  word = others[random_() % std::size(others)];
  std::memcpy(at, &word, sizeof word);
  held.watched = {};  // delivered from here: mapped memory takes any source
}

void FaultyTransport::deliver_due(Deadline now) {
  const auto split = std::stable_partition(
      held_.begin(), held_.end(), [&](const Held& held) { return held.due > now; });
  std::vector<Held> due(std::make_move_iterator(split), std::make_move_iterator(held_.end()));
  held_.erase(split, held_.end());
  if (faults_.reorder) std::shuffle(due.begin(), due.end(), random_);
  for (auto next = due.begin(); next != due.end(); ++next) {
    Held& held = *next;
    FERRY_CHECK(held.watched.empty() ||
                    std::memcmp(held.watched.data(), held.bytes.data(), held.watched.size()) == 0,
                "the source of a put of {} bytes to rank {} (signal {}) changed before it arrived",
                held.bytes.size(),
                held.put.peer,
                held.put.signal);
    Put put = held.put;
    put.region = &FaultyRegion::of(*put.region).inner();
    // A network takes long sources only from where they were.
    put.source = held.watched.empty() ? std::span<const std::byte>(held.bytes) : held.watched;
    try {
      inner_.put(put);
    } catch (const TransportError&) {
      // About a rank that is gone: who masks it loses nothing that goes to others.
      std::move(next, due.end(), std::back_inserter(held_));
      throw;
    }
  }
}

Deadline FaultyTransport::next_due() const {
  Deadline next = kNoDeadline;
  for (const Held& held : held_) next = std::min(next, held.due);
  return next;
}

WaitResult FaultyTransport::wait(Region& region,
                                 int signal,
                                 std::uint64_t count,
                                 Deadline deadline) {
  Region& inner = FaultyRegion::of(region).inner();
  for (;;) {
    deliver_due(Clock::now());
    const Deadline until = std::min(deadline, next_due());
    if (inner_.wait(inner, signal, count, until) == WaitResult::reached) return WaitResult::reached;
    if (until == deadline) return WaitResult::timed_out;
  }
}

std::uint64_t FaultyTransport::signal_value(Region& region, int signal) {
  return inner_.signal_value(FaultyRegion::of(region).inner(), signal);
}

bool FaultyTransport::progress() {
  deliver_due(Clock::now());
  return inner_.progress();
}

WaitResult FaultyTransport::barrier(Deadline deadline) {
  deliver_all();  // a peer may need them before it comes to the barrier
  return inner_.barrier(deadline);
}

void FaultyTransport::mask(Rank peer) {
  std::erase_if(held_, [&](const Held& held) { return held.put.peer == peer; });
  inner_.mask(peer);
}

std::span<std::byte> FaultyTransport::peer_window(Region& region, Rank peer) {
  if (faults_.network && peer != rank()) return {};
  return inner_.peer_window(FaultyRegion::of(region).inner(), peer);
}

}  // namespace ferry
