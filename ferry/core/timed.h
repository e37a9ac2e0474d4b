// How long things take, added up.
#pragma once

#include <chrono>

namespace ferry {

/// Adds the time it lives to a sum, which it borrows.
class Timed {
 public:
  explicit Timed(std::chrono::nanoseconds& sum) : sum_(sum) {}

  ~Timed() { sum_ += std::chrono::steady_clock::now() - begin_; }

  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  std::chrono::nanoseconds& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace ferry
