#include "ferry/transport/registry.h"

#include "ferry/core/error.h"

namespace ferry {

// transports.inc is written by CMake: a line for each transport, best first.
#define FERRY_TRANSPORT(name) TransportEntry name##_transport();
#define FERRY_MISSING_TRANSPORT(name, reason)
#include "transports.inc"
#undef FERRY_TRANSPORT
#undef FERRY_MISSING_TRANSPORT

namespace {

const std::vector<TransportEntry>& table() {
  static const std::vector<TransportEntry> entries = {
#define FERRY_TRANSPORT(name) name##_transport(),
#define FERRY_MISSING_TRANSPORT(transport, reason)         \
  {.name = #transport,                                     \
   .about = "",                                            \
   .why_not = []() -> std::string_view { return reason; }, \
   .joiner = {},                                           \
   .run = {},                                              \
   .load_store = false,                                    \
   .joins_world = false},
#include "transports.inc"
#undef FERRY_TRANSPORT
#undef FERRY_MISSING_TRANSPORT
  };
  return entries;
}

}  // namespace

std::span<const TransportEntry> known_transports() { return table(); }

const TransportEntry& find_transport(std::string_view name) {
  for (const TransportEntry& entry : table()) {
    if (entry.name != name) continue;
    if (const std::string_view reason = entry.why_not(); !reason.empty()) {
      fail<ConfigError>("transport {} is not available: {}", name, reason);
    }
    return entry;
  }
  std::string known;
  for (const TransportEntry& entry : table())
    if (entry.why_not().empty())
      known += known.empty() ? entry.name : fmt::format(", {}", entry.name);
  fail<ConfigError>("unknown transport \"{}\"; this build has {}", name, known);
}

std::vector<TransportInfo> list_transports() {
  std::vector<TransportInfo> infos;
  for (const TransportEntry& entry : table()) {
    const std::string_view reason = entry.why_not();
    infos.push_back(
        {entry.name, reason.empty(), reason.empty() ? entry.about : reason, entry.load_store});
  }
  return infos;
}

std::vector<std::string> hosts_of(std::vector<std::string> found, int ranks_per_host) {
  if (ranks_per_host == 0) return found;
  for (std::size_t r = 0; r < found.size(); ++r)
    found[r] = std::to_string(r / static_cast<std::size_t>(ranks_per_host));
  return found;
}

std::string describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace ferry
