// Which ranks still take part. With a backend that masks dead ranks the engine goes on without
// them; rank 0, which plans the steps, has to live.
#pragma once

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/engine/step_record.h"
#include "ferry/model/decoder.h"
#include "ferry/transport.h"

namespace ferry {

/// One rank's view. What it finds out travels to rank 0 with its results, and from there to all
/// with the next records. Borrows decoder and transport. Threads: one at a time.
class Survivors {
 public:
  /// `go_on`: else the end of any rank is an error.
  Survivors(Decoder& decoder, Transport& transport, bool go_on);

  bool go_on() const { return go_on_; }

  bool lives(Rank rank) const { return !gone_.test(static_cast<std::size_t>(rank)); }

  const RankSet& gone() const { return gone_; }

  /// Takes notice of ranks that others, or this one's exchanges, found to be gone. Throws
  /// TransportError where it cannot go on: rank 0 or this one is among them, or an expert is lost.
  void lose(const RankSet& ranks);
  void look();

  /// The result of a call of the transport. Where the call fails because a rank is gone that can be
  /// done without, it is made again, without that one.
  template <class Call>
  auto without_the_gone(Call call) {
    for (;;) {
      try {
        return call();
      } catch (const TransportError& e) {
        if (!lose_after(e)) throw;
      }
    }
  }

 private:
  bool lose_after(const TransportError& error);
  void lose(Rank rank);

  Decoder& decoder_;
  Transport& transport_;
  bool go_on_;
  RankSet gone_;
};

}  // namespace ferry
