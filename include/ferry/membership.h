// Who is in a group, from epoch to epoch: at a boundary that all agree on, survivors and newcomers
// meet again through the store and get new transports with new ranks and a new size.
//
// One of the survivors leads: it says by publish() who is in the next epoch, and the others, the
// newcomers too, come by next(). Which one leads is the caller's to say (rank 0; the lowest
// survivor where that is gone). What regions hold moves by hand: a region over memory of the caller
// is registered again, and the memory is as it was.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ferry/export.h"
#include "ferry/join.h"
#include "ferry/store.h"
#include "ferry/transport.h"

namespace ferry {

/// One process's view. Borrows the store, which must outlive it, and through which all epochs of a
/// group go. Threads: one at a time. Errors: as join(); a membership is usable after one.
class FERRY_API Membership {
 public:
  /// A founder: one of the `options.size` ranks that start the group. next() makes epoch
  /// `options.epoch`, for which nothing is published.
  static Membership found(const JoinOptions& options, Store& store);

  /// A newcomer: announces itself and has no rank before next() has been called. Of the options,
  /// rank, size and epoch are of no account.
  static Membership announce(const JoinOptions& options, Store& store);

  /// This process's name in the group, as newcomers() and members() have it: "founder 0",
  /// "newcomer 3".
  const std::string& name() const { return name_; }

  /// The latest epoch that this process is in, and its members in order of rank.
  std::uint64_t epoch() const { return epoch_; }

  const std::vector<std::string>& members() const { return members_; }

  /// The latest epoch that next() has taken part in, made or not.
  std::uint64_t tried() const { return tried_; }

  /// The leader: who has been announced and was in no published epoch yet.
  std::vector<std::string> newcomers();

  /// The leader: the next epoch has these members, `survivors` (ranks of the latest epoch that it
  /// is in) before `newcomers`. After an epoch whose making failed this publishes one more. Throws
  /// ConfigError where the leader is not among them or one stands there twice.
  void publish(std::span<const Rank> survivors, std::span<const std::string> newcomers);

  /// Who is known to come no more, by name: next() does not wait for them. Called within next().
  void watch(std::function<bool(const std::string&)> has_left) { has_left_ = std::move(has_left); }

  /// Everybody: waits for what is published next and joins it; null where this process is not in
  /// it. The old transport may be destroyed before or after. Throws as join() by
  /// options.join_timeout, and names who was missing. Then the old epoch still holds, and next()
  /// takes part in the one that is published after.
  std::unique_ptr<Transport> next();

 private:
  Membership(const JoinOptions& options, Store& store, std::string name)
      : options_(options), store_(&store), name_(std::move(name)) {}

  std::vector<std::string> wait_for_members();
  std::string key(const std::string& what) const;

  JoinOptions options_;
  Store* store_;
  std::string name_;
  std::uint64_t epoch_ = 0;
  std::uint64_t tried_ = 0;  // the latest epoch that next() has taken part in, made or not
  bool is_founder_ = false;
  bool is_invited_ = true;
  std::vector<std::string> members_;
  std::function<bool(const std::string&)> has_left_;
  std::uint64_t published_ = 0;  // the leader: its latest epoch
};

}  // namespace ferry
