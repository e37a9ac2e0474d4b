// A connection between every two ranks, for what is rare and small: addresses, barriers, leaving,
// giving up. A connection that ends is how a rank's death shows. Not thread safe.
#pragma once

#include <sys/types.h>

#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

class Mesh {
 public:
  /// `sockets[r]` is the connection to rank r; the own one is not valid.
  Mesh(Rank rank, std::vector<UniqueFd> sockets);
  Mesh(Mesh&&) noexcept = default;
  Mesh& operator=(Mesh&&) noexcept = default;

  Rank rank() const { return rank_; }

  int size() const { return static_cast<int>(links_.size()); }

  /// Queues a message; goes nowhere when the connection has ended. Never blocks.
  void send(Rank peer, std::span<const std::byte> message);

  /// Moves bytes; sleeps at most `at_most` when there is nothing to move.
  void poll(std::chrono::nanoseconds at_most);

  /// The next message of a peer, in the order they were sent.
  std::optional<Bytes> take(Rank peer);

  /// Whether the connection has ended and all its messages are taken.
  bool ended(Rank peer) const;

  /// Whether messages wait for a connection that does not take them.
  bool has_unsent() const;

  /// Every rank gives `own` and gets what all gave, in order of ranks. Throws TransportError.
  std::vector<Bytes> all_gather(std::span<const std::byte> own, Deadline deadline);

 private:
  struct Link {
    UniqueFd socket;
    Bytes in, out;
    std::size_t sent = 0;  // of `out`
    std::deque<Bytes> messages;
    bool waits_to_send = false;
  };

  void receive(Link& link);
  void push(Rank peer);
  void close(Link& link);

  Rank rank_;
  std::vector<Link> links_;
  UniqueFd epoll_;
};

}  // namespace ferry
