// What travels between rank 0 and the others around each step: the record (what to run) before it
// and the result (the tokens it gave) after it. Plain data and its bytes; step_link.h moves them.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/balance/expert_mover.h"
#include "ferry/engine/request.h"
#include "ferry/exchange_stats.h"

namespace ferry {

/// As many ranks as any transport has.
using RankSet = std::bitset<1024>;

/// A request that starts on the rank that reads this.
struct Admission {
  std::uint64_t id = 0;
  Request request;
  /// Tokens that it has given already, on a rank that is gone.
  std::vector<std::int32_t> generated = {};

  /// Those that it has: its prompt's, and these.
  std::vector<std::int32_t> ids() const;

  std::int64_t tokens() const { return std::ssize(request.prompt) + std::ssize(generated); }
};

/// The next `tokens` tokens of a sequence run in this step. Where it has a draft these are the one
/// that it knows and the draft's, which are its own only as far as it gives them.
struct SequenceRun {
  std::uint64_t id = 0;
  std::int32_t tokens = 0;
  std::vector<std::int32_t> draft = {};
  std::int32_t drafts = 0;  ///< tokens that the model is to draft for its next step
};

/// Page `page` of a sequence stays under `number`, behind the kept page `before`
/// (ferry/state/kept_pages.h).
struct KeepOrder {
  std::uint64_t sequence = 0;
  std::uint64_t number = 0;
  std::uint64_t before = 0;
  std::uint32_t page = 0;

  bool operator==(const KeepOrder&) const = default;
};

/// A sequence goes on behind `pages` kept pages, the last of which is `number`.
struct BeginOrder {
  std::uint64_t sequence = 0;
  std::uint64_t number = 0;
  std::uint32_t pages = 0;

  bool operator==(const BeginOrder&) const = default;
};

/// Kept pages that one record may tell to forget.
inline constexpr std::size_t kMostForgotten = 1024;

/// One rank's orders for one step, carried out in the order in which they stand here.
struct StepRecord {
  std::uint64_t step = 0;
  bool stop = false;             ///< nothing is left to do: the loop ends, no step is run
  bool next_epoch = false;       ///< ranks come or go behind this one, and no step is run
  RankSet gone;                  ///< ranks that take no part any more
  MoveOrders moves;              ///< the placement this step runs on, and what moves while it runs
  std::vector<KeepOrder> keeps;  ///< of what the last step has filled
  std::vector<std::uint64_t> forgotten_windows;  ///< kept pages, only what is a window's of them
  std::vector<std::uint64_t> forgotten;          ///< whole ones
  bool forget_all = false;
  std::vector<std::uint64_t> dropped;  ///< sequences that nobody waits for any more
  std::vector<std::uint64_t> evicted;  ///< give up their caches and run from the start again
  std::vector<Admission> admissions;
  std::vector<BeginOrder> begins;
  std::vector<SequenceRun> runs;  ///< in this order in the batch
  std::int32_t passes = 0;        ///< of the layer that drafts, behind the step; on all ranks alike
};

using Sha256 = std::array<std::byte, 32>;

struct TokenResult {
  std::uint64_t id = 0;
  std::int32_t token = 0;
  bool last = false;
  Sha256 logits_sha256{};  ///< with the last token, when hashing was asked for
  std::optional<Logprobs> logprobs;
};

/// Log probabilities of a part of a sequence's prompt.
struct PromptResult {
  std::uint64_t id = 0;
  std::uint32_t position = 0;  ///< of the first of these tokens
  std::vector<Logprobs> logprobs;
};

/// What the model drafted behind the newest token of a sequence.
struct DraftResult {
  std::uint64_t id = 0;
  std::vector<std::int32_t> tokens = {};
};

/// The tokens that one rank's sequences gave in one step, those of one sequence in their order:
/// none in the middle of its prompt, and else one, and one more for each token of its draft that it
/// gave.
struct StepResult {
  std::uint64_t step = 0;
  /// The rank's tokens needed a rank that has gone: none of its sequences got any further.
  bool lost = false;
  RankSet gone;  ///< ranks that it knows to be gone
  std::vector<TokenResult> tokens;
  std::vector<PromptResult> prompts = {};  ///< of prompts that ran, where asked for
  std::vector<DraftResult> drafts = {};    ///< of sequences that go on, where asked for
  /// What its exchanges have counted so far, [R] by source rank. Once a second; else empty.
  std::vector<SourceStats> sources = {};
};

/// Whether a record lets sequences run, or at least says something about them.
inline bool runs_step(const StepRecord& record) { return !record.stop && !record.next_epoch; }

/// Bytes that an admission takes in a record.
std::size_t encoded_bytes(const Admission& admission);

/// Bytes that suffice for a record of a rank with `sequences` sequences, `tokens` in a step, and
/// one admission whose tokens fill the context; several shorter ones share that space.
std::size_t record_capacity(int max_context, int sequences, int tokens);
/// The same for a result of a step of so many tokens on one of so many ranks.
std::size_t result_capacity(int sequences, int tokens, int ranks);

/// The same of a record without an admission.
std::size_t record_bytes_without_admissions(int sequences, int tokens);

/// Write to the front of `out` and return the bytes written. REQUIRES: `out` is large enough.
std::size_t encode(const StepRecord& record, std::span<std::byte> out);
std::size_t encode(const StepResult& result, std::span<std::byte> out);

/// Throw TransportError (kind io) when the bytes are not what encode() writes; nothing outside
/// `bytes` is ever read.
StepRecord decode_step_record(std::span<const std::byte> bytes);
StepResult decode_step_result(std::span<const std::byte> bytes);

}  // namespace ferry
