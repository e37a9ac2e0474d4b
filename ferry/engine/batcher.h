// Rank 0's plan: which request runs where, and how many of its tokens in the next step. Pure
// logic; no ranks, no model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/engine/step_record.h"

namespace ferry {

struct BatcherOptions {
  int ranks = 1;
  int max_sequences = 16;        ///< that run at once on one rank
  int max_tokens = 512;          ///< of one rank in one step
  std::size_t record_bytes = 0;  ///< that one rank's step record may have
};

/// Requests wait in one queue, in order. The first goes to the rank that runs the fewest sequences
/// (then the fewest prompt tokens still to run, then the lowest number) as soon as one has room; no
/// request overtakes another. On each rank, sequences that are past their prompt run one token each
/// in every step; what is left of max_tokens goes to prompts in order of admission, cut into chunks
/// where they do not fit. A rank never runs more sequences than max_tokens.
class Batcher {
 public:
  /// REQUIRES: all options positive; record_bytes holds any request that enqueue() will see.
  explicit Batcher(const BatcherOptions& options);

  void enqueue(std::uint64_t id, Request request);

  /// Nothing waits and nothing runs.
  bool idle() const;

  /// The next step: one record a rank; every rank gets one, also when it has nothing to run.
  std::vector<StepRecord> plan();

  /// What the last plan held, over all ranks.
  int planned_prompt_tokens() const { return planned_prompt_tokens_; }

  int planned_decode_tokens() const { return planned_decode_tokens_; }

  /// A record that ends the loop of every rank. REQUIRES: idle().
  std::vector<StepRecord> plan_stop();

  /// Takes in what a rank's step gave: finished sequences make room.
  void finish_step(Rank rank, const StepResult& result);

 private:
  struct Sequence {
    std::uint64_t id = 0;
    std::size_t prompt_left = 0;  ///< tokens of the prompt that no step has run yet
  };

  struct RankLoad {
    std::vector<Sequence> sequences;  ///< in order of admission
    std::size_t record_left = 0;      ///< bytes for admissions in the record being planned

    std::size_t prompt_left() const;
  };

  RankLoad* rank_for(const Admission& admission);
  void admit(std::vector<StepRecord>& records);
  void plan_rank(RankLoad& load, StepRecord& record);

  BatcherOptions options_;
  std::deque<Admission> queue_;
  std::vector<RankLoad> loads_;  // [ranks]
  std::uint64_t next_step_ = 0;
  int planned_prompt_tokens_ = 0;
  int planned_decode_tokens_ = 0;
};

}  // namespace ferry
