// Ranks that are threads of this process. The embedded default, and the reference for every test.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "ferry/export.h"
#include "ferry/transport.h"

namespace ferry {

/// The ends of a new group, one per rank, each to be used by one thread. Groups know nothing of
/// each other. A rank that destroys its end while an exception unwinds aborts the group.
FERRY_API std::vector<std::unique_ptr<Transport>> make_inproc(
    int ranks, std::chrono::nanoseconds start_timeout = std::chrono::seconds(30));

}  // namespace ferry
