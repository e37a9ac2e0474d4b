// Ctrl-C ends a wait: Python's signal handlers run on its main thread alone, and only when that
// thread looks. Waits of ours therefore look a few times a second.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "ferry/store.h"
#include "ferry/transport.h"

namespace ferry::python {

/// How often a wait looks.
inline constexpr std::chrono::milliseconds kLookEvery{100};

/// Remembers which thread is Python's main thread. Called once, on import, with the GIL held.
void find_main_thread();

/// Runs Python's handlers of signals that have come; throws what one raised (KeyboardInterrupt).
/// Cheap and without effect on other threads than the main one. REQUIRES: the GIL is not held.
void look_for_signals();

/// Runs `call`; on the main thread beside it, so that signals are looked for meanwhile. When a
/// handler raises, `give_up` must make `call` end; what was raised leaves here. REQUIRES: the GIL
/// is not held.
void run_interruptibly(const std::function<void()>& call, const std::function<void()>& give_up);

/// A transport whose waits end with Ctrl-C. An interrupted collective call aborts the group, since
/// the others would wait in vain.
std::unique_ptr<Transport> interruptible(std::unique_ptr<Transport> transport);

/// The same for a store, which is borrowed.
std::unique_ptr<Store> interruptible(Store& store);

}  // namespace ferry::python
