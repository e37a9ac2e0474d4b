// What an engine is inside: the parts that one epoch's ranks share, and what outlives it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ferry/engine/batcher.h"
#include "ferry/engine/engine.h"
#include "ferry/engine/exchange_waits.h"
#include "ferry/engine/inbox.h"
#include "ferry/engine/prompt_pacer.h"
#include "ferry/engine/sequences.h"
#include "ferry/engine/step_link.h"
#include "ferry/engine/survivors.h"

namespace ferry {

/// Threads as Engine's. engine_steps.cpp has the loop, engine_epochs.cpp the way to other ranks.
class Engine::Impl {
 public:
  using OnToken = std::function<void(const TokenEvent&)>;

  Impl(const EngineOptions& options, Decoder& decoder, Transport& transport);

  void follow(Epochs& epochs, bool comes_late);
  std::optional<std::uint64_t> submit(Request request);
  void check(const Request& request) const;
  Inbox& inbox();
  void run(const OnToken& on_token);
  EngineStats stats() const;
  std::int64_t kv_capacity() const;
  bool forget_prefixes();
  Balancer* balancer();

 private:
  using Clock = std::chrono::steady_clock;

  /// Of a request that has given no token yet.
  struct Begun {
    Clock::time_point when;
    std::size_t cached_tokens = 0;
  };

  /// What this rank has to do with the others of one epoch. Made anew for each: nothing that is
  /// kept of a rank can meet another one.
  struct Members {
    Members(const EngineOptions& options,
            std::size_t record_bytes,
            Decoder& own_decoder,
            Transport& own_transport);

    Decoder& decoder;
    Transport& transport;
    Survivors survivors;
    StepLink link;
    ExchangeWaits waits;  // on rank 0 only
    std::optional<Balancer> balancer;
    std::size_t lost = 0;  // on rank 0 only: ranks that the batcher knows to be gone
  };

  enum class After : std::uint8_t { step, stop, next_epoch };

  bool leads() const { return rank_ == 0; }

  std::size_t record_bytes() const;
  std::size_t most_live() const;

  int groups() const { return ranks_ / tp_; }

  std::string beside_positions() const;

  /// Whether the rank is the first of its group. All of a group run the same sequences to the same
  /// tokens; what this one says counts.
  bool speaks(Rank rank) const { return rank % tp_ == 0; }

  After run_step(const OnToken& on_token);
  StepRecord receive_record();
  StepResult run_record(StepRecord record);
  void take_mail();
  void plan_step();
  void send_records();
  void take_result(Rank rank, StepResult result);
  void receive_results();
  void look_for_straggler();
  void take_loads();
  void lose_groups();
  void check_same_tokens(Rank rank, const StepResult& found) const;
  void count_step(std::chrono::nanoseconds time);
  void deliver(const OnToken& on_token);
  void deliver(StepResult& result, const OnToken& on_token);
  void keep(PromptResult& part);

  bool wants_next_epoch();
  bool may_go_on(const TransportError& error) const;
  bool next_epoch(const std::optional<TransportError>& error, const OnToken& on_token);
  void leave_epoch();
  void enter_epoch();
  void regroup(const Epoch& epoch, std::size_t known_lost);
  void settle(const OnToken& on_token);

  EngineOptions options_;
  int max_context_;
  int vocab_;
  int tp_;  // ranks of a group, which all run the same sequences
  Rank rank_;
  int ranks_;
  const StateLayout layout_;
  Sequences sequences_;
  Batcher batcher_;                 // used on rank 0 only
  Inbox inbox_;                     // used on rank 0 only
  PromptPacer pacer_;               // on rank 0 only
  std::optional<Members> members_;  // none between two epochs
  Clock::time_point told_sources_;  // to rank 0; at first long ago
  EngineStats stats_;
  bool open_ = false;  // on rank 0: more requests may come
  // On rank 0 only, of requests that have given no token yet:
  std::unordered_map<std::uint64_t, PromptResult> prompts_;
  std::unordered_map<std::uint64_t, Begun> began_;
  std::uint64_t step_ = 0;
  // Of the step that was planned last, on rank 0 only: the records by group, which groups' results
  // have been taken, and those that no caller has heard of yet.
  std::vector<StepRecord> records_;
  std::vector<bool> taken_;
  std::vector<StepResult> results_;
  std::optional<StepResult> answered_;  // what this rank's last step gave
  Epochs* epochs_ = nullptr;
  std::optional<Epoch> entering_;  // an epoch that is there, but not settled
  int failures_ = 0;               // epochs that ended since a step came to its end
};

}  // namespace ferry
