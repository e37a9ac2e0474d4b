// Counting what a thread takes from the heap. In a binary that links allocation_count.cpp.
#pragma once

#include <cstdint>

namespace ferry::testing {

/// Calls of operator new, by this thread and since it was made; always 0 in sanitizer builds.
class AllocationCount {
 public:
  AllocationCount();
  std::int64_t so_far() const;

  /// What those calls asked for together.
  std::int64_t bytes_so_far() const;

 private:
  std::int64_t before_;
  std::int64_t bytes_before_;
};

}  // namespace ferry::testing
