// What the benchmarks share: clocks, percentiles, routings, and memory that ranks report through.
#pragma once

#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

struct Summary {
  double mean = 0, stddev = 0, p50 = 0, p95 = 0, p99 = 0, min = 0;
};

/// REQUIRES: at least one value.
Summary summarize(std::vector<double> values);

/// How tokens choose their experts: all alike; expert e as 1 / (e + 1); all tokens expert 0 among
/// others.
enum class BenchRouting : std::uint8_t { uniform, zipf, one_hot };

std::string_view routing_name(BenchRouting routing);

/// Throws ConfigError that names the known ones.
BenchRouting parse_routing(std::string name);

/// Fills [tokens, topk] with distinct experts for each token; the same seed gives the same.
void draw_routing(
    BenchRouting routing, int experts, int topk, std::uint64_t seed, std::span<ExpertId> chosen);

/// Whether ranks on that transport read each other's memory.
bool reads_peers(std::string_view transport);

class Stopwatch {
 public:
  double microseconds() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Zeroed elements that ranks and the launching process share, also when ranks are processes
/// themselves: memory that a fork keeps common. Untouched
/// pages cost nothing. To be made before the ranks.
template <class T>
class SharedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit SharedArray(std::size_t count)
      : bytes_(count * sizeof(T)),
        data_(mmap(nullptr,
                   bytes_,
                   PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1,
                   0)) {
    if (data_ == MAP_FAILED) fail<Error>("bench: cannot map {} bytes that ranks share", bytes_);
  }

  ~SharedArray() { munmap(data_, bytes_); }

  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  T& operator[](std::size_t i) const { return static_cast<T*>(data_)[i]; }

 private:
  std::size_t bytes_;
  void* data_;
};

}  // namespace ferry
