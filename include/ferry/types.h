// Words everyone uses: ids, element types, views of rows. docs/design.md has the glossary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ferry/export.h"

namespace ferry {

using Rank = int;               // 0..R-1, one participant of the EP group
using ExpertId = std::int32_t;  // logical expert as the checkpoint numbers it; -1 = none
using SlotId = std::int32_t;    // physical place of an expert replica; -1 = none

/// Element types of tensors, rows and weights.
enum class DType : std::uint8_t { f32, bf16, f16 };

/// Bytes of one element.
constexpr std::size_t dtype_bytes(DType t) { return t == DType::f32 ? 4 : 2; }

FERRY_API std::string_view dtype_name(DType t);

/// Rows of one element type, borrowed. Row i starts at `pointers[i]` where pointers are given,
/// else at `base + i * stride` (bytes). Does not own; valid while its owner says so.
struct RowsView {
  const std::byte* base = nullptr;
  std::ptrdiff_t stride = 0;
  const std::byte* const* pointers = nullptr;

  const std::byte* row(std::int64_t i) const { return pointers ? pointers[i] : base + i * stride; }

  /// The rows from `first` on.
  RowsView from(std::int64_t first) const {
    return {pointers ? base : base + first * stride, stride, pointers ? pointers + first : nullptr};
  }
};

/// Rows that may be written; always base and stride.
struct MutableRowsView {
  std::byte* base = nullptr;
  std::ptrdiff_t stride = 0;

  std::byte* row(std::int64_t i) const { return base + i * stride; }

  MutableRowsView from(std::int64_t first) const { return {base + first * stride, stride}; }
};

}  // namespace ferry
