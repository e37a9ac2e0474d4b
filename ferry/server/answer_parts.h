// A chat's answer as a row of parts, thoughts, texts and calls in the order in which they come:
// what Anthropic's content blocks and the output items of OpenAI's responses are made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ferry/server/tools.h"

namespace ferry {

struct AnswerPart {
  enum class Kind : std::uint8_t { thinking, text, call };

  Kind kind = Kind::text;
  std::string call_id = {};  ///< of a call, as its name
  std::string name = {};
  std::string text = {};  ///< of a call: its arguments, JSON unless the answer was cut off
};

/// Threads: one at a time.
class AnswerParts {
 public:
  explicit AnswerParts(const AnswerPlan& plan) : answer_(plan) {}

  /// What happens to the last part. Each begins where none is open, and ends before the next one
  /// begins or behind the last text.
  struct Step {
    enum class What : std::uint8_t { begins, grows, ends };

    What what = What::grows;
    std::size_t part = 0;
    std::string text = {};  ///< that it grows by
  };

  /// `last`: the text has ended.
  std::vector<Step> put(const std::string& text, bool last);

  const std::vector<AnswerPart>& parts() const { return parts_; }

  bool has(AnswerPart::Kind kind) const;

 private:
  void begin(AnswerPart part, std::vector<Step>& steps);
  void end(std::vector<Step>& steps);
  void grow(AnswerPart::Kind kind, const std::string& text, std::vector<Step>& steps);
  void call(const nlohmann::ordered_json& delta, std::vector<Step>& steps);

  ChatAnswer answer_;
  std::vector<AnswerPart> parts_;
  bool open_ = false;  // the last of them
};

}  // namespace ferry
