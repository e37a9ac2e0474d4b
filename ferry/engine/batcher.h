// Rank 0's plan: which request runs where, and how many of its tokens in the next step. Pure
// logic; no ranks, no model. A group is the ranks that run the same sequences: one, or tp of them.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/engine/fair_queue.h"
#include "ferry/engine/group_memory.h"
#include "ferry/engine/ngram_drafter.h"
#include "ferry/engine/step_record.h"
#include "ferry/state/state_layout.h"

namespace ferry {

struct BatcherOptions {
  int groups = 1;
  int max_sequences = 16;              ///< that run at once on one group
  int max_running = INT_MAX;           ///< and over all groups
  int max_tokens = 512;                ///< of one group in one step
  StateLayout layout;                  ///< what a sequence keeps; by default nothing
  std::size_t state_bytes = SIZE_MAX;  ///< that the sequences of one group may keep
  std::size_t record_bytes = 0;        ///< that one group's step record may have
  bool keep_prefixes = false;          ///< pages stay behind sequences, for others
  int max_context = INT_MAX;           ///< positions of a sequence
  DraftOptions drafts;
};

/// Tokens of a sequence's prompt that need not run, since their pages were kept.
struct PrefixReuse {
  std::uint64_t id = 0;
  std::size_t tokens = 0;  ///< all that were found so far
};

struct PrefixStats {
  std::uint64_t asked = 0;   ///< tokens of prompts that began to run
  std::uint64_t reused = 0;  ///< of these, found
};

struct DraftStats {
  std::uint64_t drafted = 0;   ///< tokens that ran since they might come next
  std::uint64_t accepted = 0;  ///< of these, that stayed
};

/// Requests wait in one fair queue. The first goes to the group that runs the fewest sequences
/// (then the fewest prompt tokens still to run, then the lowest number) as soon as one has room;
/// nobody overtakes it there.
///
/// On each group, sequences that are past their prompt run one token each in every step. Prompts
/// share what is left of max_tokens, cut into chunks where they do not fit: half goes to the prompt
/// that has waited longest, the rest to the shortest ones. A group never runs more sequences than
/// max_tokens.
///
/// A sequence has the memory for its prompt from when it starts and takes more as it grows, page by
/// page as the layout says: where layers see a window alone, less than its length. Where a group
/// has none left the youngest sequence gives up its state and later runs again from its first
/// token, which changes none of its tokens. The oldest always goes on.
///
/// Where prefixes are kept, a sequence begins behind the pages of its tokens that its group has. It
/// goes to another group than the least busy one where it finds more, and that saves more prompt
/// tokens than the group has to run before. Of several that are about to compute the same page one
/// does, and the others wait for it.
///
/// With drafts, sequences that are past their prompt run those beside their one token: as long as
/// no request ends within, where the step has room (half of it is left to prompts), and no sequence
/// gives up its state for one. Where the model's own layer drafts, it does so behind the step that
/// gives a sequence's newest token, as far as there is memory; all ranks run as many passes of it
/// as the longest draft has tokens.
///
/// The sequences of a group that is gone wait anew, with the tokens they have given, and start over
/// on another group.
class Batcher {
 public:
  /// REQUIRES: all options positive; any request that enqueue() will see fits record_bytes, and its
  /// most_bytes() fit state_bytes.
  explicit Batcher(const BatcherOptions& options);

  void enqueue(Admission admission);

  /// True when the request was still waiting or running.
  bool cancel(std::uint64_t id);

  /// Nothing waits, nothing runs, and nothing has to be told.
  bool idle() const;

  /// The next step: one record a group; every group gets one, also when it has nothing to run.
  /// `prompt_tokens`: that a group may run at most in a step with decodes on any group.
  std::vector<StepRecord> plan(int prompt_tokens = INT_MAX);

  /// What the last plan held, over all groups.
  int planned_prompt_tokens() const { return planned_prompt_tokens_; }

  int planned_decode_tokens() const { return planned_decode_tokens_; }

  /// Prompt tokens of the group that got most.
  int most_prompt_tokens() const { return most_prompt_tokens_; }

  /// In the last plan, for the first time or anew: of sequences that never started over.
  const std::vector<PrefixReuse>& planned_reuse() const { return planned_reuse_; }

  /// A record that ends the loop of every group. REQUIRES: idle().
  std::vector<StepRecord> plan_stop();

  /// A record that takes every group over to the next epoch. It has no result: finish_step() is for
  /// plan()'s.
  std::vector<StepRecord> plan_next_epoch();

  /// Takes in what a group's step gave: finished sequences make room. What the group has lost is
  /// planned again. Returns how many finished.
  std::size_t finish_step(int group, const StepResult& result);

  /// The group runs nothing any more. Returns how many of its sequences will start over elsewhere.
  std::size_t lose_group(int group);

  /// The groups of the next epoch: each goes on as what it was in the last one, or is new (-1).
  /// What ran on groups that are not among them starts over. Returns how many sequences do.
  std::size_t regroup(std::span<const int> from);

  std::size_t waiting() const { return queue_.size(); }

  std::size_t running() const;

  /// Over all groups: of sequences, and of kept pages that no sequence uses.
  std::size_t used_bytes() const;
  std::size_t idle_bytes() const;

  /// No page is kept any more. False, and nothing done, while requests run or wait.
  bool forget_prefixes();

  PrefixStats prefix_stats() const { return prefix_stats_; }

  DraftStats draft_stats() const { return draft_stats_; }

  /// What a sequence of `positions` may need.
  std::size_t most_bytes(std::int64_t positions) const;

  std::uint64_t evictions() const { return evictions_; }

 private:
  struct Sequence {
    Admission admission;                 ///< with what it has given so far, to start it anew
    std::vector<std::int32_t> ids = {};  ///< its prompt, and what it has given
    std::int64_t prompt_left = 0;  ///< known tokens that no step has run yet, while in the prompt
    std::int64_t length = 0;       ///< positions of its state
    Holding memory = {};
    std::size_t reused = 0;       ///< tokens that it found kept
    bool evicted = false;         ///< it has no memory and waits
    bool restarted = false;       ///< it was evicted once
    std::int64_t planned = 0;     ///< of its tokens, in the step that was planned last
    bool planned_prompt = false;  ///< and whether they were prompt
    int drafted = 0;              ///< of those, its draft's
    int given = 0;                ///< tokens, in the step that ended last
    bool ended = false;           ///< with the last of them
    NgramDrafter drafter;
    DraftLength draft_length;                 ///< of those that the model makes
    std::vector<std::int32_t> foreseen = {};  ///< by the model, behind its newest token
    int asked = 0;                            ///< tokens of the next one, of the step planned last

    std::uint64_t id() const { return admission.id; }
  };

  struct GroupLoad {
    GroupMemory memory;
    std::vector<Sequence> sequences = {};  ///< in order of admission
    std::vector<std::uint64_t> dropped = {};
    bool gone = false;
    std::size_t record_left = 0;  ///< bytes for admissions in the record being planned

    std::int64_t prompt_left() const;
    bool all_started() const;
  };

  /// A group that a request may start on, and what it finds there.
  struct Place {
    GroupLoad* load = nullptr;
    PrefixIndex::Match match = {};
  };

  GroupLoad new_load() const;
  std::vector<StepRecord> empty_records();
  bool has_place(const GroupLoad& load, const Admission& admission) const;
  Place place_for(const Admission& admission, std::span<const std::int32_t> ids);
  void admit(std::vector<StepRecord>& records);
  bool grow(GroupLoad& load, std::size_t sequence, StepRecord& record);
  static void evict(GroupLoad& load, Sequence& sequence, StepRecord& record);
  void plan_decodes(GroupLoad& load, StepRecord& record);
  int plan_drafts(GroupLoad& load, StepRecord& record);
  int ask_for_drafts(GroupLoad& load, StepRecord& record);
  void take_tokens(GroupLoad& load, int group, const StepResult& result);
  void take_back(GroupLoad& load, Sequence& sequence, std::int64_t tokens) const;
  void restart(GroupLoad& load, StepRecord& record);
  void catch_up(GroupLoad& load, StepRecord& record);
  static bool may_reuse_next(const Sequence& sequence);
  void take_reuse(Sequence& sequence, std::int64_t positions);
  void plan_prompts(GroupLoad& load, StepRecord& record, int room);

  BatcherOptions options_;
  FairQueue queue_;
  std::vector<GroupLoad> loads_;  // [groups]
  std::uint64_t next_step_ = 0;
  int planned_prompt_tokens_ = 0;
  int planned_decode_tokens_ = 0;
  int most_prompt_tokens_ = 0;
  std::uint64_t evictions_ = 0;
  std::vector<PrefixReuse> planned_reuse_;
  PrefixStats prefix_stats_;
  DraftStats draft_stats_;
};

}  // namespace ferry
