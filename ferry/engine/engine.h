// The engine: requests in, tokens out, over all ranks. Rank 0 plans each step, tells everyone in a
// step record, and hands out the tokens; every rank runs the same loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "ferry/engine/balancer.h"
#include "ferry/engine/request.h"
#include "ferry/model/decoder.h"
#include "ferry/transport/transport.h"

namespace ferry {

struct EngineOptions {
  int max_sequences_per_rank = 16;  ///< sequences that run at once on one rank
  int max_tokens_per_step = 512;    ///< per rank; longer prompts are cut into chunks.
                                    ///< REQUIRES: at most the decoder's max_tokens
  int max_context = 0;              ///< positions a sequence may have; 0 = the model's
  bool hash_logits = false;
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of a wait inside a step
  BalanceOptions balance;
};

/// A rate is tokens over time of the same kind: steps that held any prompt token count as prefill,
/// with their prompt tokens only; all others as decode.
struct EngineStats {
  std::uint64_t steps = 0;
  std::uint64_t prefill_tokens = 0;
  std::uint64_t decode_tokens = 0;
  std::chrono::nanoseconds prefill_time{};
  std::chrono::nanoseconds decode_time{};
};

/// The context that `wanted` (0 = the model's) gives. Throws ConfigError where the model has less.
int resolve_context(const ModelConfig& config, int wanted);

/// One rank's engine; construction is collective. Threads: one at a time.
/// Errors: TransportError begins with the step it came from. After any error the engine may only be
/// destroyed; the caller aborts the transport (run_ranks does).
class Engine {
 public:
  Engine(const EngineOptions& options, Decoder& decoder, Transport& transport);
  ~Engine();

  /// Rank 0 only. Throws ConfigError as check_request() does. Returns the request's number, counted
  /// from 0.
  std::uint64_t submit(Request request);

  /// Collective: runs steps until all submitted requests are done (rank 0 decides). Events are
  /// delivered on rank 0 as they happen.
  void run(const std::function<void(const TokenEvent&)>& on_token);

  /// On rank 0; zeros elsewhere.
  const EngineStats& stats() const;

  /// None where nothing is recorded or the model has no sparse layer.
  const Balancer* balancer() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
