// A build without libfabric: transport fabric is off, and with it what would call this.
#include "apps/ferry/link.h"
#include "ferry/core/error.h"

namespace ferry {

std::unique_ptr<Link> raw_fabric_link(Transport&, const LaunchOptions&, std::size_t) {
  fail<ConfigError>("libfabric is not in this build; install libfabric-dev");
}

}  // namespace ferry
