// Comm: a rank's transport and threads behind a ferry_comm, and what is common to all that is made
// on it: one call at a time, and what happens after one that failed.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ferry/c/arguments.h"
#include "ferry/c/comm.h"
#include "ferry/c/status.h"
#include "ferry/core/threads.h"
#include "ferry/transport.h"

namespace ferry::c {

class Comm;

/// Something that was made on a comm: it must be gone before the comm is.
class OnComm {
 public:
  explicit OnComm(Comm& comm);
  virtual ~OnComm();
  OnComm(const OnComm&) = delete;
  OnComm& operator=(const OnComm&) = delete;

  Comm& comm() const { return comm_; }

  virtual void mask(Rank) {}

  virtual bool is_masked(Rank) const { return false; }

 private:
  Comm& comm_;
};

/// Threads: as comm.h says; abort() and failure() any.
class Comm {
 public:
  Comm(std::unique_ptr<Transport> transport, int threads);
  /// Aborts the group where the comm has failed, else leaves it.
  ~Comm();
  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;

  Transport& transport() const { return *transport_; }

  ThreadPool& pool() { return pool_; }

  bool has_children() const { return !children_.empty(); }

  /// Runs a collective call, or one of something that was made here. Throws OutOfOrder while
  /// another one runs, and FailedBefore after one that has failed. What leaves `body` fails the
  /// comm, but for FERRY_INVALID: it is thrown on all ranks alike, before anything is made.
  template <class Body>
  void call(Body&& body) {
    run([] {}, body, /*invalid_fails=*/false);
  }

  /// The same where an error in `body` leaves the others in the middle of an exchange, whatever it
  /// is. `check` comes first and fails nothing.
  template <class Check, class Body>
  void exchange(Check&& check, Body&& body) {
    run(check, body, /*invalid_fails=*/true);
  }

  /// The same for a call that is right also after a failure, and can fail nothing.
  template <class Body>
  void call_anyway(Body&& body) {
    const Turn turn(*this);
    body();
  }

  void abort(const std::string& reason);
  std::optional<Failure> failure() const;
  void mask(Rank rank);
  bool is_masked(Rank rank) const;

 private:
  friend class OnComm;

  /// One call at a time.
  class Turn {
   public:
    explicit Turn(Comm& comm);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Comm& comm_;
  };

  template <class Check, class Body>
  void run(Check&& check, Body& body, bool invalid_fails) {
    const Turn turn(*this);
    check_usable();
    check();
    try {
      body();
    } catch (...) {
      note_failure(invalid_fails);
      throw;
    }
  }

  void check_usable() const;
  void note_failure(bool invalid_fails);

  std::unique_ptr<Transport> transport_;
  ThreadPool pool_;
  std::vector<OnComm*> children_;
  std::vector<bool> masked_;  // [ranks] by mask()
  std::atomic<bool> in_call_{false};
  mutable std::mutex failure_mutex_;
  std::optional<Failure> failure_;
};

/// What a handle stands for. Throws ConfigError where it is NULL.
Comm& comm_of(ferry_comm* handle);

}  // namespace ferry::c
