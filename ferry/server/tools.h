// Tools of a chat, and how its answers are taken apart: what the client asks for, the grammar that
// holds the model to it, and the parser of what comes.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ferry/generation_settings.h"
#include "ferry/server/served_model.h"
#include "ferry/text/answer/answer_parser.h"
#include "ferry/text/json_fields.h"

namespace ferry {

/// Of one chat request.
class AnswerPlan {
 public:
  AnswerPlan();
  /// From tools, tool_choice, parallel_tool_calls, separate_reasoning, include_reasoning. Throws
  /// ConfigError.
  AnswerPlan(const JsonFields& fields, const ServedModel& model);
  ~AnswerPlan();
  AnswerPlan(AnswerPlan&&) noexcept;
  AnswerPlan& operator=(AnswerPlan&&) noexcept;

  /// What the template shows; null: nothing.
  const nlohmann::ordered_json* tools() const;

  /// For the prompt as it is: adds the grammar of a choice that must be kept, lets thoughts pass
  /// before one, and shows special tokens to parsers that look for them. Throws ConfigError.
  void settle(const std::string& prompt, const ServedModel& model, GenerationSettings& settings);

  /// The model is free to call.
  bool automatic() const { return choice_ == Choice::automatic; }

  /// One for each choice; null: all text is content.
  std::unique_ptr<AnswerParser> parser() const;

  /// Only the first call is wanted.
  bool single() const { return single_; }

  /// Thoughts are shown, apart from content.
  bool shows_thinking() const { return shows_thinking_; }

  /// The choice was of one tool: then a call is no reason to end.
  bool named() const { return choice_ == Choice::named; }

 private:
  enum class Choice : std::uint8_t { none, automatic, required, named };

  void read_tools(const JsonFields& fields);
  void read_choice(const JsonFields& fields, const ServedModel& model);
  nlohmann::ordered_json schema_of_calls() const;

  std::unique_ptr<nlohmann::ordered_json> tools_;
  Choice choice_ = Choice::none;
  std::string name_;  // of the tool that was named
  bool single_ = false;
  bool shows_thinking_ = true;
  const CallStyle* calls_ = nullptr;
  const ThinkingStyle* thinking_ = nullptr;
  Thought thought_ = Thought::unknown;
};

/// An answer in OpenAI's form, as far as it has come.
class ChatAnswer {
 public:
  explicit ChatAnswer(const AnswerPlan& plan);

  /// What this text adds, as a "delta"; an empty object: nothing. `last`: the text has ended.
  nlohmann::ordered_json put(const std::string& text, bool last);

  /// All of it, as a "message".
  nlohmann::ordered_json message() const;

  /// Instead of "stop".
  std::string finish_reason(const std::string& finish) const;

 private:
  struct Call {
    std::string id;
    std::string name;
    std::string arguments;
  };

  const AnswerPlan* plan_;
  std::unique_ptr<AnswerParser> parser_;
  std::string thinking_;
  std::string content_;
  std::vector<Call> calls_;
};

}  // namespace ferry
