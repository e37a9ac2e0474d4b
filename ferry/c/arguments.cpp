#include "ferry/c/arguments.h"

#include <cmath>

namespace ferry::c {

std::chrono::nanoseconds duration(double seconds, const char* name) {
  if (!(seconds >= 0)) fail<ConfigError>("{} is {} s; at least 0 is possible", name, seconds);
  constexpr double kMost = 9e9;  // 285 years: nanoseconds count no further
  if (seconds >= kMost) return std::chrono::nanoseconds::max();
  return std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * 1e9));
}

MemoryPlace any_place(const ferry_place& given) {
  return {.kind = enumerator(given.memory, MemoryKind::device, "ferry_place::memory"),
          .device = given.device,
          .queue = given.queue};
}

MemoryPlace place(const ferry_place& given, const char* name) {
  MemoryPlace ours = any_place(given);
  if (ours.kind != MemoryKind::host || ours.queue != nullptr) {
    fail<ConfigError>("{}: {} memory{}; this works on host memory without a queue",
                      name,
                      memory_kind_name(ours.kind),
                      ours.queue != nullptr ? " with a queue" : "");
  }
  return ours;
}

ferry_place place(const MemoryPlace& ours) {
  return {static_cast<std::int32_t>(ours.kind), ours.device, ours.queue};
}

RowsView rows(const void* data, std::int64_t stride, std::int64_t count, const char* name) {
  if (data == nullptr && count > 0) fail<ConfigError>("{} is NULL, {} rows expected", name, count);
  return {static_cast<const std::byte*>(data), static_cast<std::ptrdiff_t>(stride)};
}

MutableRowsView rows(
    void* data, std::int64_t stride, std::int64_t count, std::size_t row_bytes, const char* name) {
  if (data == nullptr && count > 0) fail<ConfigError>("{} is NULL, {} rows expected", name, count);
  if (count > 1 && std::abs(stride) < static_cast<std::int64_t>(row_bytes)) {
    fail<ConfigError>(
        "{}: a stride of {} bytes; a row that is written takes {}", name, stride, row_bytes);
  }
  return {static_cast<std::byte*>(data), static_cast<std::ptrdiff_t>(stride)};
}

}  // namespace ferry::c
