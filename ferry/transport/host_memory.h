// Memory of one process that the other processes of its host can map. It has no name in any file
// system: who is told process and descriptor finds it under /proc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "ferry/transport/unique_fd.h"

namespace ferry {

/// Equal texts: the processes share a host, and can map each other's HostMemory. (Containers with
/// processes or networks of their own count as hosts of their own.)
std::string this_host();

/// Zeroed, page aligned, free of cost until touched. Lives until the last process that has it
/// mapped lets go. Movable, not copyable.
class HostMemory {
 public:
  struct Name {
    std::int32_t process = 0;
    std::int32_t descriptor = -1;
  };

  HostMemory() = default;
  /// Makes it; only while this object lives can others attach. Throws Error.
  explicit HostMemory(std::size_t bytes);
  /// What another process of this host made. Throws Error that says why not.
  HostMemory(const Name& name, std::size_t bytes);
  ~HostMemory();

  HostMemory(HostMemory&& other) noexcept;
  HostMemory& operator=(HostMemory&& other) noexcept;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }

  Name name() const;

 private:
  void map(std::size_t bytes);

  UniqueFd file_;
  std::span<std::byte> bytes_;
};

}  // namespace ferry
