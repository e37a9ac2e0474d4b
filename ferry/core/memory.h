// How much memory there is to have.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>

namespace ferry {

/// Bytes that this process may still take without anybody being swapped out or killed: what the
/// kernel calls available, or what its control group has left, whichever is less. None where the
/// system does not say. `root`: where /proc and /sys lie.
std::optional<std::size_t> available_memory(const std::filesystem::path& root = "/");

}  // namespace ferry
