#include "ferry/core/memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace ferry {

namespace {

std::optional<std::size_t> number_in(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::size_t value = 0;
  if (!(in >> value)) return std::nullopt;  // also for "max", which means no limit
  return value;
}

/// Of lines with a name, a number and perhaps a unit.
std::optional<std::size_t> number_in(const std::filesystem::path& file, const std::string& name) {
  std::ifstream in(file);
  std::string found;
  std::size_t value = 0;
  std::string unit;
  while (in >> found >> value) {
    std::getline(in, unit);
    if (found == name) return value;
  }
  return std::nullopt;
}

std::optional<std::size_t> available_on_machine(const std::filesystem::path& root) {
  const auto kilobytes = number_in(root / "proc/meminfo", "MemAvailable:");
  if (!kilobytes) return std::nullopt;
  return *kilobytes * 1024;
}

/// Of the control group that the process lies in, as a container shows it: at the top. The files
/// that it has read count as used until somebody wants their memory.
std::optional<std::size_t> left_in_group(const std::filesystem::path& root) {
  const auto group = root / "sys/fs/cgroup";
  const auto limit = number_in(group / "memory.max");
  const auto used = number_in(group / "memory.current");
  if (!limit || !used) return std::nullopt;
  const std::size_t files = number_in(group / "memory.stat", "inactive_file").value_or(0);
  return *limit - std::min(*used - std::min(files, *used), *limit);
}

}  // namespace

std::optional<std::size_t> available_memory(const std::filesystem::path& root) {
  const auto machine = available_on_machine(root);
  const auto group = left_in_group(root);
  if (machine && group) return std::min(*machine, *group);
  return machine ? machine : group;
}

}  // namespace ferry
