// The AVX-512 kernels (F, BW, DQ, VL), compiled with their own -m flags.
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
  static constexpr int kPassPanels = 2;
  static constexpr int kAhead = 4096;
  static constexpr int kFewPanels = 4;
  static constexpr int kRows = 4;
  static constexpr int kPanels = 2;
  static constexpr int kBlockRows = 0;
  static constexpr int kIntRows = 4;
  static constexpr int kIntPanels = 2;
  static constexpr int kByteRows = 4;
  static constexpr int kBytePanels = 2;
  static constexpr int kQueries = 4;
  static constexpr int kSums = 16;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx512.inl"
#include "ferry/kernels/cpu/int_avx512.inl"
#include "ferry/kernels/cpu/all_kernels.inl"
#include "ferry/kernels/cpu/sampling_avx512.inl"
#include "ferry/kernels/cpu/table.inl"
// clang-format on

}  // namespace

constinit const Kernels kAvx512 = table_of(Isa::avx512, "avx512");

}  // namespace ferry::cpu
