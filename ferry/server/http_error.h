// Errors as clients get them: a status, and a body in the shape of the API that they called.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "ferry/core/error.h"
#include "ferry/refused.h"

namespace ferry {

/// What an error's body says beside its message, in OpenAI's shape. Null: nothing.
struct ErrorFields {
  const char* type = nullptr;
  const char* param = nullptr;  ///< the member that is wrong
  const char* code = nullptr;
};

/// An answer other than success; the handler's thread throws it, the client gets it as JSON.
class HttpError : public Error {
 public:
  HttpError(int status, const std::string& message, bool retry = false)
      : Error(message), status_(status), retry_(retry) {}

  /// With what OpenAI's clients look for in "code".
  HttpError(int status, const std::string& message, const char* code)
      : Error(message), status_(status), code_(code) {}

  /// With all that OpenAI says of it.
  HttpError(int status, const std::string& message, const ErrorFields& fields)
      : Error(message), status_(status), fields_(fields) {}

  int status() const { return status_; }

  const std::optional<ErrorFields>& fields() const { return fields_; }

  /// Empty: the status.
  const std::string& code() const { return code_; }

  /// Whether it says when to try again.
  bool retry() const { return retry_; }

 private:
  int status_;
  std::string code_;
  std::optional<ErrorFields> fields_;
  bool retry_ = false;
};

/// What HTTP says for it.
HttpError http_error(const Refused& refused);

/// The same for the exception that is being handled. REQUIRES: one is.
HttpError current_http_error();

/// The body of an error.
using ErrorForm = std::function<std::string(const HttpError&)>;

/// {"error": {...}} as OpenAI shapes it.
std::string error_body(const HttpError& error);

}  // namespace ferry
