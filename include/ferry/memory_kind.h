// Where memory lies, and from when on it may be read: what a view says besides its address.
#pragma once

#include <cstdint>
#include <string_view>

namespace ferry {

enum class MemoryKind : std::uint8_t {
  host,         ///< ordinary memory of this process; pages that nobody touches cost nothing
  host_pinned,  ///< the same, locked for a device or a network: every reserved byte costs memory
  device        ///< of a device: the host cannot read it
};

constexpr std::string_view memory_kind_name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::host:
      return "host";
    case MemoryKind::host_pinned:
      return "host_pinned";
    case MemoryKind::device:
      return "device";
  }
  return "?";
}

/// Where some rows lie. The default is what every caller on the host has: readable now.
struct MemoryPlace {
  MemoryKind kind = MemoryKind::host;
  int device = 0;         ///< its number, where kind is not host
  void* queue = nullptr;  ///< not null: valid for work that is put on this queue from now on

  friend bool operator==(const MemoryPlace&, const MemoryPlace&) = default;
};

}  // namespace ferry
