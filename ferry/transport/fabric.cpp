// Ranks that reach each other through libfabric: put = fi_writedata, counted by its 32 bits of
// immediate data, which arrive in the target's completion queue once the bytes are in memory. The
// same code drives tcp, shm, verbs (InfiniBand, RoCE) and efa; what a provider wants differently it
// says in its fi_info (fabric_rail.cpp). Where a rank has several interfaces its long puts take
// turns on them: counting, not order, says when all are there. Control messages go through the
// connections of the bootstrap.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/bootstrap.h"
#include "ferry/transport/fabric_calls.h"
#include "ferry/transport/fabric_rail.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/network.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/shared_store.h"
#include "ferry/transport/sockets.h"

namespace ferry {

namespace {

/// Writes to one peer that the provider holds at a time. The rest waits here, so that a receiver
/// that stands still fills no queue that others need.
constexpr int kMaxInFlight = 128;
constexpr std::size_t kBounceSlots = 1024;
constexpr int kMaxRails = 64;

/// The best provider that all ranks can use; shm only where all are on one host.
std::string choose_provider(Meeting& meeting, const std::string& asked, Deadline deadline) {
  std::string own;
  for (const std::string& name : usable_fabric_providers()) own += name + " ";
  const auto lists = meeting.mesh.all_gather(std::as_bytes(std::span(own)), deadline);
  if (!asked.empty()) return asked;
  const bool one_host = std::all_of(meeting.nodes.begin(), meeting.nodes.end(), [&](const auto& n) {
    return n == meeting.nodes.front();
  });
  for (const std::string& name : usable_fabric_providers()) {
    const bool everywhere = std::all_of(lists.begin(), lists.end(), [&](const Bytes& list) {
      const std::string_view text(reinterpret_cast<const char*>(list.data()), list.size());
      return text.find(name + " ") != std::string_view::npos;
    });
    if (everywhere && (name != "shm" || one_host)) return name;
  }
  throw TransportError(TransportError::Kind::io,
                       -1,
                       "fabric: the ranks have no libfabric provider in common; see fi_info on "
                       "each host");
}

/// As many rails as every rank can have.
int choose_rails(Meeting& meeting, const std::string& provider, int asked, Deadline deadline) {
  const int own = asked > 0 ? asked : num_fabric_interfaces(provider);
  int fewest = std::min(own, kMaxRails);
  for (const Bytes& other : meeting.mesh.all_gather(ByteWriter().number(fewest).bytes(), deadline))
    fewest = std::min(fewest, ByteReader(other).number<int>());
  return std::max(fewest, 1);
}

// --- The transport -------------------------------------------------------------------------------

class FabricTransport final : public NetworkTransport {
 public:
  FabricTransport(Meeting meeting, const JoinOptions& options, Deadline deadline);

  ~FabricTransport() override {
    progress_thread_ = {};
    leave();
    for (Rank r = 0; r < size(); ++r) {
      if (!has_died(r)) continue;
      for (const std::string& address : peer_addresses_[index(r)]) remove_left_behind(address);
    }
  }

  Capabilities capabilities() const override {
    return {.load_store = is_one_host(),
            .survives_peer_death = true,
            .pins_memory = rails_.front()->pins_memory(),
            .max_put_bytes = rails_.front()->max_put_bytes()};
  }

 protected:
  std::unique_ptr<Registration> register_memory(std::span<std::byte> memory) override;
  bool start_write(const Write& write) override;
  void poll_writes() override;

  bool writes_done(Rank peer) override { return in_flight_[index(peer)] == 0; }

  void send_control(Rank peer, std::span<const std::byte> message) override {
    mesh_.send(peer, message);
  }

  void poll_control() override;

  bool control_done() override { return !mesh_.has_unsent(); }

  std::string reached_at() const override { return own_host_; }

  void say_farewell(Rank peer) override;

  bool all_from(Rank peer) override {
    return farewells_[index(peer)] == static_cast<int>(rails_.size());
  }

 private:
  /// What a completion gives back: who it was about.
  struct Operation {
    Rank peer = 0;
    int slot = -1;  // of the bounce buffer
  };

  class Memory;

  static std::size_t index(Rank rank) { return static_cast<std::size_t>(rank); }

  void learn_addresses(Deadline deadline);
  bool start_on(std::size_t rail, const Write& write);
  void heed(const FabricRail::Event& event);
  void keep_moving(const std::stop_token& stop);

  const std::string own_host_;  // its address as others reach it
  Mesh mesh_;
  std::vector<std::unique_ptr<FabricRail>> rails_;
  std::size_t next_rail_ = 0;                             // of a long write
  std::vector<std::vector<std::string>> peer_addresses_;  // [ranks][rails], as providers spell them
  // Where a peer's last word may go when it has no region any more.
  Buffer landing_;
  std::unique_ptr<Registration> landing_memory_;
  std::vector<Bytes> landing_access_;  // of each rank
  std::uint64_t next_key_ = 1;

  std::vector<Operation> long_operations_;  // one for each peer
  std::vector<int> in_flight_;              // writes to each peer that will complete
  std::vector<int> farewells_;              // rails on which each has said its last word
  // For providers that cannot copy short sources themselves.
  Buffer bounce_;
  std::unique_ptr<Registration> bounce_memory_;
  std::vector<Operation> bounce_operations_;
  std::vector<int> free_slots_;
  std::jthread progress_thread_;
};

/// Known to every rail.
class FabricTransport::Memory final : public Registration {
 public:
  Memory(FabricTransport& owner, std::span<std::byte> memory) {
    for (const auto& rail : owner.rails_)
      rails_.push_back(std::make_unique<FabricRail::Memory>(*rail, memory, owner.next_key_++));
  }

  /// A FabricRail::Memory::Remote for each rail.
  Bytes access() const override {
    ByteWriter writer;
    for (const auto& rail : rails_) writer.number(rail->remote());
    return writer.bytes();
  }

  void* descriptor(std::size_t rail) const { return rails_[rail]->descriptor(); }

 private:
  std::vector<std::unique_ptr<FabricRail::Memory>> rails_;
};

std::unique_ptr<Registration> FabricTransport::register_memory(std::span<std::byte> memory) {
  return std::make_unique<Memory>(*this, memory);
}

FabricTransport::FabricTransport(Meeting meeting, const JoinOptions& options, Deadline deadline)
    : NetworkTransport({.name = "fabric",
                        .hosts = hosts_of(meeting.nodes, options.ranks_per_host),
                        .join = options}),
      own_host_(meeting.own_host),
      mesh_(Rank{0}, {}),
      in_flight_(index(size()), 0),
      farewells_(index(size()), 0) {
  const std::string provider = choose_provider(meeting, options.fabric_provider, deadline);
  const int rails = choose_rails(meeting, provider, options.fabric_rails, deadline);
  mesh_ = std::move(meeting.mesh);
  for (int rail = 0; rail < rails; ++rail) {
    rails_.push_back(std::make_unique<FabricRail>(FabricRail::Options{
        .provider = provider, .host = meeting.own_host, .interface = rail, .ranks = size()}));
  }
  learn_addresses(deadline);
  for (Rank r = 0; r < size(); ++r) long_operations_.push_back({.peer = r});
  if (rails_.front()->inject_bytes() < kInlineBytes) {
    bounce_ = Buffer(kBounceSlots * kInlineBytes);
    bounce_memory_ = register_memory({bounce_.data(), bounce_.size()});
    for (std::size_t slot = 0; slot < kBounceSlots; ++slot) {
      free_slots_.push_back(static_cast<int>(slot));
      bounce_operations_.push_back({.peer = 0, .slot = static_cast<int>(slot)});
    }
  }
  if (options.fabric_progress_thread)
    progress_thread_ = std::jthread([this](const std::stop_token& stop) { keep_moving(stop); });
}

void FabricTransport::learn_addresses(Deadline deadline) {
  landing_ = Buffer(kInlineBytes);
  landing_memory_ = register_memory({landing_.data(), landing_.size()});
  ByteWriter own;
  own.blob(landing_memory_->access());
  for (const auto& rail : rails_) own.blob(rail->address());
  for (const Bytes& card : mesh_.all_gather(own.bytes(), deadline)) {
    const auto peer = static_cast<Rank>(peer_addresses_.size());
    ByteReader reader(card);
    const auto access = reader.blob();
    landing_access_.emplace_back(access.begin(), access.end());
    std::vector<std::string>& addresses = peer_addresses_.emplace_back();
    for (const auto& rail : rails_) {
      const auto address = reader.blob();
      rail->learn_address(peer, address);
      addresses.emplace_back(reinterpret_cast<const char*>(address.data()), address.size());
    }
  }
}

/// False: no room.
bool FabricTransport::start_on(std::size_t rail, const Write& write) {
  FabricRail::Write start{.peer = write.peer,
                          .offset = write.offset,
                          .source = write.source,
                          .immediate = write.immediate};
  std::memcpy(
      &start.target, write.peer_access.data() + rail * sizeof start.target, sizeof start.target);
  Operation* operation = nullptr;
  // What the provider copies at once needs no completion.
  const bool copied = write.source.size() <= rails_[rail]->inject_bytes();
  if (!copied && write.memory != nullptr) {
    operation = &long_operations_[index(write.peer)];
    start.descriptor = static_cast<const Memory*>(write.memory)->descriptor(rail);
  } else if (!copied) {
    if (free_slots_.empty()) return false;
    operation = &bounce_operations_[static_cast<std::size_t>(free_slots_.back())];
    operation->peer = write.peer;
    std::byte* copy = bounce_.data() + static_cast<std::size_t>(operation->slot) * kInlineBytes;
    std::memcpy(copy, write.source.data(), write.source.size());
    start.source = {copy, write.source.size()};
    start.descriptor = static_cast<const Memory&>(*bounce_memory_).descriptor(rail);
  }
  start.context = operation;
  const long status = rails_[rail]->start(start);
  if (FabricRail::is_full(status)) return false;
  if (status != 0) {
    write_failed(write.peer, FabricRail::error_text(status));
  } else if (operation != nullptr) {
    ++in_flight_[index(write.peer)];
    if (operation->slot >= 0) free_slots_.pop_back();
  }
  return true;
}

bool FabricTransport::start_write(const Write& write) {
  if (in_flight_[index(write.peer)] >= kMaxInFlight) return false;
  if (write.memory == nullptr) return start_on(0, write);
  if (!start_on(next_rail_, write)) return false;
  next_rail_ = (next_rail_ + 1) % rails_.size();
  return true;
}

void FabricTransport::heed(const FabricRail::Event& event) {
  if (event.kind == FabricRail::Event::Kind::arrived) {
    if (event.immediate & 0xff) {
      arrived(event.immediate);
    } else {
      ++farewells_[event.immediate >> 8];
    }
    return;
  }
  moved();
  const Operation& operation = *static_cast<const Operation*>(event.context);
  --in_flight_[index(operation.peer)];
  if (operation.slot >= 0) free_slots_.push_back(operation.slot);
  if (event.kind == FabricRail::Event::Kind::failed) write_failed(operation.peer, event.why);
}

void FabricTransport::poll_writes() {
  for (const auto& rail : rails_)
    rail->poll([this](const FabricRail::Event& event) { heed(event); });
}

/// Reliable networks complete a write when it is in the peer's memory; the software providers, when
/// their socket has taken it. Those keep the order on each rail, so that a last write follows all.
void FabricTransport::say_farewell(Rank peer) {
  const Write last{.peer = peer,
                   .peer_access = landing_access_[index(peer)],
                   .immediate = static_cast<std::uint32_t>(rank()) << 8};
  for (std::size_t rail = 0; rail < rails_.size(); ++rail)
    while (!start_on(rail, last)) poll_writes();
}

void FabricTransport::poll_control() {
  mesh_.poll(std::chrono::nanoseconds(0));
  for (Rank r = 0; r < size(); ++r) {
    while (const auto message = mesh_.take(r)) heard(r, *message);
    if (mesh_.ended(r)) {
      ended(r, "died, or its host cannot be reached; its launcher or kernel log says of what");
    }
  }
}

void FabricTransport::keep_moving(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    try {
      const std::lock_guard guard(lock_);
      poll_writes();
    } catch (const std::exception&) {
      return;  // the rank's own next call meets the same error
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

// --- Joining and starting ranks ------------------------------------------------------------------

Agreement agreement_of(const JoinOptions& options) {
  Agreement agreement = options.agreement;
  agreement.emplace_back("--fabric-provider",
                         options.fabric_provider.empty() ? "best" : options.fabric_provider);
  return agreement;
}

/// What a rank tells the others, and rank 0 behind it where they find it.
struct Card {
  std::string node;
  std::vector<std::string> places;  // rank 0: addresses at which it may be reached
  int port = 0;
  std::string secret;

  Bytes bytes() const {
    ByteWriter w;
    w.text(node).number(port).text(secret).number(static_cast<std::uint32_t>(places.size()));
    for (const std::string& place : places) w.text(place);
    return w.bytes();
  }

  static Card read(std::span<const std::byte> bytes) {
    ByteReader r(bytes);
    Card card;
    card.node = r.text();
    card.port = r.number<int>();
    card.secret = r.text();
    const auto places = r.number<std::uint32_t>();
    for (std::uint32_t i = 0; i < places; ++i) card.places.push_back(r.text());
    return card;
  }
};

/// The ranks meet at a door that rank 0 opens for this group alone.
class FabricJoiner final : public Joiner {
 public:
  explicit FabricJoiner(const JoinOptions& options) : options_(options) {
    if (options.size > kMaxNetworkRanks) {
      fail<ConfigError>(
          "fabric: {} ranks asked for; it has at most {}", options.size, kMaxNetworkRanks);
    }
  }

  Bytes card() override {
    Card card{.node = options_.node + " " + this_host()};
    if (options_.rank == 0 && options_.size > 1) {
      door_ = listen_at(resolve(options_.host.empty() ? "0.0.0.0" : options_.host, 0));
      card.port = own_address(door_).port();
      card.places = options_.host.empty() ? host_addresses() : std::vector{options_.host};
      card.secret.resize(32);
      fill_random(std::as_writable_bytes(std::span(card.secret)));
    }
    return card.bytes();
  }

  std::unique_ptr<Transport> join(std::span<const Bytes> cards, Deadline deadline) override {
    const Card own = Card::read(cards[static_cast<std::size_t>(options_.rank)]);
    const Card first = Card::read(cards.front());
    const bool one_host = std::all_of(cards.begin(), cards.end(), [&](const Bytes& card) {
      return Card::read(card).node == first.node;
    });
    MeetingOptions meeting{.rank = options_.rank,
                           .size = options_.size,
                           .host = "127.0.0.1",
                           .port = first.port,
                           .listener = std::move(door_),
                           .secret = first.secret,
                           .node = own.node,
                           .agreement = agreement_of(options_),
                           .deadline = deadline};
    if (options_.size == 1) meeting.listener = listen_at(resolve(meeting.host, 0));
    // Where all are on one host its loopback is enough; else all must use the same addresses.
    if (options_.rank != 0 && !(one_host && options_.host.empty()))
      meeting.host = reachable(first, deadline);
    return std::make_unique<FabricTransport>(meet(std::move(meeting)), options_, deadline);
  }

 private:
  static std::string reachable(const Card& first, Deadline deadline) {
    if (first.places.size() == 1) return first.places.front();
    std::string why = "rank 0 knows no address of its host";
    while (!first.places.empty()) {
      for (const std::string& place : first.places) {
        try {
          const Deadline soon = deadline_in(std::chrono::seconds(1));
          connect_to(resolve(place, first.port), std::min(deadline, soon));
          return place;
        } catch (const TransportError& e) {
          why = e.what();
        }
      }
      if (std::chrono::steady_clock::now() >= deadline) break;
    }
    throw TransportError(TransportError::Kind::timeout,
                         0,
                         fmt::format("fabric: no address of rank 0's host can be reached ({}); "
                                     "give rank 0 one that can (JoinOptions::host)",
                                     why));
  }

  const JoinOptions options_;
  UniqueFd door_;  // rank 0
};

/// The ranks that somebody else started meet at the address that they were all told.
int run_in_world(const LaunchOptions& options, const RankBody& body) {
  const World& world = *options.world;
  if (world.master_host.empty() || world.master_port == 0) {
    fail<ConfigError>(
        "MASTER_ADDR and MASTER_PORT are not set; the ranks need them to find each other");
  }
  const auto run = [&](Rank local) {
    const JoinOptions join = join_options(options, world.rank + local);
    const Deadline deadline = deadline_in(options.join_timeout);
    FabricTransport transport(meet({.rank = join.rank,
                                    .size = join.size,
                                    .host = world.master_host,
                                    .port = world.master_port,
                                    .secret = world.secret,
                                    .node = world.node + " " + this_host(),
                                    .agreement = agreement_of(join),
                                    .deadline = deadline}),
                              join,
                              deadline);
    return run_joined(transport, body);
  };
  return world.own == 1 ? run(0) : run_processes({.ranks = world.own, .child = run});
}

int run_fabric(const LaunchOptions& options, const RankBody& body) {
  if (options.world) return run_in_world(options, body);
  static_cast<void>(usable_fabric_providers());  // looked up once for all ranks
  SharedStore store;
  return run_processes({.ranks = options.ranks,
                        .child =
                            [&](Rank rank) {
                              JoinOptions own = join_options(options, rank);
                              own.host = "127.0.0.1";
                              const auto transport = join(own, store);
                              return run_joined(*transport, body);
                            },
                        .ended = [&](Rank rank) { store.ended(rank); }});
}

}  // namespace

TransportEntry fabric_transport() {
  return {.name = "fabric",
          .about = "ranks on one host or many, over libfabric",
          // Every libfabric has tcp, and asking it takes another 0.1 s.
          .why_not = why_not_libfabric,
          .joiner = [](const JoinOptions& options) -> std::unique_ptr<Joiner> {
            return std::make_unique<FabricJoiner>(options);
          },
          .run = run_fabric,
          .joins_world = true};
}

}  // namespace ferry
