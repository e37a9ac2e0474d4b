// How ranks find out over a store who they are: each leaves a card, rank 0 looks at all of them,
// and its verdict is the same for everybody.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ferry/join.h"
#include "ferry/store.h"
#include "ferry/transport/byte_stream.h"

namespace ferry {

/// Rank 0 gives its verdict at its deadline; the others may have begun a little earlier.
inline constexpr std::chrono::seconds kVerdictMargin{1};

/// "rank 2 cannot join: why".
[[noreturn]] void fail_joining(Rank rank,
                               TransportError::Kind kind,
                               Rank about,
                               const std::string& why);

/// The second meeting of ranks that have all met once. A rank that is through may at once abort or
/// leave, which the others must not take for a failure of the meeting: where that happens they are
/// through as well, and their next call says it. `timed_out`: not all came in time.
WaitResult meet_again(Transport& transport, Deadline deadline);

/// One rank's part in it. Borrows options and store.
class RollCall {
 public:
  RollCall(const JoinOptions& options, Store& store, Deadline deadline)
      : options_(options), store_(store), deadline_(deadline) {}

  /// Gives the own card and gets those of all ranks. Throws as join() does.
  std::vector<Bytes> gather(const Bytes& card);

  /// With these cards the rank has become part of the group.
  void report();

  /// It has not, and the others shall know why. Rank 0, which may serve the store, stays until they
  /// have heard (a second at most).
  void give_up(const TransportError& error) noexcept;

  /// What this rank's error comes from, where it is only that another rank has given up.
  TransportError cause(const TransportError& error) noexcept;

  /// Of the ranks that have not reported in order: the first, with why, as an error.
  [[noreturn]] void fail_about_missing();

  /// Forgets what the ranks have said. Rank 0, once all have reported.
  void forget();

 private:
  std::vector<Bytes> judge(const Bytes& card);
  std::optional<Store::Value> await(const std::string& said, Rank rank, Deadline deadline);
  std::vector<Bytes> hear_verdict();
  std::string key(const char* what, Rank rank) const;

  const JoinOptions& options_;
  Store& store_;
  const Deadline deadline_;
  Bytes nonce_;  // tells two processes apart that say that they are the same rank
};

}  // namespace ferry
