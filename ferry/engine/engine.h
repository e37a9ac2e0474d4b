// The engine: requests in, tokens out, over all ranks. Rank 0 plans each step, tells everyone in a
// step record, and hands out the tokens; every rank runs the same loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/engine/sampler.h"
#include "ferry/model/decoder.h"
#include "ferry/transport/transport.h"

namespace ferry {

struct Request {
  std::vector<std::int32_t> prompt;  ///< at least one id, all inside the vocabulary
  int max_new_tokens = 64;
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_ids;  ///< generation ends after one of these (it is kept)
};

/// What rank 0 hears about a request, in order of its tokens.
struct TokenEvent {
  std::uint64_t request = 0;  ///< number that submit() gave
  std::int32_t token = 0;
  bool last = false;
  std::string logits_sha256;  ///< with the last token, when hashing was asked for
};

struct EngineOptions {
  int max_sequences_per_rank = 16;  ///< sequences that run at once on one rank
  int max_tokens_per_step = 512;    ///< per rank; longer prompts are cut into chunks
  int max_context = 0;              ///< positions a sequence may have; 0 = the model's
  bool hash_logits = false;
};

struct EngineStats {
  std::uint64_t prefill_tokens = 0;
  std::uint64_t decode_tokens = 0;
  std::chrono::nanoseconds prefill_time{};  ///< steps that held any prompt token
  std::chrono::nanoseconds decode_time{};   ///< all other steps
};

/// One rank's engine; construction is collective. Threads: one at a time.
class Engine {
 public:
  Engine(const EngineOptions& options, Decoder& decoder, Transport& transport);
  ~Engine();

  /// Rank 0 only. Throws ConfigError when the prompt is empty, has ids outside the vocabulary, or
  /// is longer than the context. Returns the request's number, counted from 0.
  std::uint64_t submit(Request request);

  /// Collective: runs steps until all submitted requests are done (rank 0 decides). Events are
  /// delivered on rank 0 as they happen.
  void run(const std::function<void(const TokenEvent&)>& on_token);

  const EngineStats& stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry
