// Where a line of source is, for messages: std::source_location, which is one pointer.
#pragma once

#include <source_location>

namespace ferry::testing {

#ifdef __cpp_lib_source_location

using Site = std::source_location;

#else  // clang-tidy 14 cannot read GCC 12's. It runs nothing.

class Site {
 public:
  static constexpr Site current() { return {}; }

  constexpr const char* file_name() const { return file_; }

  constexpr unsigned line() const { return 0; }

  constexpr unsigned column() const { return 0; }

 private:
  const char* file_ = "";
};

#endif

}  // namespace ferry::testing
