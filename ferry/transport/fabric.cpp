// Ranks that reach each other through libfabric: put = fi_writedata, counted by its 32 bits of
// immediate data, which arrive in the target's completion queue once the bytes are in memory. The
// same code drives tcp, shm, verbs (InfiniBand, RoCE) and efa; what a provider wants differently it
// says in its fi_info. Control messages go through the connections of the bootstrap.
#include <dlfcn.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/bootstrap.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/network.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/sockets.h"

namespace ferry {

namespace {

constexpr std::uint32_t kApi = FI_VERSION(1, 14);
/// Best first; the others of libfabric only when asked for by name.
constexpr std::array<const char*, 4> kProviders{"efa", "verbs", "tcp", "shm"};
/// Writes to one peer that the provider holds at a time. The rest waits here, so that a receiver
/// that stands still fills no queue that others need.
constexpr int kMaxInFlight = 128;
constexpr std::size_t kQueueSize = 256;
constexpr std::size_t kBounceSlots = 1024;
constexpr std::size_t kCompletionBatch = 32;

// --- Handles of libfabric ------------------------------------------------------------------------

void check(long status, const char* call) {
  if (status >= 0) return;
  throw TransportError(TransportError::Kind::io,
                       -1,
                       fmt::format("fabric: {}: {}", call, fi_strerror(static_cast<int>(-status))));
}

struct FreeInfo {
  void operator()(fi_info* info) const { fi_freeinfo(info); }
};

using Info = std::unique_ptr<fi_info, FreeInfo>;

struct CloseFid {
  template <class T>
  void operator()(T* object) const {
    fi_close(&object->fid);
  }
};

template <class T>
using Fid = std::unique_ptr<T, CloseFid>;

/// What a provider offers of what we need; null if nothing. `host`: the address to be reached at.
Info find_info(const std::string& provider, const std::string& host) {
  const Info hints(fi_allocinfo());
  hints->ep_attr->type = FI_EP_RDM;
  hints->caps = FI_MSG | FI_RMA;
  hints->domain_attr->mr_mode =
      FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;  // one lock around all calls
  hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->domain_attr->av_type = FI_AV_TABLE;
  // We receive no messages, and keep the line short: large queues cost ofi_rxm 70 MB and 40 ms.
  hints->tx_attr->size = kQueueSize;
  hints->rx_attr->size = kQueueSize;
  hints->fabric_attr->prov_name = strdup(provider.c_str());  // fi_freeinfo frees it
  fi_info* found = nullptr;
  const bool by_host = !host.empty() && provider != "shm" && provider != "efa";
  const int status = by_host
                         ? fi_getinfo(kApi, host.c_str(), nullptr, FI_SOURCE, hints.get(), &found)
                         : fi_getinfo(kApi, nullptr, nullptr, 0, hints.get(), &found);
  Info info(status == 0 ? found : nullptr);
  // Immediate data must have room for our 32 bits.
  return info && info->domain_attr->cq_data_size >= 4 ? std::move(info) : nullptr;
}

/// libfabric brings the psm libraries along, which take SIGINT, SIGTERM, SIGSEGV and others
/// while the program is being loaded, and then end it with status 1 and a backtrace. Those signals
/// get their default back before main() begins.
const bool signals_are_ours_again = [] {
  constexpr int kFirstRealTimeSignal = 32;
  for (int s = 1; s < kFirstRealTimeSignal; ++s) {
    struct sigaction action {};

    Dl_info owner{};
    if (sigaction(s, nullptr, &action) != 0 || action.sa_handler == SIG_DFL ||
        action.sa_handler == SIG_IGN)
      continue;
    if (dladdr(reinterpret_cast<void*>(action.sa_handler), &owner) == 0) continue;
    const std::string_view library = owner.dli_fname;
    if (library.find("libinfinipath") == std::string_view::npos &&
        library.find("libpsm") == std::string_view::npos)
      continue;
    action = {};
    action.sa_handler = SIG_DFL;
    sigaction(s, &action, nullptr);
  }
  return true;
}();

/// Of kProviders, those that this machine can use. Looked up once: it takes 0.1 s.
const std::vector<std::string>& usable_providers() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const char* name : kProviders) {
      if (find_info(name, "")) found.emplace_back(name);
    }
    return found;
  }();
  return names;
}

/// The best provider that all ranks can use; shm only where all are on one host.
std::string choose_provider(Meeting& meeting, const std::string& asked, Deadline deadline) {
  std::string own;
  for (const std::string& name : usable_providers()) own += name + " ";
  const auto lists = meeting.mesh.all_gather(std::as_bytes(std::span(own)), deadline);
  if (!asked.empty()) return asked;
  const bool one_host = std::all_of(meeting.nodes.begin(), meeting.nodes.end(), [&](const auto& n) {
    return n == meeting.nodes.front();
  });
  for (const std::string& name : usable_providers()) {
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

/// A process that is killed leaves its shared memory of provider shm behind: "fi_shm://NAME" is
/// /dev/shm/NAME, named by its process id. Once that id is used again the name is in the way.
void remove_left_behind(std::string_view address) {
  constexpr std::string_view kScheme = "fi_shm://";
  if (!address.starts_with(kScheme)) return;
  const std::string_view name = address.substr(kScheme.size());
  shm_unlink(fmt::format("/{}", name.substr(0, name.find('\0'))).c_str());
}

/// Where a peer's part of a region lies, as its registration told.
struct RemoteMemory {
  std::uint64_t key = 0;
  std::uint64_t base = 0;  // 0 where the provider counts from the registration's start
};

// --- The transport -------------------------------------------------------------------------------

class FabricTransport final : public NetworkTransport {
 public:
  FabricTransport(Meeting meeting, const LaunchOptions& options, Deadline deadline);

  ~FabricTransport() override {
    progress_thread_ = {};
    leave();
    for (Rank r = 0; r < size(); ++r) {
      if (has_died(r)) remove_left_behind(peer_addresses_[index(r)]);
    }
  }

  Capabilities capabilities() const override {
    return {.load_store = is_one_host(),
            .survives_peer_death = true,
            .max_put_bytes = info_->ep_attr->max_msg_size};
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

  void say_farewell(Rank peer) override;

  bool all_from(Rank peer) override { return farewell_[index(peer)]; }

 private:
  /// What a completion gives back: who it was about.
  struct Operation {
    Rank peer = 0;
    int slot = -1;  // of the bounce buffer
  };

  class Memory;

  static std::size_t index(Rank rank) { return static_cast<std::size_t>(rank); }

  void open(const std::string& provider, const std::string& host);
  Bytes own_name() const;
  void learn_addresses(Deadline deadline);
  int write_short(const Write& write, const RemoteMemory& target);
  void complete(const Operation& operation);
  void read_error();
  void keep_moving(const std::stop_token& stop);

  Mesh mesh_;
  Info info_;
  // In the order in which they need each other.
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_cq> completions_;
  Fid<fid_av> addresses_;
  Fid<fid_ep> endpoint_;
  std::vector<fi_addr_t> peers_;
  std::vector<std::string> peer_addresses_;  // as the provider spells them
  // Where a peer's last word may go when it has no region any more.
  Buffer landing_;
  std::unique_ptr<Registration> landing_memory_;
  std::vector<Bytes> landing_access_;  // of each rank
  std::uint64_t next_key_ = 1;

  std::vector<Operation> long_operations_;  // one for each peer
  std::vector<int> in_flight_;              // writes to each peer that will complete
  std::vector<bool> farewell_;              // has said its last word
  // For providers that cannot copy short sources themselves.
  Buffer bounce_;
  std::unique_ptr<Registration> bounce_memory_;
  std::vector<Operation> bounce_operations_;
  std::vector<int> free_slots_;
  std::jthread progress_thread_;
};

class FabricTransport::Memory final : public Registration {
 public:
  Memory(const FabricTransport& owner, std::span<std::byte> memory, std::uint64_t key) {
    fid_mr* mr = nullptr;
    const int status = fi_mr_reg(owner.domain_.get(),
                                 memory.data(),
                                 memory.size(),
                                 FI_WRITE | FI_REMOTE_WRITE,
                                 0,
                                 key,
                                 0,
                                 &mr,
                                 nullptr);
    if (status != 0) {
      fail<Error>("fabric: cannot register {} bytes of memory: {}; see ulimit -l",
                  memory.size(),
                  fi_strerror(-status));
    }
    mr_.reset(mr);
    const auto mode = static_cast<std::uint64_t>(owner.info_->domain_attr->mr_mode);
    if (mode & FI_MR_ENDPOINT) {
      check(fi_mr_bind(mr, &owner.endpoint_->fid, 0), "fi_mr_bind");
      check(fi_mr_enable(mr), "fi_mr_enable");
    }
    remote_.key = fi_mr_key(mr);
    if (mode & FI_MR_VIRT_ADDR) remote_.base = reinterpret_cast<std::uint64_t>(memory.data());
  }

  Bytes access() const override { return ByteWriter().number(remote_).bytes(); }

  void* descriptor() const { return fi_mr_desc(mr_.get()); }

 private:
  Fid<fid_mr> mr_;
  RemoteMemory remote_;
};

FabricTransport::FabricTransport(Meeting meeting, const LaunchOptions& options, Deadline deadline)
    : NetworkTransport({.name = "fabric",
                        .rank = meeting.mesh.rank(),
                        .size = meeting.mesh.size(),
                        .hosts = hosts_of(meeting.nodes, options),
                        .start_timeout = options.start_timeout}),
      mesh_(Rank{0}, {}),
      in_flight_(index(size()), 0),
      farewell_(index(size()), false) {
  const std::string provider = choose_provider(meeting, options.fabric_provider, deadline);
  mesh_ = std::move(meeting.mesh);
  open(provider, meeting.own_host);
  learn_addresses(deadline);
  for (Rank r = 0; r < size(); ++r) long_operations_.push_back({.peer = r});
  if (info_->tx_attr->inject_size < kInlineBytes) {
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

void FabricTransport::open(const std::string& provider, const std::string& host) {
  info_ = find_info(provider, host);
  if (!info_) {
    throw TransportError(TransportError::Kind::io,
                         -1,
                         fmt::format("fabric: provider {} cannot be used at {}; see fi_info -p {}",
                                     provider,
                                     host,
                                     provider));
  }
  fid_fabric* fabric = nullptr;
  check(fi_fabric(info_->fabric_attr, &fabric, nullptr), "fi_fabric");
  fabric_.reset(fabric);
  fid_domain* domain = nullptr;
  check(fi_domain(fabric, info_.get(), &domain, nullptr), "fi_domain");
  domain_.reset(domain);
  fi_cq_attr cq_attr{};
  cq_attr.format = FI_CQ_FORMAT_DATA;
  cq_attr.wait_obj = FI_WAIT_NONE;
  fid_cq* completions = nullptr;
  check(fi_cq_open(domain, &cq_attr, &completions, nullptr), "fi_cq_open");
  completions_.reset(completions);
  fi_av_attr av_attr{};
  av_attr.type = FI_AV_TABLE;
  av_attr.count = index(size());
  fid_av* addresses = nullptr;
  check(fi_av_open(domain, &av_attr, &addresses, nullptr), "fi_av_open");
  addresses_.reset(addresses);
  fid_ep* endpoint = nullptr;
  check(fi_endpoint(domain, info_.get(), &endpoint, nullptr), "fi_endpoint");
  endpoint_.reset(endpoint);
  check(fi_ep_bind(endpoint, &addresses->fid, 0), "fi_ep_bind");
  // One queue for both sides: asking it is what moves data, so half as many calls do.
  check(fi_ep_bind(endpoint, &completions->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
  if (provider == "shm") {
    const Bytes name = own_name();
    remove_left_behind({reinterpret_cast<const char*>(name.data()), name.size()});
  }
  check(fi_enable(endpoint), "fi_enable");
}

Bytes FabricTransport::own_name() const {
  std::size_t bytes = 0;
  fi_getname(&endpoint_->fid, nullptr, &bytes);
  Bytes name(bytes);
  check(fi_getname(&endpoint_->fid, name.data(), &bytes), "fi_getname");
  name.resize(bytes);
  return name;
}

void FabricTransport::learn_addresses(Deadline deadline) {
  landing_ = Buffer(kInlineBytes);
  landing_memory_ = register_memory({landing_.data(), landing_.size()});
  const auto all = mesh_.all_gather(
      ByteWriter().blob(own_name()).blob(landing_memory_->access()).bytes(), deadline);
  peers_.resize(all.size());
  for (std::size_t r = 0; r < all.size(); ++r) {
    ByteReader reader(all[r]);
    const auto address = reader.blob();
    if (fi_av_insert(addresses_.get(), address.data(), 1, &peers_[r], 0, nullptr) != 1) {
      throw TransportError(TransportError::Kind::io,
                           static_cast<Rank>(r),
                           fmt::format("fabric: the address of rank {} is not understood", r));
    }
    peer_addresses_.emplace_back(reinterpret_cast<const char*>(address.data()), address.size());
    const auto access = reader.blob();
    landing_access_.emplace_back(access.begin(), access.end());
  }
}

std::unique_ptr<Registration> FabricTransport::register_memory(std::span<std::byte> memory) {
  return std::make_unique<Memory>(*this, memory, next_key_++);
}

int FabricTransport::write_short(const Write& write, const RemoteMemory& target) {
  const std::uint64_t to = target.base + write.offset;
  if (write.source.size() <= info_->tx_attr->inject_size) {
    return static_cast<int>(fi_inject_writedata(endpoint_.get(),
                                                write.source.data(),
                                                write.source.size(),
                                                write.immediate,
                                                peers_[index(write.peer)],
                                                to,
                                                target.key));
  }
  if (free_slots_.empty()) return -FI_EAGAIN;
  Operation& operation = bounce_operations_[static_cast<std::size_t>(free_slots_.back())];
  operation.peer = write.peer;
  std::byte* copy = bounce_.data() + static_cast<std::size_t>(operation.slot) * kInlineBytes;
  std::memcpy(copy, write.source.data(), write.source.size());
  const long status = fi_writedata(endpoint_.get(),
                                   copy,
                                   write.source.size(),
                                   static_cast<const Memory&>(*bounce_memory_).descriptor(),
                                   write.immediate,
                                   peers_[index(write.peer)],
                                   to,
                                   target.key,
                                   &operation);
  if (status == 0) {
    free_slots_.pop_back();
    ++in_flight_[index(write.peer)];
  }
  return static_cast<int>(status);
}

bool FabricTransport::start_write(const Write& write) {
  int& in_flight = in_flight_[index(write.peer)];
  if (in_flight >= kMaxInFlight) return false;
  RemoteMemory target;
  std::memcpy(&target, write.peer_access.data(), sizeof target);
  long status = 0;
  if (write.memory == nullptr) {
    status = write_short(write, target);
  } else {
    status = fi_writedata(endpoint_.get(),
                          write.source.data(),
                          write.source.size(),
                          static_cast<const Memory*>(write.memory)->descriptor(),
                          write.immediate,
                          peers_[index(write.peer)],
                          target.base + write.offset,
                          target.key,
                          &long_operations_[index(write.peer)]);
    if (status == 0) ++in_flight;
  }
  if (status == -FI_EAGAIN) return false;
  if (status != 0) write_failed(write.peer, fi_strerror(static_cast<int>(-status)));
  return true;
}

void FabricTransport::complete(const Operation& operation) {
  --in_flight_[index(operation.peer)];
  if (operation.slot >= 0) free_slots_.push_back(operation.slot);
}

void FabricTransport::read_error() {
  fi_cq_err_entry error{};
  if (fi_cq_readerr(completions_.get(), &error, 0) < 0) return;
  // Of a receiving side nothing is known but that a connection ended; the control channel says
  // whose, and counts that are never reached say the rest.
  if (error.op_context == nullptr) return;
  const Operation& operation = *static_cast<const Operation*>(error.op_context);
  complete(operation);
  write_failed(operation.peer, fi_strerror(error.err));
}

void FabricTransport::poll_writes() {
  std::array<fi_cq_data_entry, kCompletionBatch> entries;
  for (;;) {
    const ssize_t n = fi_cq_read(completions_.get(), entries.data(), entries.size());
    if (n == -FI_EAVAIL) {
      read_error();
      continue;
    }
    if (n == -FI_EAGAIN) return;
    check(n, "fi_cq_read");
    for (ssize_t i = 0; i < n; ++i) {
      const fi_cq_data_entry& entry = entries[static_cast<std::size_t>(i)];
      if (!(entry.flags & FI_REMOTE_CQ_DATA)) {
        complete(*static_cast<const Operation*>(entry.op_context));
        continue;
      }
      const auto immediate = static_cast<std::uint32_t>(entry.data);
      if (immediate & 0xff) {
        arrived(immediate);
      } else {
        farewell_[immediate >> 8] = true;
      }
    }
    if (n < static_cast<ssize_t>(entries.size())) return;
  }
}

/// Reliable networks complete a write when it is in the peer's memory; the software providers, when
/// their socket has taken it. Those keep the order, so that a last write follows all.
void FabricTransport::say_farewell(Rank peer) {
  const Write last{.peer = peer,
                   .peer_access = landing_access_[index(peer)],
                   .immediate = static_cast<std::uint32_t>(rank()) << 8};
  while (!start_write(last)) poll_writes();
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

// --- Starting ranks ------------------------------------------------------------------------------

int run_rank(const LaunchOptions& options, const RankBody& body, MeetingOptions meeting) {
  meeting.agreement = options.agreement;
  meeting.agreement.emplace_back(
      "--fabric-provider", options.fabric_provider.empty() ? "best" : options.fabric_provider);
  meeting.deadline = deadline_in(options.join_timeout);
  const Deadline deadline = meeting.deadline;
  FabricTransport transport(meet(std::move(meeting)), options, deadline);
  try {
    return body(transport);
  } catch (...) {
    transport.abort(describe(std::current_exception()));
    throw;
  }
}

int run_fabric(const LaunchOptions& options, const RankBody& body) {
  if (options.world) {
    const World& world = *options.world;
    if (world.master_host.empty() || world.master_port == 0) {
      fail<ConfigError>(
          "MASTER_ADDR and MASTER_PORT are not set; the ranks need them to find each other");
    }
    const auto run = [&](Rank local) {
      return run_rank(options,
                      body,
                      {.rank = world.rank + local,
                       .size = world.size,
                       .host = world.master_host,
                       .port = world.master_port,
                       .secret = world.secret,
                       .node = world.node + " " + this_host()});
    };
    return world.own == 1 ? run(0) : run_processes({.ranks = world.own, .child = run});
  }
  static_cast<void>(usable_providers());  // looked up once for all ranks
  // The door is open before there are ranks, so nobody has to be told a number beforehand.
  UniqueFd door = listen_at(resolve("127.0.0.1", 0));
  const SocketAddress address = own_address(door);
  std::string secret(32, '\0');
  fill_random(std::as_writable_bytes(std::span(secret)));
  return run_processes({.ranks = options.ranks, .child = [&](Rank rank) {
                          return run_rank(options,
                                          body,
                                          {.rank = rank,
                                           .size = options.ranks,
                                           .host = address.host(),
                                           .port = address.port(),
                                           .listener = std::exchange(door, UniqueFd()),
                                           .secret = secret,
                                           .node = this_host()});
                        }});
}

}  // namespace

TransportEntry fabric_transport() {
  return {.name = "fabric",
          .about = "ranks on one host or many, over libfabric",
          // Every libfabric has tcp, and asking it takes 0.1 s.
          .why_not = []() -> std::string_view { return ""; },
          .run = run_fabric,
          .joins_world = true};
}

}  // namespace ferry
