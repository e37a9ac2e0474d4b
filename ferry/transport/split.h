// Splitting a group, for any transport: the ranks tell each other over their group what they would
// tell each other over a store.
#pragma once

#include <memory>

#include "ferry/join.h"
#include "ferry/transport.h"

namespace ferry {

/// Transport::split() for `parent`; `own`: what this rank joined with, which the new group's ranks
/// take over except for rank, size and name.
std::unique_ptr<Transport> split_group(Transport& parent,
                                       const JoinOptions& own,
                                       int color,
                                       int key);

}  // namespace ferry
