// Messages of any length from every rank to every rank, sent now and received later: what systems
// need whose dispatch and combine are no pair (tokenferry.compat.deep_ep).
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm.h"

namespace ferry::python {

/// Goes in rounds, in each of which every rank hears from every rank that it has not masked. Each
/// source has two places at each peer, which take turns: who hears from a peer in round n + 1 knows
/// that it is done with round n, so round n + 2 may go where that was. Construction is collective.
/// Threads: as the comm.
class ByteExchange {
 public:
  struct Options {
    std::size_t capacity = std::size_t{4}
                           << 20;  ///< of a message in one round; longer ones take more
    std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of each wait for a peer
    bool mask = false;  ///< go on without ranks that are gone or late
  };

  using Message = std::vector<std::byte>;

  ByteExchange(std::shared_ptr<CommState> comm, const Options& options);
  ~ByteExchange();

  /// One message for each rank; taken when it returns. REQUIRES: nothing sent is still to be
  /// received.
  void send(std::span<const std::span<const std::byte>> messages);
  /// One of each rank, none of those that are masked.
  std::vector<std::optional<Message>> recv();

  bool sent() const { return sent_; }

  void mask(Rank rank);

  std::chrono::nanoseconds timeout() const { return options_.timeout; }

  void set_timeout(std::chrono::nanoseconds timeout) { options_.timeout = timeout; }

  const std::vector<bool>& masked() const { return masked_; }

  /// Microseconds that the last recv() waited for each rank.
  const std::vector<std::int64_t>& waited_us() const { return waited_us_; }

 private:
  struct Header {
    std::uint64_t rounds = 0;  ///< that the sender needs for the longest of its messages
    std::uint64_t bytes = 0;   ///< of this round
  };

  std::size_t place(Rank source) const;
  void post(std::uint64_t round);
  void put(Rank peer, const Header& header, std::span<const std::byte> bytes);
  bool await(Rank source);

  const std::shared_ptr<CommState> comm_;
  Options options_;
  Transport& transport_;
  std::unique_ptr<Region> region_;  // [2 turns][R sources] places, then as many to send from
  std::uint64_t rounds_done_ = 0;
  std::uint64_t own_rounds_ = 0;
  bool sent_ = false;
  std::vector<Message> rest_;  // of messages that take more than one round
  Message to_self_;
  std::vector<bool> masked_;
  std::vector<std::int64_t> waited_us_;
};

void bind_byte_exchange(nb::module_& module);

}  // namespace ferry::python
