// Ranks that mpirun (or srun) started, over any MPI 3: two-sided and non-blocking. A message is a
// header with the bytes of a put behind it, or of a part of one: long puts travel in parts, of
// which the last raises the signal. Everything a rank hears comes through one ring of receives, so
// what a sender said stays in order.
//
// Why parts are copied into messages: a longer message waits for its receiver's consent, which over
// TCP stands behind all that the receiver sends itself. Two ranks that put 16 MB to each other then
// took turns, at half the bandwidth.
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/launch.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/mpi_calls.h"
#include "ferry/transport/mpi_group.h"
#include "ferry/transport/network.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

constexpr int kHeaderTag = 0;
/// Of a message behind its header. With it, what Open MPI sends over TCP without asking (64 KiB).
constexpr std::size_t kPartBytes = 60 << 10;
constexpr std::size_t kRingSlots = 64;
constexpr std::size_t kSendSlots = 128;
constexpr std::size_t kMaxInFlight = 64;  // messages to one peer

enum class Kind : std::uint32_t { control, put, part };

struct Header {
  Kind kind = Kind::control;
  std::uint32_t immediate = 0;
  std::uint64_t offset = 0;
  std::int32_t region = 0;
};

constexpr std::size_t kSlotBytes = sizeof(Header) + kPartBytes;
using Slot = std::array<std::byte, kSlotBytes>;

class MpiTransport final : public NetworkTransport {
 public:
  MpiTransport(std::shared_ptr<MpiGroup> group,
               std::vector<std::string> hosts,
               const JoinOptions& options)
      : NetworkTransport({.name = "mpi", .hosts = std::move(hosts), .join = options}),
        owner_(std::move(group)),
        group_(MPI_Comm_f2c(owner_->handle())),
        traffic_(owner_->traffic()),
        ring_(kRingSlots),
        ring_requests_(kRingSlots, MPI_REQUEST_NULL),
        send_slots_(kSendSlots),
        peers_(static_cast<std::size_t>(options.size)) {
    for (std::size_t i = 0; i < kSendSlots; ++i) free_slots_.push_back(i);
    for (std::size_t i = 0; i < kRingSlots; ++i) listen(i);
  }

  ~MpiTransport() override;

  /// mpirun ends the job when a rank dies.
  Capabilities capabilities() const override {
    return {.load_store = is_one_host(),
            .survives_peer_death = false,
            .one_thread = true,
            .max_put_bytes = INT_MAX};
  }

 protected:
  std::unique_ptr<Registration> register_memory(std::span<std::byte>) override {
    return std::make_unique<Registration>();  // MPI writes anywhere
  }

  bool start_write(const Write& write) override;
  void poll_writes() override;

  bool writes_done(Rank peer) override { return of(peer).all_sent(); }

  /// What MPI has not handed to the network yet it does when it is asked again.
  bool needs_polling() override { return !control_done(); }

  void send_control(Rank peer, std::span<const std::byte> message) override;

  void poll_control() override {}  // it comes with everything else

  bool control_done() override {
    return std::all_of(peers_.begin(), peers_.end(), [](const Peer& p) { return p.all_sent(); });
  }

  /// What follows a leave on the same ring is its last word.
  void say_farewell(Rank) override {}

  bool all_from(Rank peer) override { return of(peer).early == 0; }

 private:
  struct Send {
    std::size_t slot = 0;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  struct Peer {
    std::deque<Send> sends;      // oldest first
    std::optional<Write> begun;  // what is left of a long put
    std::deque<Bytes> control;   // found no room
    int early = 0;               // messages from there in early_

    bool all_sent() const { return sends.empty() && !begun && control.empty(); }
  };

  /// A put to a region that this rank has not made yet.
  struct Early {
    Rank from = 0;
    Bytes message;
  };

  Peer& of(Rank rank) { return peers_[static_cast<std::size_t>(rank)]; }

  void listen(std::size_t slot);
  bool send(Rank peer, const Header& header, std::span<const std::byte> bytes);
  bool send_parts(Rank to, Write& write);
  void reap(Peer& peer);
  void take(Rank from, std::span<const std::byte> message);
  void take_put(Rank from, const Header& header, std::span<const std::byte> bytes);

  const std::shared_ptr<MpiGroup> owner_;  // shared with whoever waits for the group's end
  MPI_Comm group_;
  MpiGroup::Traffic& traffic_;
  std::vector<Slot> ring_;
  std::vector<MPI_Request> ring_requests_;
  std::size_t ring_next_ = 0;  // receives complete in the order they were started
  std::vector<Slot> send_slots_;
  std::vector<std::size_t> free_slots_;
  std::vector<Peer> peers_;
  std::vector<Early> early_;
};

MpiTransport::~MpiTransport() {
  leave();
  for (MPI_Request& request : ring_requests_) {
    MPI_Status status;
    int cancelled = 0;
    MPI_Cancel(&request);
    MPI_Wait(&request, &status);
    MPI_Test_cancelled(&status, &cancelled);
    if (!cancelled) ++traffic_.received[static_cast<std::size_t>(status.MPI_SOURCE)];
  }
  const bool all_sent = std::all_of(
      peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.sends.empty(); });
  if (all_sent) return;
  // After an abort. MPI may still read the slots: they are never given back.
  owner_->keep();
  static std::vector<std::vector<Slot>> lost;
  lost.push_back(std::move(send_slots_));
}

void MpiTransport::listen(std::size_t slot) {
  check_mpi(MPI_Irecv(ring_[slot].data(),
                      static_cast<int>(kSlotBytes),
                      MPI_BYTE,
                      MPI_ANY_SOURCE,
                      kHeaderTag,
                      group_,
                      &ring_requests_[slot]),
            "MPI_Irecv");
}

/// False: no room.
bool MpiTransport::send(Rank to, const Header& header, std::span<const std::byte> bytes) {
  Peer& peer = of(to);
  if (free_slots_.empty() || peer.sends.size() >= kMaxInFlight) return false;
  Send send{.slot = free_slots_.back()};
  free_slots_.pop_back();
  Slot& slot = send_slots_[send.slot];
  std::memcpy(slot.data(), &header, sizeof header);
  if (!bytes.empty()) std::memcpy(slot.data() + sizeof header, bytes.data(), bytes.size());
  check_mpi(MPI_Isend(slot.data(),
                      static_cast<int>(sizeof header + bytes.size()),
                      MPI_BYTE,
                      to,
                      kHeaderTag,
                      group_,
                      &send.request),
            "MPI_Isend");
  ++traffic_.sent[static_cast<std::size_t>(to)];
  peer.sends.push_back(send);
  return true;
}

/// Takes from `write` what there is room for; true when that is all.
bool MpiTransport::send_parts(Rank to, Write& write) {
  for (;;) {
    const std::size_t bytes = std::min(write.source.size(), kPartBytes);
    const bool is_last = bytes == write.source.size();
    const Header header{.kind = is_last ? Kind::put : Kind::part,
                        .immediate = write.immediate,
                        .offset = write.offset,
                        .region = write.region};
    if (!send(to, header, write.source.first(bytes))) return false;
    if (is_last) return true;
    write.source = write.source.subspan(bytes);
    write.offset += bytes;
  }
}

bool MpiTransport::start_write(const Write& write) {
  Peer& peer = of(write.peer);
  if (peer.begun || !peer.control.empty()) return false;
  Write rest = write;
  if (send_parts(write.peer, rest)) return true;
  if (rest.source.size() == write.source.size()) return false;
  peer.begun = rest;  // a long source stays as it is
  return true;
}

void MpiTransport::send_control(Rank to, std::span<const std::byte> message) {
  FERRY_CHECK(message.size() <= kPartBytes, "a control message of {} bytes", message.size());
  Peer& peer = of(to);
  if (peer.begun || !peer.control.empty() || !send(to, {}, message))
    peer.control.emplace_back(message.begin(), message.end());
}

void MpiTransport::reap(Peer& peer) {
  while (!peer.sends.empty()) {
    Send& oldest = peer.sends.front();
    int done = 0;
    check_mpi(MPI_Test(&oldest.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done) return;
    moved();
    free_slots_.push_back(oldest.slot);
    peer.sends.pop_front();
  }
}

void MpiTransport::take_put(Rank from, const Header& header, std::span<const std::byte> bytes) {
  const std::span<std::byte> target = region_memory(header.region);
  if (bytes.empty()) return header.kind == Kind::put ? arrived(header.immediate) : moved();
  if (header.offset > target.size() || bytes.size() > target.size() - header.offset)
    throw TransportError(
        TransportError::Kind::io, from, fmt::format("mpi: rank {} put outside its region", from));
  std::memcpy(target.data() + header.offset, bytes.data(), bytes.size());
  header.kind == Kind::put ? arrived(header.immediate) : moved();
}

void MpiTransport::take(Rank from, std::span<const std::byte> message) {
  Header header;
  std::memcpy(&header, message.data(), sizeof header);
  const auto bytes = message.subspan(sizeof header);
  if (header.kind == Kind::control) return heard(from, bytes);
  if (!has_region(header.region)) {
    ++of(from).early;
    early_.push_back({from, Bytes(message.begin(), message.end())});
  } else {
    take_put(from, header, bytes);
  }
}

void MpiTransport::poll_writes() {
  // First, since parts come before what raises their signal.
  for (std::size_t i = 0; i < early_.size();) {
    Header header;
    std::memcpy(&header, early_[i].message.data(), sizeof header);
    if (!has_region(header.region)) {
      ++i;
      continue;
    }
    const Early early = std::move(early_[i]);
    early_.erase(early_.begin() + static_cast<std::ptrdiff_t>(i));
    --of(early.from).early;
    take_put(early.from, header, std::span<const std::byte>(early.message).subspan(sizeof header));
  }
  for (int done = 1; done;) {
    MPI_Status status;
    MPI_Request& request = ring_requests_[ring_next_];
    check_mpi(MPI_Test(&request, &done, &status), "MPI_Test");
    if (!done) break;
    int length = 0;
    MPI_Get_count(&status, MPI_BYTE, &length);
    const std::size_t slot = ring_next_;
    ring_next_ = (ring_next_ + 1) % kRingSlots;
    ++traffic_.received[static_cast<std::size_t>(status.MPI_SOURCE)];
    take(status.MPI_SOURCE,
         std::span<const std::byte>(ring_[slot]).first(static_cast<std::size_t>(length)));
    listen(slot);
  }
  for (Rank r = 0; r < size(); ++r) {
    Peer& peer = of(r);
    if (!peer.sends.empty()) reap(peer);
    if (peer.begun && send_parts(r, *peer.begun)) peer.begun.reset();
    while (!peer.begun && !peer.control.empty() && send(r, {}, peer.control.front()))
      peer.control.pop_front();
  }
}

// --- Joining and starting ranks ------------------------------------------------------------------

/// Equal for all processes of one mpirun, and for no others.
std::string mpi_job() {
  for (const char* name : {"PMIX_NAMESPACE", "PMI_KVSNAME", "PMI_JOBID", "SLURM_STEP_ID"})
    if (const char* value = std::getenv(name)) return fmt::format("{}={}", name, value);
  return fmt::format("process {} of {}", getpid(), this_host());
}

class MpiJoiner final : public Joiner {
 public:
  explicit MpiJoiner(const JoinOptions& options) : options_(options) {
    MpiLibrary::instance().tidy();
  }

  Bytes card() override {
    return ByteWriter()
        .text(mpi_job())
        .text(options_.node + " " + this_host())
        .number(MpiGroup::rank_in_world())
        .bytes();
  }

  std::unique_ptr<Transport> join(std::span<const Bytes> cards, Deadline) override {
    std::vector<std::string> hosts;
    std::vector<int> world_ranks;
    for (const Bytes& card : cards) {
      ByteReader reader(card);
      if (const std::string job = reader.text(); cards.size() > 1 && job != first_job(cards)) {
        throw TransportError(
            TransportError::Kind::io,
            static_cast<Rank>(hosts.size()),
            fmt::format("mpi: rank {} was started by another mpirun than rank 0, and MPI takes in "
                        "nobody; use fabric",
                        hosts.size()));
      }
      hosts.push_back(reader.text());
      world_ranks.push_back(reader.number<int>());
      const auto same = std::find(world_ranks.begin(), world_ranks.end() - 1, world_ranks.back());
      if (same == world_ranks.end() - 1) continue;
      throw TransportError(
          TransportError::Kind::io,
          static_cast<Rank>(world_ranks.size() - 1),
          fmt::format("mpi: ranks {} and {} are one process of mpirun; MPI has one rank in each",
                      same - world_ranks.begin(),
                      world_ranks.size() - 1));
    }
    return std::make_unique<MpiTransport>(std::make_shared<MpiGroup>(world_ranks),
                                          hosts_of(hosts, options_.ranks_per_host),
                                          options_);
  }

 private:
  static std::string first_job(std::span<const Bytes> cards) {
    return ByteReader(cards.front()).text();
  }

  const JoinOptions options_;
};

std::vector<std::string> find_hosts(const MpiGroup& group, const JoinOptions& options) {
  std::vector<std::string> found;
  for (const Bytes& host : group.all_gather(ByteWriter().text(this_host()).bytes()))
    found.push_back(ByteReader(host).text());
  return hosts_of(std::move(found), options.ranks_per_host);
}

/// Throws on every rank when one has something else.
void compare(const MpiGroup& group, const JoinOptions& options) {
  ByteWriter own;
  for (const auto& [name, value] : options.agreement) own.text(name).text(value);
  std::vector<Agreement> agreements;
  for (const Bytes& bytes : group.all_gather(own.bytes())) {
    ByteReader reader(bytes);
    Agreement& agreement = agreements.emplace_back();
    while (!reader.done()) {
      std::string name = reader.text();
      agreement.emplace_back(std::move(name), reader.text());
    }
  }
  if (const Difference difference = find_difference(agreements); !difference.text.empty())
    throw TransportError(TransportError::Kind::io,
                         difference.rank,
                         fmt::format("rank {} cannot join: {}", group.rank(), difference.text));
}

int run_mpi(const LaunchOptions& options, const RankBody& body) {
  MpiLibrary& library = MpiLibrary::instance();
  const auto group = std::make_shared<MpiGroup>(options.ranks);
  if (!group->is_member()) return group->finish(0);
  const JoinOptions own = join_options(options, group->rank());
  try {
    int status = 0;
    {
      MpiTransport transport(group, find_hosts(*group, own), own);
      try {
        compare(*group, own);
        status = body(transport);
      } catch (...) {
        transport.abort(describe(std::current_exception()));
        throw;
      }
    }
    return group->finish(status);
  } catch (...) {
    library.forget();
    throw;
  }
}

std::string_view why_not_mpi() {
  if (MpiLibrary::runs()) return "";
  try {
    const auto world = find_world();
    if (world && world->launcher != World::Launcher::variables) return why_not_mpi_library();
  } catch (const ConfigError&) {
    return "the launcher's variables contradict each other";
  }
  return "built in, but its ranks are those of mpirun or srun: mpirun -np N ferry ...";
}

}  // namespace

TransportEntry mpi_transport() {
  return {.name = "mpi",
          .about = "ranks that mpirun started, over MPI",
          .why_not = why_not_mpi,
          .joiner = [](const JoinOptions& options) -> std::unique_ptr<Joiner> {
            return std::make_unique<MpiJoiner>(options);
          },
          .run = run_mpi,
          .joins_world = true};
}

}  // namespace ferry
