#include "apps/ferry/link.h"

#include <atomic>
#include <cstring>
#include <thread>

#include "apps/ferry/raw_mpi.h"
#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/core/wait.h"

namespace ferry {

namespace {

constexpr std::chrono::seconds kPatience{60};

Rank other(const Transport& transport) { return 1 - transport.rank(); }

/// Puts from the second half of a region to the first of the peer's.
class TransportLink final : public Link {
 public:
  TransportLink(Transport& transport, std::size_t most_bytes)
      : transport_(transport), region_(transport.allocate_region(2 * most_bytes, 1)) {
    std::memset(region_->local().data(), 1, region_->local().size());
  }

  std::string_view name() const override { return "put+signal"; }

  void round_trip(std::size_t bytes) override {
    if (transport_.rank() == 0) put(bytes);
    await(1);
    if (transport_.rank() == 1) put(bytes);
  }

  void stream(std::size_t bytes, int count) override {
    if (transport_.rank() == 0) {
      for (int i = 0; i < count; ++i) put(bytes);
      await(1);
    } else {
      await(count);
      put(0);
    }
  }

 private:
  void put(std::size_t bytes) {
    const std::span<std::byte> local = region_->local();
    transport_.put({.region = region_.get(),
                    .peer = other(transport_),
                    .source = local.subspan(local.size() / 2, bytes)});
  }

  void await(int more) {
    seen_ += static_cast<std::uint64_t>(more);
    if (transport_.wait(*region_, 0, seen_, deadline_in(kPatience)) == WaitResult::timed_out)
      fail<Error>("bench link: the other rank was silent for {} s", kPatience.count());
  }

  Transport& transport_;
  std::unique_ptr<Region> region_;
  std::uint64_t seen_ = 0;
};

/// A copy into the peer's memory and an atomic addition there.
class MemoryLink final : public Link {
 public:
  MemoryLink(Transport& transport, std::size_t most_bytes)
      : rank_(transport.rank()),
        region_(transport.allocate_region(kFlag + most_bytes, 1)),
        peer_(transport.peer_window(*region_, other(transport))),
        source_(most_bytes) {
    std::memset(source_.data(), 1, source_.size());
  }

  std::string_view name() const override { return "memcpy+atomic"; }

  void round_trip(std::size_t bytes) override {
    if (rank_ == 0) put(bytes);
    await(1);
    if (rank_ == 1) put(bytes);
  }

  void stream(std::size_t bytes, int count) override {
    if (rank_ == 0) {
      for (int i = 0; i < count; ++i) put(bytes);
      await(1);
    } else {
      await(count);
      put(0);
    }
  }

 private:
  static constexpr std::size_t kFlag = 64;

  static std::atomic_ref<std::uint64_t> flag(std::span<std::byte> part) {
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(part.data()));
  }

  void put(std::size_t bytes) {
    std::memcpy(peer_.data() + kFlag, source_.data(), bytes);
    flag(peer_).fetch_add(1);
  }

  void await(int more) {
    seen_ += static_cast<std::uint64_t>(more);
    Backoff backoff;
    while (flag(region_->local()).load() < seen_) backoff.pause();
  }

  Rank rank_;
  std::unique_ptr<Region> region_;
  std::span<std::byte> peer_;
  Buffer source_;
  std::uint64_t seen_ = 0;
};

class MpiLink final : public Link {
 public:
  MpiLink(const Transport& transport, std::size_t most_bytes)
      : begins_(transport.rank() == 0), peer_(other(transport)), buffer_(most_bytes) {
    std::memset(buffer_.data(), 1, buffer_.size());
  }

  std::string_view name() const override { return "MPI_Send"; }

  void round_trip(std::size_t bytes) override {
    mpi_round_trip(peer_, begins_, buffer_.data(), bytes);
  }

  void stream(std::size_t bytes, int count) override {
    mpi_stream(peer_, begins_, buffer_.data(), bytes, count);
  }

 private:
  bool begins_;
  Rank peer_;
  Buffer buffer_;
};

}  // namespace

std::unique_ptr<Link> transport_link(Transport& transport, std::size_t most_bytes) {
  return std::make_unique<TransportLink>(transport, most_bytes);
}

std::unique_ptr<Link> raw_link(Transport& transport,
                               const LaunchOptions& options,
                               std::size_t most_bytes) {
  if (options.transport == "fabric") return raw_fabric_link(transport, options, most_bytes);
  if (options.transport == "mpi") return std::make_unique<MpiLink>(transport, most_bytes);
  return std::make_unique<MemoryLink>(transport, most_bytes);
}

}  // namespace ferry
