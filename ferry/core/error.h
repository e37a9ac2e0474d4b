// Errors: one hierarchy of exceptions (docs/errors.md says which leave an object usable).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace ferry {

/// Root of everything this library throws on purpose. The message is one line: what, where, what to
/// do. The program turns it into exit status 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller asked for something that cannot be: unknown name, impossible size, unsupported pair.
/// The program turns it into exit status 2.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint file is missing, damaged, or not what its config says.
class ModelError : public Error {
 public:
  using Error::Error;
};

/// A peer is gone, late or has given up; the transport must be closed (docs/errors.md).
class TransportError : public Error {
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
class BrokenContract : public Error {
 public:
  using Error::Error;
};

/// Throws E with a formatted message.
template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void broken_contract(const char* condition,
                                  const std::string& message,
                                  const char* file,
                                  int line);

}  // namespace ferry

/// Throws BrokenContract with the condition, the formatted message and the place. (The place by
/// macros: clang-tidy 14 cannot read GCC 12's <source_location>.)
#define FERRY_CHECK(cond, ...)                                                       \
  do {                                                                               \
    if (!(cond)) [[unlikely]] {                                                      \
      ::ferry::broken_contract(#cond, fmt::format(__VA_ARGS__), __FILE__, __LINE__); \
    }                                                                                \
  } while (false)
