// Errors: one hierarchy of exceptions (docs/errors.md says which leave an object usable).
#pragma once

#include <stdexcept>
#include <string>

#include "ferry/export.h"

namespace ferry {

/// Root of everything this library throws on purpose. The message is one line: what, where, what to
/// do. The program turns it into exit status 1.
class FERRY_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller asked for something that cannot be: unknown name, impossible size, unsupported pair.
/// The program turns it into exit status 2.
class FERRY_API ConfigError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint file is missing, damaged, or not what its config says.
class FERRY_API ModelError : public Error {
 public:
  using Error::Error;
};

/// A peer is gone, late or has given up; the transport must be closed (docs/errors.md).
class FERRY_API TransportError : public Error {
 public:
  enum class Kind { timeout, peer_died, aborted, io };

  /// `peer`: the rank the error is about, -1 where none is known.
  TransportError(Kind kind, int peer, const std::string& message)
      : Error(message), kind_(kind), peer_(peer) {}

  Kind kind() const { return kind_; }

  int peer() const { return peer_; }

 private:
  Kind kind_;
  int peer_;
};

/// A contract of ours was broken (FERRY_CHECK). A defect, not bad input.
class FERRY_API BrokenContract : public Error {
 public:
  using Error::Error;
};

}  // namespace ferry
