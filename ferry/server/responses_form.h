// A chat's answer as OpenAI's responses show it: an object with output items, or events.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ferry/server/answer_parts.h"
#include "ferry/server/generation.h"
#include "ferry/server/openai_call.h"

namespace ferry {

/// Of one call; for form_of(). Threads: one at a time.
class ResponseForm {
 public:
  /// Hears of the whole response before its client does.
  using Ended = std::function<void(const nlohmann::ordered_json& response)>;

  /// `body`: what the client sent. `model` is borrowed. `ended`: where it is to be stored.
  ResponseForm(const ServedModel& model,
               const nlohmann::ordered_json& body,
               OpenAiCall call,
               Ended ended);
  ~ResponseForm();
  ResponseForm(const ResponseForm&) = delete;
  ResponseForm& operator=(const ResponseForm&) = delete;

  const OpenAiCall& call() const { return call_; }

  std::string whole(const Generation& generation);
  std::string head(const Generation& generation);
  std::string piece(const Generation& generation, const Generation::Piece& piece);
  std::string tail(const Generation& generation);
  std::string failure(const HttpError& error);

 private:
  void put(const std::string& text, bool last, std::string* events);
  std::string event(nlohmann::ordered_json json);
  std::string begin(std::size_t part);
  std::string grow(std::size_t part, const std::string& text);
  std::string end(std::size_t part);
  nlohmann::ordered_json place(const char* type, std::size_t part) const;
  nlohmann::ordered_json content_of(std::size_t part, const std::string& text) const;
  nlohmann::ordered_json item(std::size_t part, bool whole) const;
  nlohmann::ordered_json response(const Generation& generation) const;
  nlohmann::ordered_json end(const Generation& generation);
  nlohmann::ordered_json usage(const Generation& generation) const;

  const ServedModel& model_;
  OpenAiCall call_;
  std::unique_ptr<nlohmann::ordered_json> frame_;  // what is the same in all of its states
  Ended ended_;
  AnswerParts parts_;
  std::vector<std::string> ids_;                          // of the parts
  std::unique_ptr<nlohmann::ordered_json> logprobs_;      // of the whole text, where asked for
  std::unique_ptr<nlohmann::ordered_json> new_logprobs_;  // of these, that no event has told
  std::size_t events_ = 0;
};

}  // namespace ferry
