// The scalar kernels: plain C++ for any machine, and the definition that the others equal.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ferry/kernels/cpu/tables.h"

namespace ferry::cpu {

namespace {

struct Tiling {
  static constexpr int kOnePanels = 1;
  static constexpr int kPassPanels = 1;
  static constexpr int kAhead = 0;
  static constexpr int kFewPanels = 1;
  static constexpr int kRows = 1;
  static constexpr int kPanels = 1;
  static constexpr int kBlockRows = 0;
  static constexpr int kIntRows = 1;
  static constexpr int kIntPanels = 1;
  static constexpr int kByteRows = 1;
  static constexpr int kBytePanels = 1;
  static constexpr int kQueries = 1;
  static constexpr int kSums = 1;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/elements.inl"
#include "ferry/kernels/cpu/vec_scalar.inl"
#include "ferry/kernels/cpu/int_scalar.inl"
#include "ferry/kernels/cpu/all_kernels.inl"
#include "ferry/kernels/cpu/sampling_scalar.inl"
#include "ferry/kernels/cpu/table.inl"
// clang-format on

}  // namespace

constinit const Kernels kScalar = table_of(Isa::scalar, "scalar");

}  // namespace ferry::cpu
