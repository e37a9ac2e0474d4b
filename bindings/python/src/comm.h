// A rank's place among the others, as Python holds it.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>

#include "ferry/core/threads.h"
#include "ferry/transport.h"

namespace ferry::python {

namespace nb = nanobind;

/// Owned by the Comm and by everything that was made on it. Destroyed, it leaves the group.
class CommState {
 public:
  CommState(std::unique_ptr<Transport> transport, int threads);
  /// Without the GIL, if this thread has it: leaving waits for what is still on its way.
  ~CommState();

  Transport& transport() { return *transport_; }

  ThreadPool& pool() { return *pool_; }

  /// One call at a time, from whichever thread. Throws BrokenContract for a second one. Releases
  /// the GIL for as long as it lives.
  class Call {
   public:
    Call(CommState& comm, std::string_view what);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    CommState& comm_;
    std::optional<nb::gil_scoped_release> released_;
  };

  /// Runs `body` as a Call. What it throws and the other ranks cannot know of ends their calls too,
  /// with that reason: `sent` says whether they may wait for this rank's part by now.
  template <class Body>
  auto run(std::string_view what, bool sent, Body body) {
    const Call call(*this, what);
    try {
      return body();
    } catch (...) {
      tell_others(what, sent);
      throw;
    }
  }

 private:
  void tell_others(std::string_view what, bool sent);

  std::unique_ptr<Transport> transport_;
  std::unique_ptr<ThreadPool> pool_;
  std::atomic<bool> busy_{false};
};

/// What Python sees. Closed, it has no state.
class Comm {
 public:
  explicit Comm(std::shared_ptr<CommState> state) : state_(std::move(state)) {}

  bool closed() const { return !state_; }

  void close() { state_.reset(); }

  /// Throws BrokenContract where it is closed.
  const std::shared_ptr<CommState>& state() const;

 private:
  std::shared_ptr<CommState> state_;
};

void bind_stores(nb::module_& module);
void bind_comm(nb::module_& module);

}  // namespace ferry::python
