// A row of the table of transports. Each transport's .cpp exports one function,
// `TransportEntry <name>_transport()`; ferry_transport(<name>) in CMakeLists.txt puts it into the
// table.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/join.h"
#include "ferry/launch.h"
#include "ferry/transport/byte_stream.h"

namespace ferry {

using RankBody = std::function<int(Transport&)>;

/// One rank on its way into a group. What is common to all transports (who is there, do they agree)
/// is done by join() and split(), which carry a card from every rank to all others.
class Joiner {
 public:
  virtual ~Joiner() = default;

  /// What the others must know of this rank. Called once, first.
  virtual Bytes card() = 0;

  /// `cards[r]` is rank r's; all ranks have the same. Returns this rank's end by the deadline, or
  /// throws TransportError.
  virtual std::unique_ptr<Transport> join(std::span<const Bytes> cards, Deadline deadline) = 0;
};

struct TransportEntry {
  std::string_view name;
  std::string_view about;         // one line: what it is
  std::string_view (*why_not)();  // why it cannot be used on this machine; empty if it can
  std::unique_ptr<Joiner> (*joiner)(const JoinOptions& options);
  int (*run)(const LaunchOptions& options, const RankBody& body);  // starts ranks that join
  bool load_store = false;                                         // Capabilities::load_store
  bool joins_world =
      false;  // run() can use ranks that somebody else started (LaunchOptions::world)
};

/// All that this build knows, best first, whether or not this machine can use them. Asking
/// why_not() may load a library: only of what is wanted.
std::span<const TransportEntry> known_transports();

/// Throws ConfigError for an unknown or unavailable transport.
const TransportEntry& find_transport(std::string_view name);

/// The host of each rank as NetworkTransport takes them: `found`, unless `ranks_per_host` is set.
std::vector<std::string> hosts_of(std::vector<std::string> found, int ranks_per_host);

/// What join() needs of the options of a launch, for one rank.
JoinOptions join_options(const LaunchOptions& options, Rank rank);

/// Runs the body; when it throws, the others get its reason as an abort.
int run_joined(Transport& transport, const RankBody& body);

/// The message of an exception.
std::string describe(const std::exception_ptr& failure);

}  // namespace ferry
