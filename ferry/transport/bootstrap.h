// How ranks that know nothing but rank 0's address become a group: they meet at rank 0, show that
// they belong together, and leave with a connection to every other rank.
#pragma once

#include <string>
#include <vector>

#include "ferry/agreement.h"
#include "ferry/transport.h"
#include "ferry/transport/mesh.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

struct MeetingOptions {
  Rank rank = 0;
  int size = 1;
  std::string host;  ///< where rank 0 listens
  int port = 0;
  UniqueFd listener;   ///< rank 0: instead of `host` and `port`, when they are already open
  std::string secret;  ///< the same on all ranks; must not be empty beyond loopback
  std::string node;    ///< this rank's host; ranks with equal texts share one
  Agreement agreement;
  Deadline deadline = kNoDeadline;
};

struct Meeting {
  std::vector<std::string> nodes;  ///< of each rank
  std::string own_host;            ///< this host's address as the others reach it, numeric
  Mesh mesh;
};

/// Meets the other ranks; all call it. The secret never travels: a joining rank proves that it has
/// it by an HMAC over random bytes that it is sent, checked in constant time. Bytes of strangers
/// are turned away without any effect on the ranks.
///
/// Throws on every rank, with the same reason and by the deadline (at most a second later), a
/// TransportError: when a rank is missing, two have the same number, or ranks do not agree (which
/// names them and what differs). A rank that cannot reach rank 0, or has another secret, hears of
/// it; the others then miss it. ConfigError: no secret where one is needed.
Meeting meet(MeetingOptions options);

}  // namespace ferry
