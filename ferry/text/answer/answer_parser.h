// What a model answers, taken apart as it comes: thinking, content, and calls of tools, each in the
// way that its family was taught. Text may come in any pieces; put together, what comes out is the
// same however it was cut.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

/// A part of a call.
struct CallPiece {
  std::size_t index = 0;
  bool begins = false;  ///< it is the first one of its call, and has the name
  std::string id = {};  ///< with the name, where the model has given one
  std::string name = {};
  std::string arguments = {};  ///< JSON, which the pieces make up together
};

struct AnswerPiece {
  std::string thinking;
  std::string content;
  std::vector<CallPiece> calls;
};

/// Threads: one at a time.
class AnswerParser {
 public:
  virtual ~AnswerParser() = default;
  AnswerParser& operator=(const AnswerParser&) = delete;

  /// Adds to `out` what is known with this text.
  virtual void put(std::string_view text, AnswerPiece& out) = 0;

  /// The text has ended: what was held back.
  virtual void finish(AnswerPiece& out) = 0;

 protected:
  AnswerParser() = default;
  AnswerParser(const AnswerParser&) = default;
};

/// Types of tools' arguments, for families that do not write JSON: tool -> argument -> type in JSON
/// Schema's words, "" where the schema names none.
using ArgumentTypes = std::map<std::string, std::map<std::string, std::string>>;

/// Of a request's tools in OpenAI's form. What is not in it is left out.
ArgumentTypes argument_types(const nlohmann::ordered_json& tools);

/// How a family writes calls.
struct CallStyle {
  const char* name;                     ///< vLLM's
  std::span<const char* const> others;  ///< names that SGLang and vLLM have for it, too
  std::span<const char* const> marks;   ///< templates that have all of these belong to it
  std::unique_ptr<AnswerParser> (*make)(const ArgumentTypes& types);
};

/// The table. Where marks of several fit, the first one counts.
std::span<const CallStyle> call_styles();

/// How a family thinks before it answers.
struct ThinkingStyle {
  const char* name;
  std::span<const char* const> others;
  const char* begin;  ///< null: it comes with the calls (harmony)
  const char* end;
  bool always = false;  ///< answers begin with a thought, even where nothing says so
};

std::span<const ThinkingStyle> thinking_styles();

/// By name; null where there is none. Throws ConfigError that lists what there is for another name.
/// "auto": what fits the chat template; "none": null.
const CallStyle* find_call_style(std::string_view name, std::string_view chat_template);
const ThinkingStyle* find_thinking_style(std::string_view name, std::string_view chat_template);

/// Whether a prompt leaves the model in the middle of a thought, behind one, or says nothing.
enum class Thought : std::uint8_t { open, closed, unknown };
Thought thought_at_end(const ThinkingStyle& style, std::string_view prompt);

/// Takes thinking off the front and hands the rest to `rest`, null for content.
std::unique_ptr<AnswerParser> split_thinking(const ThinkingStyle& style,
                                             Thought at_end,
                                             std::unique_ptr<AnswerParser> rest);

/// Of text that a grammar has made: a list of {"name": ..., "parameters": ...}.
std::unique_ptr<AnswerParser> listed_calls();

/// The same: the arguments of one tool.
std::unique_ptr<AnswerParser> named_call(std::string name);

}  // namespace ferry
