// The NEON kernels, for any 64-bit ARM processor.
#include <arm_neon.h>

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
  static constexpr int kAhead = 4096;
  static constexpr int kFewPanels = 4;
  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kBlockRows = 6;
  static constexpr int kIntRows = 4;
  static constexpr int kIntPanels = 1;
  static constexpr int kByteRows = 4;
  static constexpr int kBytePanels = 1;
  static constexpr int kQueries = 2;
  static constexpr int kSums = 4;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_neon.inl"
#include "ferry/kernels/cpu/int_neon.inl"
#include "ferry/kernels/cpu/all_kernels.inl"
#include "ferry/kernels/cpu/sampling_neon.inl"
#include "ferry/kernels/cpu/table.inl"
// clang-format on

}  // namespace

constinit const Kernels kNeon = table_of(Isa::neon, "neon");

}  // namespace ferry::cpu
