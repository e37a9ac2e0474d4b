#include "ferry/transport/fabric_rail.h"

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::uint32_t kApi = FI_VERSION(1, 14);
/// Best first; the others of libfabric only when asked for by name.
constexpr std::array<const char*, 4> kProviders{"efa", "verbs", "tcp", "shm"};
constexpr std::size_t kQueueSize = 256;
constexpr std::size_t kCompletionBatch = 32;

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

/// What a provider offers of what we need, an entry for each interface and more; null if nothing.
/// `host`: the address to be reached at.
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

bool uses_all_interfaces(std::string_view provider) {
  return provider.starts_with("efa") || provider.starts_with("verbs");
}

/// The first offer for each interface.
std::vector<fi_info*> interfaces_of(const Info& offers) {
  std::vector<fi_info*> first;
  for (fi_info* offer = offers.get(); offer != nullptr; offer = offer->next) {
    bool known = false;
    for (const fi_info* other : first)
      known |= std::strcmp(other->domain_attr->name, offer->domain_attr->name) == 0;
    if (!known && offer->domain_attr->cq_data_size >= 4) first.push_back(offer);
  }
  return first;
}

Info find_interface(const FabricRail::Options& options) {
  const bool all = uses_all_interfaces(options.provider);
  // The master's address is on one of the interfaces; asking without it shows all.
  Info offers = all ? find_info(options.provider, "") : find_info(options.provider, options.host);
  if (!offers) {
    throw TransportError(TransportError::Kind::io,
                         -1,
                         fmt::format("fabric: provider {} cannot be used at {}; see fi_info -p {}",
                                     options.provider,
                                     options.host,
                                     options.provider));
  }
  const std::vector<fi_info*> interfaces = interfaces_of(offers);
  return Info(
      fi_dupinfo(interfaces[static_cast<std::size_t>(options.interface) % interfaces.size()]));
}

}  // namespace

const std::vector<std::string>& usable_fabric_providers() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const char* name : kProviders) {
      if (find_info(name, "")) found.emplace_back(name);
    }
    return found;
  }();
  return names;
}

int num_fabric_interfaces(const std::string& provider) {
  if (!uses_all_interfaces(provider)) return 1;
  const Info offers = find_info(provider, "");
  return offers ? static_cast<int>(interfaces_of(offers).size()) : 1;
}

/// "fi_shm://NAME" is /dev/shm/NAME, named by its process id. Once that id is used again the name
/// is in the way.
void remove_left_behind(std::string_view address) {
  constexpr std::string_view kScheme = "fi_shm://";
  if (!address.starts_with(kScheme)) return;
  const std::string_view name = address.substr(kScheme.size());
  shm_unlink(fmt::format("/{}", name.substr(0, name.find('\0'))).c_str());
}

struct FabricRail::Handles {
  Info info;
  // In the order in which they need each other.
  Fid<fid_fabric> fabric;
  Fid<fid_domain> domain;
  Fid<fid_cq> completions;
  Fid<fid_av> addresses;
  Fid<fid_ep> endpoint;
};

FabricRail::FabricRail(const Options& options)
    : handles_(std::make_unique<Handles>()), peers_(static_cast<std::size_t>(options.ranks)) {
  Handles& h = *handles_;
  h.info = find_interface(options);
  fid_fabric* fabric = nullptr;
  check(fi_fabric(h.info->fabric_attr, &fabric, nullptr), "fi_fabric");
  h.fabric.reset(fabric);
  fid_domain* domain = nullptr;
  check(fi_domain(fabric, h.info.get(), &domain, nullptr), "fi_domain");
  h.domain.reset(domain);
  fi_cq_attr cq_attr{};
  cq_attr.format = FI_CQ_FORMAT_DATA;
  cq_attr.wait_obj = FI_WAIT_NONE;
  fid_cq* completions = nullptr;
  check(fi_cq_open(domain, &cq_attr, &completions, nullptr), "fi_cq_open");
  h.completions.reset(completions);
  fi_av_attr av_attr{};
  av_attr.type = FI_AV_TABLE;
  av_attr.count = peers_.size();
  fid_av* addresses = nullptr;
  check(fi_av_open(domain, &av_attr, &addresses, nullptr), "fi_av_open");
  h.addresses.reset(addresses);
  fid_ep* endpoint = nullptr;
  check(fi_endpoint(domain, h.info.get(), &endpoint, nullptr), "fi_endpoint");
  h.endpoint.reset(endpoint);
  check(fi_ep_bind(endpoint, &addresses->fid, 0), "fi_ep_bind");
  // One queue for both sides: asking it is what moves data, so half as many calls do.
  check(fi_ep_bind(endpoint, &completions->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
  if (options.provider == "shm") {
    const Bytes name = address();
    remove_left_behind({reinterpret_cast<const char*>(name.data()), name.size()});
  }
  check(fi_enable(endpoint), "fi_enable");
}

FabricRail::~FabricRail() = default;

// --- Memory --------------------------------------------------------------------------------------

struct FabricRail::Memory::Handle {
  Fid<fid_mr> region;
};

FabricRail::Memory::Memory(const FabricRail& rail, std::span<std::byte> memory, std::uint64_t key)
    : handle_(std::make_unique<Handle>()) {
  const Handles& h = *rail.handles_;
  fid_mr* region = nullptr;
  const int status = fi_mr_reg(h.domain.get(),
                               memory.data(),
                               memory.size(),
                               FI_WRITE | FI_REMOTE_WRITE,
                               0,
                               key,
                               0,
                               &region,
                               nullptr);
  if (status != 0) {
    fail<Error>("fabric: cannot register {} bytes of memory: {}; see ulimit -l",
                memory.size(),
                fi_strerror(-status));
  }
  handle_->region.reset(region);
  const auto mode = static_cast<std::uint64_t>(h.info->domain_attr->mr_mode);
  if (mode & FI_MR_ENDPOINT) {
    check(fi_mr_bind(region, &h.endpoint->fid, 0), "fi_mr_bind");
    check(fi_mr_enable(region), "fi_mr_enable");
  }
  remote_.key = fi_mr_key(region);
  if (mode & FI_MR_VIRT_ADDR) remote_.base = reinterpret_cast<std::uint64_t>(memory.data());
}

FabricRail::Memory::~Memory() = default;

void* FabricRail::Memory::descriptor() const { return fi_mr_desc(handle_->region.get()); }

// --- Peers ---------------------------------------------------------------------------------------

std::size_t FabricRail::inject_bytes() const { return handles_->info->tx_attr->inject_size; }

std::size_t FabricRail::max_put_bytes() const { return handles_->info->ep_attr->max_msg_size; }

bool FabricRail::pins_memory() const {
  return (handles_->info->domain_attr->mr_mode & FI_MR_ALLOCATED) != 0;
}

Bytes FabricRail::address() const {
  std::size_t bytes = 0;
  fi_getname(&handles_->endpoint->fid, nullptr, &bytes);
  Bytes name(bytes);
  check(fi_getname(&handles_->endpoint->fid, name.data(), &bytes), "fi_getname");
  name.resize(bytes);
  return name;
}

void FabricRail::learn_address(Rank peer, std::span<const std::byte> address) {
  fi_addr_t& known = peers_[static_cast<std::size_t>(peer)];
  if (fi_av_insert(handles_->addresses.get(), address.data(), 1, &known, 0, nullptr) != 1) {
    throw TransportError(TransportError::Kind::io,
                         peer,
                         fmt::format("fabric: the address of rank {} is not understood", peer));
  }
}

// --- Writing -------------------------------------------------------------------------------------

long FabricRail::start(const Write& write) {
  const fi_addr_t peer = peers_[static_cast<std::size_t>(write.peer)];
  const std::uint64_t to = write.target.base + write.offset;
  fid_ep* endpoint = handles_->endpoint.get();
  if (write.context == nullptr) {
    return fi_inject_writedata(endpoint,
                               write.source.data(),
                               write.source.size(),
                               write.immediate,
                               peer,
                               to,
                               write.target.key);
  }
  return fi_writedata(endpoint,
                      write.source.data(),
                      write.source.size(),
                      write.descriptor,
                      write.immediate,
                      peer,
                      to,
                      write.target.key,
                      write.context);
}

bool FabricRail::is_full(long status) { return status == -FI_EAGAIN; }

std::string_view FabricRail::error_text(long status) {
  return fi_strerror(static_cast<int>(-status));
}

void FabricRail::poll(FunctionRef<void(const Event&)> event) {
  std::array<fi_cq_data_entry, kCompletionBatch> entries;
  for (;;) {
    const ssize_t n = fi_cq_read(handles_->completions.get(), entries.data(), entries.size());
    if (n == -FI_EAVAIL) {
      fi_cq_err_entry error{};
      // Of a receiving side nothing is known but that a connection ended; the control channel says
      // whose, and counts that are never reached say the rest.
      if (fi_cq_readerr(handles_->completions.get(), &error, 0) >= 0 && error.op_context != nullptr)
        event({.kind = Event::Kind::failed,
               .context = error.op_context,
               .why = fi_strerror(error.err)});
      continue;
    }
    if (n == -FI_EAGAIN) return;
    check(n, "fi_cq_read");
    for (ssize_t i = 0; i < n; ++i) {
      const fi_cq_data_entry& entry = entries[static_cast<std::size_t>(i)];
      if (entry.flags & FI_REMOTE_CQ_DATA) {
        event({.kind = Event::Kind::arrived, .immediate = static_cast<std::uint32_t>(entry.data)});
      } else {
        event({.kind = Event::Kind::completed, .context = entry.op_context});
      }
    }
    if (n < static_cast<ssize_t>(entries.size())) return;
  }
}

}  // namespace ferry
