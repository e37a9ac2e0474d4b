// The engine: requests in, tokens out, over all ranks. Rank 0 plans each step, tells everyone in a
// step record, and hands out the tokens; every rank runs the same loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "ferry/engine/balancer.h"
#include "ferry/engine/drafts.h"
#include "ferry/engine/epochs.h"
#include "ferry/engine/request.h"
#include "ferry/exchange_stats.h"
#include "ferry/model/decoder.h"
#include "ferry/transport.h"

namespace ferry {

struct EngineOptions {
  int max_sequences_per_rank = 16;  ///< sequences that run at once on one rank
  int max_tokens_per_step = 512;    ///< per rank; longer prompts are cut into chunks.
                                    ///< REQUIRES: at most the decoder's max_tokens
  int max_context = 0;              ///< positions a sequence may have; 0 = the model's
  int max_running = 0;              ///< sequences that run at once over all ranks; 0 = any
  int max_waiting = 0;              ///< requests that may wait beside those; 0 = any
  /// Positions that the sequences of one rank may fill, or more where layers keep a window of them
  /// alone: what all layers keep of so many is the memory that there is. 0 = any.
  std::int64_t max_kv_tokens = 0;
  /// Pages stay behind sequences as long as nobody needs the memory, and requests that begin with
  /// the same tokens begin behind them. Not where that could change a bit: where ranks sum first
  /// and experts have replicas or move.
  bool keep_prefixes = true;
  /// Tokens that may come next, out of a sequence's own text or by the model's layer that predicts
  /// further tokens, run beside its one token, and those that do come need no step of their own.
  /// Changes no token, logit or log probability. By the layer: REQUIRES a decoder that has it.
  DraftOptions drafts = {};
  bool hash_logits = false;
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of a wait inside a step
  BalanceOptions balance;
  /// What grammars are checked against; borrowed. Null: there is no tokenizer, and no grammar.
  Grammars* grammars = nullptr;
  /// On rank 0: takes a line that whoever runs this should read. May be empty.
  std::function<void(const std::string&)> warn = {};
};

/// A rate is tokens over time of the same kind: steps that held any prompt token count as prefill,
/// with their prompt tokens only; all others as decode.
struct EngineStats {
  std::uint64_t requests_running = 0;  ///< now
  std::uint64_t requests_waiting = 0;
  std::int64_t kv_tokens = 0;       ///< that hold memory now, over all ranks, in whole pages; one
                                    ///< that only some layers keep counts as their part
  std::int64_t kv_idle_tokens = 0;  ///< beside those: kept for requests that begin with the same
  std::uint64_t prefix_asked_tokens = 0;   ///< of prompts that began to run
  std::uint64_t prefix_reused_tokens = 0;  ///< of these, that need not run
  std::uint64_t drafted_tokens = 0;        ///< that ran since they might come next
  std::uint64_t accepted_tokens = 0;       ///< of these, that stayed
  std::uint64_t evictions = 0;       ///< times that a sequence had to start over for want of pages
  int ranks = 0;                     ///< of the group, also those that it goes on without
  std::uint64_t epoch = 0;           ///< of the group
  std::uint64_t ranks_lost = 0;      ///< that died, and the others went on
  std::uint64_t restarts = 0;        ///< of sequences that ran on those
  std::uint64_t exchange_bytes = 0;  ///< payload that left or entered rank 0's memory
  std::uint64_t exchange_network_bytes = 0;  ///< of that, payload that left for another host
  std::chrono::nanoseconds exchange_time{};  ///< of rank 0 in dispatch and combine, waits included
  std::uint64_t steps = 0;
  std::uint64_t prefill_tokens = 0;
  std::uint64_t decode_tokens = 0;
  std::chrono::nanoseconds prefill_time{};
  std::chrono::nanoseconds decode_time{};
  /// [R][R], rank and then source: what the ranks' exchanges have counted, a second old at most
  /// while steps run.
  std::vector<SourceStats> sources = {};
  /// The rank that all others waited for in the last window (ExchangeWaits); -1: none.
  Rank straggler = -1;
};

/// The context that `wanted` (0 = the model's) gives. Throws ConfigError where the model has less.
int resolve_context(const ModelConfig& config, int wanted);

/// One rank's engine; construction is collective. Threads: one at a time, but what says "any
/// thread" may also be called while run() runs.
///
/// When a rank dies, or does not answer in time, and the backend masks (mooncake), the others go on
/// without it: what ran there starts over elsewhere from the tokens it has given, and a step that
/// needed the dead rank is run again, so that callers hear the tokens they would have heard. Not
/// where ranks are grouped (tp), where logits are hashed, where an expert has no replica on a
/// living rank, and not without rank 0: then it is an error.
///
/// With follow() ranks may come and go, over any backend: run() takes the engine from epoch to
/// epoch. A rank that stays keeps its sequences, and a step that an end of a rank has cut short
/// ends for each of them as its own rank says: with its tokens, or as if it had not been planned.
/// What ran on ranks that have left starts over as above. Not where ranks are grouped or logits are
/// hashed.
///
/// Errors: TransportError begins with the step it came from. After any error the engine may only be
/// destroyed; the caller aborts the transport (run_ranks does).
class Engine {
 public:
  Engine(const EngineOptions& options, Decoder& decoder, Transport& transport);
  ~Engine();

  /// Rank 0 only; any thread. Returns the request's number, counted from 0; none where max_running
  /// and max_waiting requests are there already. Throws ConfigError as check() does.
  std::optional<std::uint64_t> submit(Request request);

  /// Throws ConfigError as check_request() does, and for a request that no rank has the memory for.
  /// Any thread.
  void check(const Request& request) const;

  /// Rank 0 only; any thread. The request ends soon; no event says so, and some may still come.
  /// Unknown and finished ones are ignored.
  void cancel(std::uint64_t request);

  /// Rank 0 only; any thread. run() calls `task` between two steps, at once where it waits for
  /// work.
  void post(std::function<void()> task);

  /// Rank 0 only; any thread. An open engine's run() waits for more requests instead of returning;
  /// once closed again it returns when all are done.
  void open();
  void close();

  /// Before run(), on all ranks: they may come and go from now on. Borrows `epochs`. `comes_late`:
  /// the others run already, and this rank was made with the first epoch that it is in. Throws
  /// ConfigError where that cannot be.
  void follow(Epochs& epochs, bool comes_late);

  /// Collective: runs steps until all submitted requests are done (rank 0 decides), or, where ranks
  /// may go, until the others go on without this one. Events are
  /// delivered on rank 0 as they happen. Ranks that wait for work sleep, and notice a dead peer.
  void run(const std::function<void(const TokenEvent&)>& on_token);

  /// Rank 0 only, between two steps: no page is kept for requests to come. False, and nothing done,
  /// while requests run or wait.
  bool forget_prefixes();

  /// On rank 0, between two steps; zeros elsewhere.
  EngineStats stats() const;

  /// Positions of keys and values that may be held over all ranks that live. As stats().
  std::int64_t kv_capacity() const;

  /// None where nothing is recorded or the model has no sparse layer.
  const Balancer* balancer() const;
  Balancer* balancer();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
