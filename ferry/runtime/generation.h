// A call for tokens, whatever API it came by: prompts and settings in, choices with text out.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ferry/generation_settings.h"
#include "ferry/runtime/engine_front.h"
#include "ferry/text/text_stream.h"

namespace ferry {

/// What a call must know of the model. Borrowed: it outlives the calls.
struct GenerationModel {
  const Tokenizer* tokenizer = nullptr;  ///< null: there is none
  std::span<const std::int32_t> eos_ids;
  int max_context = 0;
};

/// A running call. The choices of prompt p are numbers p * n .. p * n + n - 1. Threads: one at a
/// time.
class Generation {
 public:
  /// Starts all choices. Throws ConfigError for settings that cannot be, and as
  /// EngineFront::start() does.
  Generation(EngineFront& front,
             const GenerationModel& model,
             const std::vector<std::vector<std::int32_t>>& prompts,
             const GenerationSettings& settings);

  /// The same with settings for each prompt. REQUIRES: as many as prompts, with as many choices.
  Generation(EngineFront& front,
             const GenerationModel& model,
             const std::vector<std::vector<std::int32_t>>& prompts,
             std::span<const GenerationSettings> settings);

  static constexpr std::int32_t kNoToken = -1;

  struct Piece {
    std::size_t choice = 0;
    std::string text;        ///< what the choice's text has grown by
    std::int32_t token = 0;  ///< and its ids; kNoToken: it has only ended
  };

  /// The next token of any choice; none: nothing has come for a fraction of a second, what came
  /// belongs to a choice that a stop string has ended, or all are done.
  std::optional<Piece> next() { return next(kPatience); }

  /// The same, waiting for so long.
  std::optional<Piece> next(std::chrono::milliseconds patience);

  /// For those who do not wait: `wake` is called when next() has something to look at again, as
  /// Call::listen() does it.
  void listen(std::function<void()> wake) { call_->listen(std::move(wake)); }

  /// Whether next() comes back at once, since it has something to look at.
  bool ready() const { return !done() && next_arrival_ < arrivals_.size(); }

  /// Nobody waits for this choice any more: it gets no further pieces.
  void cancel(std::size_t choice);

  bool done() const { return left_ == 0; }

  const std::vector<Choice>& choices() const { return choices_; }

  /// Of all prompts, each counted once.
  std::size_t prompt_tokens() const { return prompt_tokens_; }

  /// Of these, that were there already. Where a prompt has several choices, for the one that found
  /// least: the others may have found what that one computed.
  std::size_t cached_tokens() const;

  std::size_t completion_tokens() const;

  double seconds() const { return call_->age().count(); }

 private:
  void add_prompt(const GenerationModel& model,
                  const std::vector<std::int32_t>& prompt,
                  const GenerationSettings& settings,
                  std::vector<Request>& requests);

  /// How late a client that went away is noticed.
  static constexpr std::chrono::milliseconds kPatience{100};

  std::vector<Choice> choices_;
  std::vector<TextStream> texts_;
  std::vector<std::vector<std::int32_t>> stop_ids_;  // of each choice
  std::vector<bool> prompt_alone_;                   // likewise
  std::size_t left_ = 0;
  std::size_t prompt_tokens_ = 0;
  std::size_t choices_of_prompt_ = 1;
  std::unique_ptr<Call> call_;
  std::vector<Call::Arrival> arrivals_;  // taken from it
  std::size_t next_arrival_ = 0;         // of these
};

}  // namespace ferry
