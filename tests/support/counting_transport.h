// A transport of one process whose ranks say that they are on several hosts, so that rows between
// hosts are pushed; it counts what is put. Wraps inproc.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ferry/transport.h"

namespace ferry {

class CountingTransport : public Transport {
 public:
  struct Count {
    std::uint64_t puts = 0;
    std::uint64_t bytes = 0;
  };

  /// `inner` must outlive it. ranks_per_host: so many in a row share a host.
  CountingTransport(Transport& inner, int ranks_per_host, std::size_t max_put_bytes)
      : inner_(inner), ranks_per_host_(ranks_per_host), max_put_bytes_(max_put_bytes) {}

  /// By peer and signal.
  const std::map<std::pair<Rank, int>, Count>& counts() const { return counts_; }

  /// What ranks told each other while things were made is not an exchange's.
  void forget() { counts_.clear(); }

  Rank rank() const override { return inner_.rank(); }

  int size() const override { return inner_.size(); }

  std::string_view name() const override { return "counting"; }

  Capabilities capabilities() const override {
    Capabilities c = inner_.capabilities();
    c.load_store = ranks_per_host_ >= size();
    c.max_put_bytes = max_put_bytes_;
    return c;
  }

  int host_of(Rank rank) const override { return rank / ranks_per_host_; }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int signals) override {
    return inner_.allocate_region(bytes, signals);
  }

  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int signals) override {
    return inner_.register_region(memory, signals);
  }

  std::unique_ptr<Transport> split(int color, int key) override { return inner_.split(color, key); }

  void put(const Put& put) override {
    Count& count = counts_[{put.peer, put.signal}];
    ++count.puts;
    count.bytes += put.source.size();
    inner_.put(put);
  }

  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override {
    return inner_.wait(region, signal, count, deadline);
  }

  std::uint64_t signal_value(Region& region, int signal) override {
    return inner_.signal_value(region, signal);
  }

  bool progress() override { return inner_.progress(); }

  WaitResult barrier(Deadline deadline) override { return inner_.barrier(deadline); }

  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

  void mask(Rank peer) override { inner_.mask(peer); }

  std::span<std::byte> peer_window(Region& region, Rank peer) override {
    if (host_of(peer) != host_of(rank())) return {};
    return inner_.peer_window(region, peer);
  }

 private:
  Transport& inner_;
  const int ranks_per_host_;
  const std::size_t max_put_bytes_;
  std::map<std::pair<Rank, int>, Count> counts_;
};

}  // namespace ferry
