#include "ferry/c/status.h"

#include <algorithm>
#include <exception>
#include <new>
#include <system_error>

#include "ferry/core/float_mode.h"
#include "ferry/refused.h"
#include "ferry/version.h"
#include "ferry/wire.h"

namespace ferry::c {

namespace {

/// A thread's last error. Lines are short; what does not fit is cut, so that telling somebody that
/// there is no memory takes none.
struct LastError {
  static constexpr std::size_t kMost = 1023;

  char line[kMost + 1] = {};
  Rank rank = -1;

  void set(const char* text, std::size_t length) noexcept {
    length = std::min(length, kMost);
    std::replace_copy(text, text + length, line, '\n', ' ');
    line[length] = '\0';
  }
};

thread_local LastError last_error;
thread_local const EntryMode* innermost = nullptr;

ferry_status status_of(TransportError::Kind kind) {
  switch (kind) {
    case TransportError::Kind::timeout:
      return FERRY_TIMED_OUT;
    case TransportError::Kind::peer_died:
      return FERRY_PEER_DIED;
    case TransportError::Kind::aborted:
      return FERRY_ABORTED;
    case TransportError::Kind::io:
      return FERRY_NETWORK;
  }
  return FERRY_DEFECT;
}

}  // namespace

EntryMode::EntryMode() noexcept : callers_(float_mode()), outer_(innermost) {
  innermost = this;
  set_float_mode(default_float_mode());
}

EntryMode::~EntryMode() {
  innermost = outer_;
  set_float_mode(callers_);
}

CallerMode::CallerMode() noexcept : ours_(float_mode()) {
  set_float_mode(innermost != nullptr ? innermost->callers_ : default_float_mode());
}

CallerMode::~CallerMode() { set_float_mode(ours_); }

Failure current_failure() {
  try {
    throw;
  } catch (const FailedBefore& e) {
    return e.failure();
  } catch (const OutOfOrder& e) {
    return {.status = FERRY_OUT_OF_ORDER, .line = e.what()};
  } catch (const CallbackFailed& e) {
    return {.status = FERRY_CALLBACK, .line = e.what()};
  } catch (const ConfigError& e) {
    return {.status = FERRY_INVALID, .line = e.what()};
  } catch (const ModelError& e) {
    return {.status = FERRY_MODEL, .line = e.what()};
  } catch (const Refused& e) {
    const bool ended = e.reason() == Refused::Reason::ended;
    return {.status = ended ? FERRY_ENDED : FERRY_REFUSED, .line = e.what()};
  } catch (const TransportError& e) {
    return {.status = status_of(e.kind()), .rank = e.peer(), .line = e.what()};
  } catch (const BrokenContract& e) {
    return {.status = FERRY_DEFECT, .line = e.what()};
  } catch (const Error& e) {
    return {.status = FERRY_SYSTEM, .line = e.what()};
  } catch (const std::bad_alloc&) {
    return {.status = FERRY_SYSTEM, .line = "no memory"};
  } catch (const std::system_error& e) {
    return {.status = FERRY_SYSTEM, .line = e.what()};
  } catch (const std::exception& e) {
    return {.status = FERRY_DEFECT, .line = e.what()};
  } catch (...) {
    return {.status = FERRY_DEFECT, .line = "an exception that is none of ours"};
  }
}

ferry_status report(const Failure& failure) noexcept {
  last_error.set(failure.line.data(), failure.line.size());
  last_error.rank = failure.rank;
  return failure.status;
}

ferry_status report_current() noexcept {
  try {
    return report(current_failure());
  } catch (...) {
    constexpr std::string_view kLine = "no memory, not even for the error's line";
    last_error.set(kLine.data(), kLine.size());
    last_error.rank = -1;
    return FERRY_SYSTEM;
  }
}

}  // namespace ferry::c

const char* ferry_status_name(ferry_status status) {
  switch (status) {
#define FERRY_NAME_OF(status) \
  case status:                \
    return #status
    FERRY_NAME_OF(FERRY_OK);
    FERRY_NAME_OF(FERRY_INVALID);
    FERRY_NAME_OF(FERRY_OUT_OF_ORDER);
    FERRY_NAME_OF(FERRY_PEER_DIED);
    FERRY_NAME_OF(FERRY_TIMED_OUT);
    FERRY_NAME_OF(FERRY_ABORTED);
    FERRY_NAME_OF(FERRY_NETWORK);
    FERRY_NAME_OF(FERRY_MODEL);
    FERRY_NAME_OF(FERRY_REFUSED);
    FERRY_NAME_OF(FERRY_ENDED);
    FERRY_NAME_OF(FERRY_SYSTEM);
    FERRY_NAME_OF(FERRY_CALLBACK);
    FERRY_NAME_OF(FERRY_DEFECT);
#undef FERRY_NAME_OF
  }
  return "unknown status";
}

const char* ferry_last_error() { return ferry::c::last_error.line; }

int32_t ferry_last_error_rank() { return ferry::c::last_error.rank; }

const char* ferry_version() { return ferry::version().data(); }

size_t ferry_wire_row_bytes(ferry_wire wire, int64_t values) {
  if (wire < FERRY_WIRE_F32 || wire > FERRY_WIRE_INT8_BLOCK || values < 0) return 0;
  return ferry::wire_row_bytes(static_cast<ferry::WireType>(wire), values);
}
