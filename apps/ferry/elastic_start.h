// How a process comes to a group of ranks that come and go: as one that begins it, or as a
// newcomer.
#pragma once

#include <memory>

#include "apps/ferry/common_options.h"
#include "ferry/runtime/elastic_group.h"
#include "ferry/tcp_store.h"

namespace ferry {

/// The store that the group meets at, which rank 0 serves as long as this lives, and what this
/// process is.
struct ElasticStart {
  std::unique_ptr<TcpStore> store;
  ElasticOptions options;  ///< but for the agreement, which the open model has
};

/// Goes to the store. The first process that says it is a certain rank of those that the group
/// begins with is that rank, all others are newcomers. Sets run.launch.ranks to how many began.
/// Throws ConfigError for options that do not go with it, TransportError where rank 0 does not
/// come.
ElasticStart start_elastic(RunOptions& run);

}  // namespace ferry
