// Vectors of values as rows.
#pragma once

#include <cstddef>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

template <class T>
const std::byte* bytes_of(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

template <class T>
RowsView rows_of(const std::vector<T>& values, int width) {
  return {bytes_of(values), static_cast<std::ptrdiff_t>(sizeof(T)) * width};
}

inline MutableRowsView into(std::vector<float>& values, int width) {
  return {reinterpret_cast<std::byte*>(values.data()),
          static_cast<std::ptrdiff_t>(sizeof(float)) * width};
}

inline std::size_t product(int a, int b) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

}  // namespace ferry
