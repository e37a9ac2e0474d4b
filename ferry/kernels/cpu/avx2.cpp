// The AVX2 kernels (with FMA and F16C), compiled with their own -m flags.
#include <immintrin.h>

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
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx2.inl"
#include "ferry/kernels/cpu/int_avx2.inl"
#include "ferry/kernels/cpu/all_kernels.inl"
#include "ferry/kernels/cpu/sampling_avx2.inl"
#include "ferry/kernels/cpu/table.inl"
// clang-format on

}  // namespace

constinit const Kernels kAvx2 = table_of(Isa::avx2, "avx2");

}  // namespace ferry::cpu
