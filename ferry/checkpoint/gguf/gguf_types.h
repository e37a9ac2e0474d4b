// How GGUF files store elements: plain, or in blocks of codes and scales, as ggml lays them out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

struct GgufType {
  std::uint32_t number = 0;         ///< in the file
  std::string_view name;            ///< as ggml calls it: "Q4_K"
  std::int64_t elements = 1;        ///< of one block
  std::int64_t bytes = 0;           ///< of one block; 0: of a type that is not supported
  std::optional<DType> dtype = {};  ///< of plain elements
  /// One block as f32, each product and sum rounded once, as ggml's own code does. Null for plain
  /// elements.
  void (*read_block)(const std::byte* block, float* out) = nullptr;
  /// The type of weights that holds such blocks as they are. Absent for plain elements.
  std::optional<WeightType> held = {};

  /// REQUIRES: `elements` divides columns.
  std::int64_t row_bytes(std::int64_t columns) const { return columns / elements * bytes; }

  /// One row of so many columns as f32.
  void read_row(const std::byte* row, std::int64_t columns, float* out) const;

  /// The same as weights of type `held` have it: [code_row_bytes] and [weight_groups].
  void read_codes(const std::byte* row,
                  std::int64_t columns,
                  std::byte* codes,
                  float* scales) const;
};

/// All that have a name, also those that are not supported.
std::span<const GgufType> gguf_types();

/// Null when there is none.
const GgufType* find_gguf_type(std::uint32_t number);
const GgufType* find_gguf_type(std::string_view name);

}  // namespace ferry
