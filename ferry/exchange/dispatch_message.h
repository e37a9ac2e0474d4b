// What ranks tell each other before rows are taken: which tokens go to which slots, and the weights
// that the other side needs. What is received is checked before it is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/peer_link.h"

namespace ferry {

/// The dispatch messages of one exchange, out and in.
class DispatchMessages {
 public:
  DispatchMessages(LaneState& lane, PeerLink& link);

  /// Puts the message for `peer`: `puts` puts carry rows for it.
  void send(Rank peer, const RoutedTokens& tokens, std::uint32_t puts);

  /// Waits for the message of `home` and checks that nothing in it leads outside our buffers.
  void receive(Rank home);

  /// The rows of `home` will not come: from here on it is as if it had sent no token, so that its
  /// group is told so rather than given results of nothing.
  void forget(Rank home);

  /// Throws where ranks that hold the same tokens do not say so.
  void check_groups() const;

  /// As received; a masked rank's is empty.
  const DispatchMessage& of(Rank home) const { return messages_[static_cast<std::size_t>(home)]; }

  std::uint32_t tokens_of(Rank home) const { return tokens_of_[static_cast<std::size_t>(home)]; }

  /// In the inbox, whatever stands there.
  const DispatchHeader& header_of(Rank home) const;

  TransportError contradiction(Rank home) const;

 private:
  std::uint32_t append_reduce_entries(Rank peer, const RoutedTokens& tokens, std::byte*& out) const;
  void append_row_weights(Rank peer, const RoutedTokens& tokens, std::byte*& out) const;
  std::size_t write(Rank peer, const RoutedTokens& tokens, std::uint32_t puts);
  std::span<std::uint32_t> counts_of(Rank home);
  bool sane(const DispatchHeader& header) const;
  bool sane(const DispatchMessage& message) const;
  bool count_records(Rank home, std::uint32_t tokens, std::span<const Record> records);

  LaneState& lane_;
  PeerLink& link_;
  std::vector<DispatchMessage> messages_;  // [R]
  std::vector<std::uint32_t> counts_;      // [R][L] of the messages
  std::vector<std::uint32_t> tokens_of_;   // [R]
};

}  // namespace ferry
