// How one process of a host gives a descriptor to others that it did not start: over a Unix socket
// without a name in any file system, to those that prove that they know a secret and are the
// processes that they say they are.
#pragma once

#include <span>
#include <string>

#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/sockets.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

/// Rank 0's side. The socket is gone when the object or the process is.
class Handover {
 public:
  /// Opens the door. Throws Error.
  Handover();

  /// What the others need to come here, the secret included; for nobody else's eyes.
  Bytes invitation() const;

  /// Gives the descriptor to ranks 1.. once each; `ranks[r]` is the process that rank r is. Others
  /// are turned away. Throws TransportError that names a rank that died or did not come.
  void give(const UniqueFd& descriptor, std::span<const ProcessId> ranks, Deadline deadline);

 private:
  explicit Handover(UniqueFd listener);

  std::string secret_;
  Bytes address_;
  Doorman doorman_;
};

/// The other ranks' side. `giver`: the process that must be at the other end. Throws TransportError
/// about rank 0.
UniqueFd receive_descriptor(std::span<const std::byte> invitation,
                            const ProcessId& giver,
                            Rank own,
                            Deadline deadline);

}  // namespace ferry
