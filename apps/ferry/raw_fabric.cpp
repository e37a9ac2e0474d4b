// libfabric by itself: an endpoint, fi_writedata with immediate data, one completion queue for both
// sides, polled by who waits. What fabric.cpp does without regions, signals, peers that may die,
// locks and deadlines.
#include <netdb.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "apps/ferry/link.h"
#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

namespace {

void check(long status, const char* call) {
  if (status < 0) fail<Error>("{}: {}", call, fi_strerror(static_cast<int>(-status)));
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

/// This host's address on the way to the master, as the transport has it.
std::string own_host(const LaunchOptions& options) {
  if (!options.world) return "127.0.0.1";
  addrinfo* found = nullptr;
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  const std::string port = std::to_string(options.world->master_port);
  if (getaddrinfo(options.world->master_host.c_str(), port.c_str(), &hints, &found) != 0)
    fail<Error>("bench link: {} is not known", options.world->master_host);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> address(found, freeaddrinfo);
  const UniqueFd socket(::socket(found->ai_family, SOCK_DGRAM, 0));
  sockaddr_storage own{};
  socklen_t bytes = sizeof own;
  std::array<char, NI_MAXHOST> text{};
  if (connect(socket.get(), found->ai_addr, found->ai_addrlen) != 0 ||
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &bytes) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&own),
                  bytes,
                  text.data(),
                  text.size(),
                  nullptr,
                  0,
                  NI_NUMERICHOST) != 0)
    fail<Error>("bench link: no way to {}", options.world->master_host);
  return text.data();
}

Info find_info(const std::string& provider, const std::string& host) {
  const Info hints(fi_allocinfo());
  hints->ep_attr->type = FI_EP_RDM;
  hints->caps = FI_MSG | FI_RMA;
  hints->domain_attr->mr_mode =
      FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  hints->domain_attr->av_type = FI_AV_TABLE;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->tx_attr->size = 256;  // as the transport asks
  hints->rx_attr->size = 256;
  hints->fabric_attr->prov_name = strdup(provider.c_str());
  fi_info* found = nullptr;
  const bool by_host = provider != "shm" && provider != "efa";
  check(fi_getinfo(FI_VERSION(1, 14),
                   by_host ? host.c_str() : nullptr,
                   nullptr,
                   by_host ? FI_SOURCE : 0,
                   hints.get(),
                   &found),
        "fi_getinfo");
  return Info(found);
}

class RawFabricLink final : public Link {
 public:
  RawFabricLink(Transport& transport, const LaunchOptions& options, std::size_t most_bytes)
      : rank_(transport.rank()),
        info_(find_info(options.fabric_provider, own_host(options))),
        buffer_(2 * most_bytes) {
    std::memset(buffer_.data(), 1, buffer_.size());  // memory of its own, not the page of zeroes
    open();
    meet(transport);
  }

  std::string_view name() const override { return "fi_writedata"; }

  void round_trip(std::size_t bytes) override {
    if (rank_ == 0) write(bytes);
    await(1);
    if (rank_ == 1) write(bytes);
    finish();
  }

  void stream(std::size_t bytes, int count) override {
    if (rank_ == 0) {
      for (int i = 0; i < count; ++i) write(bytes);
      await(1);
    } else {
      await(count);
      write(0);
    }
    finish();
  }

 private:
  struct Card {
    std::uint64_t key = 0;
    std::uint64_t base = 0;
    std::uint64_t name_bytes = 0;
    std::array<std::byte, 256> name{};
  };

  void open() {
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
    fid_av* addresses = nullptr;
    check(fi_av_open(domain, &av_attr, &addresses, nullptr), "fi_av_open");
    addresses_.reset(addresses);
    fid_ep* endpoint = nullptr;
    check(fi_endpoint(domain, info_.get(), &endpoint, nullptr), "fi_endpoint");
    endpoint_.reset(endpoint);
    check(fi_ep_bind(endpoint, &addresses->fid, 0), "fi_ep_bind");
    check(fi_ep_bind(endpoint, &completions->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    check(fi_enable(endpoint), "fi_enable");
    fid_mr* memory = nullptr;
    check(fi_mr_reg(domain,
                    buffer_.data(),
                    buffer_.size(),
                    FI_WRITE | FI_REMOTE_WRITE,
                    0,
                    1,
                    0,
                    &memory,
                    nullptr),
          "fi_mr_reg");
    memory_.reset(memory);
    if (info_->domain_attr->mr_mode & FI_MR_ENDPOINT) {
      check(fi_mr_bind(memory, &endpoint->fid, 0), "fi_mr_bind");
      check(fi_mr_enable(memory), "fi_mr_enable");
    }
  }

  /// Addresses go over the transport that is measured beside.
  void meet(Transport& transport) {
    Card own{.key = fi_mr_key(memory_.get())};
    if (info_->domain_attr->mr_mode & FI_MR_VIRT_ADDR)
      own.base = reinterpret_cast<std::uint64_t>(buffer_.data());
    std::size_t bytes = own.name.size();
    check(fi_getname(&endpoint_->fid, own.name.data(), &bytes), "fi_getname");
    own.name_bytes = bytes;
    const auto region = transport.allocate_region(2 * sizeof(Card), 1);
    const std::span<std::byte> local = region->local();
    std::memcpy(local.data(), &own, sizeof own);
    transport.put({.region = region.get(),
                   .peer = 1 - rank_,
                   .offset = sizeof own,
                   .source = local.first(sizeof own)});
    const Deadline deadline = deadline_in(std::chrono::seconds(60));
    if (transport.wait(*region, 0, 1, deadline) == WaitResult::timed_out)
      fail<Error>("bench link: the other rank has no address");
    std::memcpy(&peer_card_, local.data() + sizeof own, sizeof peer_card_);
    if (fi_av_insert(addresses_.get(), peer_card_.name.data(), 1, &peer_, 0, nullptr) != 1)
      fail<Error>("fi_av_insert: the peer's address is not understood");
    static_cast<void>(transport.barrier(deadline));
  }

  void write(std::size_t bytes) {
    for (;;) {
      const long status = fi_writedata(endpoint_.get(),
                                       buffer_.data() + buffer_.size() / 2,
                                       bytes,
                                       fi_mr_desc(memory_.get()),
                                       1,
                                       peer_,
                                       peer_card_.base,
                                       peer_card_.key,
                                       nullptr);
      if (status == 0) break;
      if (status != -FI_EAGAIN) check(status, "fi_writedata");
      poll();
    }
    ++started_;
  }

  bool poll() {
    std::array<fi_cq_data_entry, 32> entries;
    const ssize_t n = fi_cq_read(completions_.get(), entries.data(), entries.size());
    if (n == -FI_EAGAIN) return false;
    check(n, "fi_cq_read");
    for (ssize_t i = 0; i < n; ++i)
      ++(entries[static_cast<std::size_t>(i)].flags & FI_REMOTE_CQ_DATA ? arrived_ : completed_);
    return true;
  }

  void await(int more) {
    awaited_ += static_cast<std::uint64_t>(more);
    while (arrived_ < awaited_)
      if (!poll()) std::this_thread::yield();
  }

  void finish() {
    while (completed_ < started_)
      if (!poll()) std::this_thread::yield();
  }

  Rank rank_;
  Info info_;
  Buffer buffer_;  // first half: target, second: source
  // In the order in which they need each other.
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_cq> completions_;
  Fid<fid_av> addresses_;
  Fid<fid_ep> endpoint_;
  Fid<fid_mr> memory_;
  Card peer_card_;
  fi_addr_t peer_ = 0;
  std::uint64_t started_ = 0, completed_ = 0, arrived_ = 0, awaited_ = 0;
};

}  // namespace

std::unique_ptr<Link> raw_fabric_link(Transport& transport,
                                      const LaunchOptions& options,
                                      std::size_t most_bytes) {
  return std::make_unique<RawFabricLink>(transport, options, most_bytes);
}

}  // namespace ferry
