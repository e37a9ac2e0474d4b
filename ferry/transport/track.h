// Every S-th rank of a group as a group of its own, over the transport that they have anyway.
#pragma once

#include <chrono>
#include <memory>
#include <string_view>

#include "ferry/transport.h"

namespace ferry {

/// The ranks r of a transport with r % stride == s are track s; this rank's end of its own track,
/// where it is rank r / stride. Unlike what Transport::split() gives, nothing of it moves by
/// itself: puts and waits are the group's, so who waits on the track moves what is in flight
/// elsewhere in the group, and the other way round. Borrows the group, which may be used meanwhile.
/// Collective calls are collective over the group: all tracks make the same ones, in the same
/// order. They may differ in the bytes of a region; each part gets the most that a rank asked for.
/// Errors: the group's, with its numbers of ranks. ConfigError where the ranks do not divide.
/// Threads: as the group.
class TrackTransport final : public Transport {
 public:
  /// `timeout`: for what ranks tell each other where a region is made.
  TrackTransport(Transport& group,
                 int stride,
                 std::chrono::nanoseconds timeout = std::chrono::seconds(30));

  Rank rank() const override { return group_.rank() / stride_; }

  int size() const override { return group_.size() / stride_; }

  std::string_view name() const override { return group_.name(); }

  Capabilities capabilities() const override { return group_.capabilities(); }

  /// As the group numbers hosts: consecutive where each host has whole runs of `stride` ranks.
  int host_of(Rank rank) const override { return group_.host_of(in_group(rank)); }

  Rank known_as(Rank rank) const override { return group_.known_as(in_group(rank)); }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) override;
  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) override;
  std::unique_ptr<Transport> split(int color, int key) override;
  void put(const Put& put) override;
  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override;
  std::uint64_t signal_value(Region& region, int signal) override;
  bool progress() override;
  WaitResult barrier(Deadline deadline) override;
  void abort(std::string_view reason) noexcept override;
  void mask(Rank peer) override;
  std::span<std::byte> peer_window(Region& region, Rank peer) override;

 private:
  Rank in_group(Rank rank) const { return rank * stride_ + group_.rank() % stride_; }

  std::size_t most_of_all(std::size_t bytes);

  Transport& group_;
  const int stride_;
  const std::chrono::nanoseconds timeout_;
};

}  // namespace ferry
