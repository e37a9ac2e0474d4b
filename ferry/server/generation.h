// A call for tokens, whatever API it came by: prompts and settings in, choices with text out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ferry/server/engine_front.h"
#include "ferry/server/http_server.h"
#include "ferry/server/json_fields.h"
#include "ferry/server/served_model.h"
#include "ferry/server/text_stream.h"

namespace ferry {

/// How to continue a prompt, as all APIs name it.
struct GenerationSettings {
  SamplingOptions sampling{.temperature = 1};
  bool seeded = false;  ///< else each call draws its own seed
  std::optional<int> max_new_tokens;
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_ids;
  std::vector<ProcessorOptions> processors;
  bool ignore_eos = false;
  bool skip_special = true;
  std::optional<int> top_logprobs;
  int choices = 1;  ///< of each prompt
  std::uint64_t client = 0;
};

/// Members that SGLang and OpenAI name alike: temperature, top_p, top_k, seed, stop,
/// stop_token_ids, ignore_eos, skip_special_tokens, n, and what logits processors read. Throws
/// ConfigError, also for members that would change the result and are not supported.
void read_common_settings(const JsonFields& fields, GenerationSettings& settings);

/// One continuation of one prompt, as far as it has come.
struct Choice {
  std::size_t prompt_tokens = 0;
  std::vector<std::int32_t> ids;
  std::vector<Logprobs> logprobs;  ///< where asked for, one a token
  std::string text;
  std::string finish;   ///< "stop" or "length"; empty while it goes on
  std::string matched;  ///< stop string that ended it
};

/// A running call. The choices of prompt p are numbers p * n .. p * n + n - 1. Threads: one at a
/// time.
class Generation {
 public:
  /// Starts all choices. Throws as EngineFront::start() does.
  Generation(EngineFront& front,
             const ServedModel& model,
             const std::vector<std::vector<std::int32_t>>& prompts,
             const GenerationSettings& settings);

  struct Piece {
    std::size_t choice = 0;
    std::string text;        ///< what the choice's text has grown by
    std::int32_t token = 0;  ///< and its ids
  };

  /// The next token of any choice; none: nothing has come for a fraction of a second, what came
  /// belongs to a choice that a stop string has ended, or all are done.
  std::optional<Piece> next();

  /// Whether next() comes back at once, since it has something to look at.
  bool ready() const { return !done() && next_arrival_ < arrivals_.size(); }

  /// Until all are done. Throws HttpError when the client goes away.
  void finish(const HttpRequest& request);

  bool done() const { return left_ == 0; }

  const std::vector<Choice>& choices() const { return choices_; }

  /// Of all prompts, each counted once.
  std::size_t prompt_tokens() const { return prompt_tokens_; }

  std::size_t completion_tokens() const;

  double seconds() const { return call_->age().count(); }

 private:
  std::vector<Choice> choices_;
  std::vector<TextStream> texts_;
  std::vector<std::int32_t> stop_ids_;
  std::size_t left_;
  std::size_t prompt_tokens_ = 0;
  std::unique_ptr<Call> call_;
  std::vector<Call::Arrival> arrivals_;  // taken from it
  std::size_t next_arrival_ = 0;         // of these
};

/// The ids of a text; throws ConfigError where the model has no tokenizer.
std::vector<std::int32_t> encode(const ServedModel& model,
                                 const std::string& text,
                                 bool add_special = true);

}  // namespace ferry
