// A row of the table of transports. Each transport's .cpp exports one function,
// `TransportEntry <name>_transport()`; ferry_transport(<name>) in CMakeLists.txt puts it into the
// table.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/transport/launch.h"

namespace ferry {

using RankBody = std::function<int(Transport&)>;

struct TransportEntry {
  std::string_view name;
  std::string_view about;         // one line: what it is
  std::string_view (*why_not)();  // why it cannot be used on this machine; empty if it can
  int (*run)(const LaunchOptions& options, const RankBody& body);
  bool load_store = false;   // Capabilities::load_store
  bool joins_world = false;  // can use ranks that somebody else started (LaunchOptions::world)
};

/// The host of each rank as NetworkTransport takes them: `found`, unless the options say otherwise.
std::vector<std::string> hosts_of(std::vector<std::string> found, const LaunchOptions& options);

/// The message of an exception.
std::string describe(const std::exception_ptr& failure);

}  // namespace ferry
