// Two ranks and what lies between them: the transport as we have it, and the library under it by
// itself, moved through the same measurement by `ferry bench link`.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "ferry/launch.h"

namespace ferry {

/// Between ranks 0 and 1. Both call the same functions with the same arguments in the same order.
/// All throw Error.
class Link {
 public:
  virtual ~Link() = default;

  virtual std::string_view name() const = 0;
  /// So many bytes from rank 0 to rank 1 and back, each way noticed by its receiver.
  virtual void round_trip(std::size_t bytes) = 0;
  /// `count` times so many bytes from rank 0 to rank 1, one behind the other; then one answer.
  virtual void stream(std::size_t bytes, int count) = 0;
};

/// put and wait of the transport.
std::unique_ptr<Link> transport_link(Transport& transport, std::size_t most_bytes);

/// fi_writedata and its completions, on an endpoint of its own of options.fabric_provider. Throws
/// ConfigError where libfabric is not in this build.
std::unique_ptr<Link> raw_fabric_link(Transport& transport,
                                      const LaunchOptions& options,
                                      std::size_t most_bytes);

/// What is under the transport that `options` name: fi_writedata, MPI_Send and MPI_Recv, or a
/// copy and an atomic addition.
std::unique_ptr<Link> raw_link(Transport& transport,
                               const LaunchOptions& options,
                               std::size_t most_bytes);

}  // namespace ferry
