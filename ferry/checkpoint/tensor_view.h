// A tensor's bytes as somebody else owns them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// A tensor in a mapped file, rows first ([out, in] for a matrix). Borrowed from the file. `data`
/// may be unaligned, even for its element: read it with memcpy or unaligned loads.
struct TensorView {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::string_view type = {};  ///< as its source writes it; empty where nobody asks

  std::span<const std::byte> span() const { return {data, bytes}; }
};

}  // namespace ferry
