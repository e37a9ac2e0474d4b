// What becomes of an exception at the border of the C interface, and of the caller's floating-point
// mode: every function of it runs inside guarded().
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "ferry/c/base.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry::c {

/// A call that the object does not take now.
class OutOfOrder : public Error {
 public:
  using Error::Error;
};

/// A function of the caller that did not return FERRY_OK.
class CallbackFailed : public Error {
 public:
  using Error::Error;
};

/// What a call has ended with.
struct Failure {
  ferry_status status = FERRY_OK;
  Rank rank = -1;  ///< that it is about
  std::string line;
};

/// A failure that is to be told once more.
class FailedBefore : public Error {
 public:
  explicit FailedBefore(Failure failure) : Error(failure.line), failure_(std::move(failure)) {}

  const Failure& failure() const { return failure_; }

 private:
  Failure failure_;
};

/// Of the exception that is being handled.
Failure current_failure();

/// Makes it this thread's last error; returns its status.
ferry_status report(const Failure& failure) noexcept;

/// The same for the exception that is being handled.
ferry_status report_current() noexcept;

/// While alive, this thread computes in the mode that the numerics contract asks for, whatever the
/// caller's is: rounding to nearest, no traps. At the end the caller has its own again.
class EntryMode {
 public:
  EntryMode() noexcept;
  ~EntryMode();
  EntryMode(const EntryMode&) = delete;
  EntryMode& operator=(const EntryMode&) = delete;

 private:
  friend class CallerMode;
  std::uint32_t callers_;
  const EntryMode* outer_;
};

/// While alive, around a function of the caller: the mode that this thread came in with, the usual
/// one on a thread of ours.
class CallerMode {
 public:
  CallerMode() noexcept;
  ~CallerMode();
  CallerMode(const CallerMode&) = delete;
  CallerMode& operator=(const CallerMode&) = delete;

 private:
  std::uint32_t ours_;
};

/// Runs the body of a C function: no exception leaves, the last error is set.
template <class Body>
ferry_status guarded(Body&& body) noexcept {
  const EntryMode mode;
  try {
    body();
    return FERRY_OK;
  } catch (...) {
    return report_current();
  }
}

/// Calls a function of the caller in the caller's mode. Throws CallbackFailed when it does not
/// return FERRY_OK, or throws.
template <class Function>
void call_caller(const char* what, Function&& function) {
  ferry_status status = FERRY_OK;
  std::string thrown;
  {
    const CallerMode mode;
    try {
      status = function();
    } catch (const std::exception& e) {
      thrown = e.what();
      status = FERRY_CALLBACK;
    }
  }
  if (status == FERRY_OK) return;
  if (!thrown.empty()) fail<CallbackFailed>("{} has thrown: {}", what, thrown);
  fail<CallbackFailed>("{} has returned {}", what, ferry_status_name(status));
}

}  // namespace ferry::c
