// Runs what reads a stranger's grammar: on a stack that is large enough for whatever nesting a text
// within the limits can have, and with an end to how long anybody waits for it.
#pragma once

#include <chrono>
#include <functional>
#include <optional>

namespace ferry {

/// Runs `work` to its end on a thread of its own, and throws what it throws. False: the time is
/// over, and the work goes on by itself; it must own all that it touches. Throws ConfigError where
/// another one that was given up still goes on, so that they never pile up. Threads: any.
[[nodiscard]] bool run_bounded(std::function<void()> work,
                               std::optional<std::chrono::milliseconds> most);

}  // namespace ferry
