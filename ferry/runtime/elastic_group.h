// An engine's ranks that come and go while it runs: one rank's way from epoch to epoch, over a
// Membership for the meeting and a Model for what is made anew (docs/design.md, "Membership").
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/engine/epochs.h"
#include "ferry/join.h"
#include "ferry/membership.h"
#include "ferry/runtime/member_board.h"
#include "ferry/runtime/model.h"
#include "ferry/store.h"

namespace ferry {

/// How large the group shall be, and who is in it. On rank 0. Threads: any.
class GroupSize {
 public:
  static constexpr int kMost = 1024;

  struct State {
    int wanted = 1;
    std::uint64_t epoch = 0;
    std::vector<std::string> members;  ///< by rank
    std::vector<std::string> waiting;  ///< have come, and are in no epoch yet
  };

  explicit GroupSize(int wanted) { state_.wanted = wanted; }

  /// Between two steps as many of those that wait are taken in as that leaves room for, or the
  /// highest ranks leave. Throws ConfigError for less than one or more than kMost.
  void want(int ranks);

  State state() const;
  int wanted() const;

  // The group's own.
  void set_members(std::uint64_t epoch, const std::vector<std::string>& members);
  void set_waiting(const std::vector<std::string>& waiting);

 private:
  mutable std::mutex mutex_;  // guards what follows
  State state_;
};

struct ElasticOptions {
  /// How this rank joins; size: of the founders. join_timeout is how long a boundary waits for
  /// anybody, and how long a newcomer waits to be taken in.
  JoinOptions join;
  bool founder = true;  ///< else a newcomer, and join.rank is of no account
  /// How often rank 0 looks for newcomers.
  std::chrono::nanoseconds look_every = std::chrono::milliseconds(100);
  /// What each epoch's transport is used through; empty: nothing.
  std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> through = {};
};

/// One rank's. Founder 0 leads: it stays rank 0 as long as there is a group. Threads: one at a
/// time, but for size().
class ElasticGroup final : public Epochs {
 public:
  /// Borrows model and store. Loads the dense weights, and for a newcomer the experts of the rank
  /// that it will most likely be; only then announces it.
  ElasticGroup(const Model& model, const ElasticOptions& options, Store& store);

  /// The epoch that this rank begins with; nothing where it was not taken in. Throws as
  /// Membership::next().
  std::optional<Epoch> first();

  bool wants_next(const RankSet& gone) override;
  std::optional<Epoch> next(const EpochEnd& end) override;

  /// This rank ends by an error: nobody is to wait for it.
  void give_up(const std::string& why) noexcept;

  GroupSize& size() { return size_; }

 private:
  bool leads() const { return options_.founder && options_.join.rank == 0; }

  Epoch hand_out();
  void leave_last(const EpochEnd& end);
  void make_decoder();
  std::unique_ptr<Transport> meet();
  void call_members();
  void choose_members(const std::set<std::string>& came);
  void blame(const TransportError& error);
  void tell_size_with_next();
  std::vector<std::string> look_for_newcomers();

  const Model& model_;
  const ElasticOptions options_;
  ThreadPool pool_;
  std::shared_ptr<const DenseWeights> dense_;
  ExpertWeights held_;  // between two epochs, and before the first
  Membership membership_;
  MemberBoard board_;
  GroupSize size_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<std::string> handed_out_;  // the members of the epoch that the engine had last
  std::vector<std::string> dead_;        // members that this rank knows to be dead
  // Of the leader:
  std::vector<std::string> party_;   // who is expected at the next boundary
  std::set<std::string> dismissed_;  // who left since the group is to be smaller
  std::set<std::string> refused_;    // newcomers with whom no epoch could be made
  std::vector<std::string> waiting_;
  int told_size_ = 0;  // the last that tell_size_with_next() told
  std::chrono::steady_clock::time_point next_look_;
};

/// Runs an engine on this rank of an elastic group until the group ends, or goes on without this
/// rank. `lead` as of Model::run_engine(); it also gets the size, which outlives the call. Returns
/// the exit status. Throws what ends the rank; where that is rank 0 the others end too.
int run_elastic(const Model& model,
                const ElasticOptions& options,
                Store& store,
                const std::function<int(Engine&, GroupSize&)>& lead);

}  // namespace ferry
