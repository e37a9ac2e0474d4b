// MoveWire: what the movers of all ranks send one another: plans, and weights from step to step.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/transport.h"

namespace ferry {

/// One rank's end; construction is collective. Threads: one at a time. Errors: TransportError.
class MoveWire {
 public:
  struct Sizes {
    std::size_t plan_words = 0;
    std::size_t step_bytes = 0;  ///< of weights that a rank sends, and receives, at most in a step
  };

  MoveWire(const Sizes& sizes, std::chrono::nanoseconds timeout, Transport& transport);

  /// Has the pages that weights travel through before a step needs them. Collective.
  void touch_buffers();

  /// Rank 0 only: what put_plan() sends to every rank, itself included. Free to be written again
  /// when all ranks have had the plan of before.
  std::span<std::int32_t> next_plan();
  void put_plan();

  /// The plan of that number, from 1; waits for it. Valid until the next one is put.
  std::span<const std::int32_t> plan(std::uint64_t number);

  /// Sends `bytes` to `at` in the peer's part of this step, where the peer expect()s them.
  /// `own_at`: how many bytes this rank has sent in this step.
  void send(Rank to, std::span<const std::byte> bytes, std::size_t at, std::size_t own_at);

  void expect(Rank from, std::span<std::byte> target, std::size_t at);

  /// Brings what was expected to its target, waiting for it, and begins the next step. A step's
  /// buffers are written again two steps later, so all ranks must have begun this one by then.
  void begin_step();

  std::uint64_t bytes_sent() const { return bytes_sent_; }  ///< of weights

  std::uint64_t bytes_received() const { return bytes_received_; }

  /// Spent on copying those.
  std::chrono::nanoseconds copy_time() const { return copy_time_; }

 private:
  struct Arrival {
    Rank from = 0;
    std::span<std::byte> target;
    std::size_t at = 0;
  };

  std::size_t in_offset() const { return buffers_at_ + step_ % 2 * buffer_bytes_; }

  std::size_t out_offset() const { return buffers_at_ + (2 + step_ % 2) * buffer_bytes_; }

  std::uint64_t puts_for(std::size_t bytes) const;
  void put(Rank peer, std::size_t to, std::size_t from, std::size_t bytes, int signal);
  void await(int signal, std::uint64_t count, const char* what, Rank peer);

  Transport& transport_;
  const std::chrono::nanoseconds timeout_;
  const bool direct_;  // peers' memory can be written
  // Each rank's part: the plan that came and, on rank 0, the plan to send; two buffers that weights
  // arrive in, for steps of even and odd number, and where they cannot be written into the peer's,
  // two that they leave from.
  const std::size_t plan_words_;
  const std::size_t plan_bytes_;
  const std::size_t buffer_bytes_;
  const std::size_t buffers_at_;
  const std::size_t buffers_;
  std::unique_ptr<Region> region_;
  std::uint64_t step_ = 0;
  std::vector<Arrival> arrivals_;             // of this step
  std::vector<std::uint64_t> puts_expected_;  // [R] of weights so far
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t bytes_received_ = 0;
  std::chrono::nanoseconds copy_time_{};
};

}  // namespace ferry
