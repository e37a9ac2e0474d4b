// Dispatch, the sending side: the tokens go once, in wire type, into this rank's stage. Peers that
// read our memory take their rows from there; to others the rows are pushed into their mirror of
// our stage, to another host once for all its ranks.
#pragma once

#include <cstdint>

#include "ferry/exchange/peer_link.h"

namespace ferry {

class TokenSender {
 public:
  TokenSender(LaneState& lane, PeerLink& link, DataPlane& plane);

  /// Where peers read this rank's tokens, by token.
  MutableRowsView stage() const;

  /// Copies what does not lie there already.
  void stage_rows(const RoutedTokens& tokens);
  /// Puts that will carry rows to `peer`, or the one by which its taker says that they are there.
  std::uint32_t num_row_puts(Rank peer) const;
  void push_rows(Rank peer);

 private:
  template <class Push>
  void for_pushed_rows(Rank peer, Push push) const;

  LaneState& lane_;
  PeerLink& link_;
  DataPlane& plane_;
};

}  // namespace ferry
