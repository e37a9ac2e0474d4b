// What callers of a running engine are told when it does not serve them.
#pragma once

#include <string>

#include "ferry/error.h"
#include "ferry/export.h"

namespace ferry {

/// Not the caller's mistake, unlike ConfigError: the same call may succeed at another time.
class FERRY_API Refused : public Error {
 public:
  enum class Reason {
    full,     ///< as many requests as may be held are there: try again
    busy,     ///< a step takes too long: try again
    closing,  ///< no new request is taken any more
    ended     ///< the engine runs no more; the message says why
  };

  Refused(Reason reason, const std::string& message) : Error(message), reason_(reason) {}

  Reason reason() const { return reason_; }

 private:
  Reason reason_;
};

}  // namespace ferry
