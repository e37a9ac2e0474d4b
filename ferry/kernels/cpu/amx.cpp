// Products of more than a few rows with bf16 weights, on AMX tiles. Everything else of the amx
// table is the AVX-512 one with VNNI.
//
// Rows are gathered into tiles of 16 rows x 32 k, [row tile][k block][16 rows][32 k], zeros beyond
// the rows and beyond k. A panel already is a sequence of tiles of 16 k pairs x 16 columns. Two row
// tiles meet two panels in four tiles of sums, over the whole of k; gate and up are such a pair.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ferry/kernels/cpu/tables.h"

namespace ferry::cpu {

namespace {

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx512.inl"
#include "ferry/kernels/cpu/math.inl"
#include "ferry/kernels/cpu/gemm_common.inl"
// clang-format on

/// Fewer rows go through the FMA loop, whose sums have the same bits. Measured: it takes two rows
/// together at the speed of memory, while three already cost it a second pass.
constexpr std::int64_t kFewestTileRows = 3;

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 1024;
constexpr std::int64_t kTileFloats = kTileBytes / 4;
constexpr std::int64_t kTileRowBytes = kBf16KBlock * 2;
constexpr RowBudget kPackedRows{.bytes = 1024 * 1024, .fewest = 32, .most = 256};

/// All eight tiles are 16 rows of 64 bytes. Loaded by our own asm: gcc 12's _tile_loadconfig tells
/// the compiler of 8 of the 64 bytes only. Loaded and released by every call: that costs 0.1 us,
/// and stays right when other code of the process uses tiles for itself.
struct TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static_assert(sizeof(TileConfig) == 64);
alignas(64) constexpr TileConfig kTileConfig;

void configure_tiles() { asm volatile("ldtilecfg %0" : : "m"(kTileConfig)); }

/// Gathers rows into tiles.
void pack_rows(const GemmArgs& args, std::byte* out) {
  const std::int64_t k = args.weights->k;
  const std::int64_t whole = k / kBf16KBlock;
  const std::int64_t blocks = (k + kBf16KBlock - 1) / kBf16KBlock;
  const auto tail = static_cast<__mmask32>((std::uint64_t{1} << (k - whole * kBf16KBlock)) - 1);
  for (std::int64_t first = 0; first < args.rows; first += kTileRows) {
    const std::int64_t rows = smaller(kTileRows, args.rows - first);
    const std::byte* in[kTileRows];
    for (std::int64_t r = 0; r < rows; ++r) in[r] = row_of(args.in, first + r);
    for (std::int64_t b = 0; b < blocks; ++b, out += kTileBytes) {
      const __mmask32 mask = b < whole ? ~__mmask32{0} : tail;
      for (std::int64_t r = 0; r < rows; ++r) {
        const __m512i x = _mm512_maskz_loadu_epi16(mask, in[r] + b * kTileRowBytes);
        _mm512_store_si512(out + r * kTileRowBytes, x);
      }
      for (std::int64_t r = rows; r < kTileRows; ++r)
        _mm512_store_si512(out + r * kTileRowBytes, _mm512_setzero_si512());
    }
  }
}

/// Brings the next panels into L2, a few lines at each step of the product before.
struct Prefetcher {
  const std::byte* next;
  const std::byte* end;
  std::int64_t lines_a_step;

  void step() {
    for (std::int64_t i = 0; i < lines_a_step && next < end; ++i, next += 64)
      _mm_prefetch(next, _MM_HINT_T1);
  }
};

/// Sums of R row tiles and P panels, stored as tiles: (row tile, panel) at (2 * r + p) tiles.
template <int R, int P>
void multiply(const std::byte* a,
              const std::byte* w,
              std::int64_t blocks,
              Prefetcher& prefetcher,
              float* sums) {
  const std::int64_t step = blocks * kTileBytes;  // from a row tile, or a panel, to the next
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t b = 0; b < blocks; ++b, a += kTileBytes, w += kTileBytes) {
    _tile_loadd(4, a, kTileRowBytes);
    _tile_loadd(6, w, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (P == 2) {
      _tile_loadd(7, w + step, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a + step, kTileRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (P == 2) _tile_dpbf16ps(3, 5, 7);
    }
    prefetcher.step();
  }
  _tile_stored(0, sums, 64);
  if constexpr (P == 2) _tile_stored(1, sums + kTileFloats, 64);
  if constexpr (R == 2) _tile_stored(2, sums + 2 * kTileFloats, 64);
  if constexpr (R == 2 && P == 2) _tile_stored(3, sums + 3 * kTileFloats, 64);
}

/// P panels from `panel` on and all rows, which lie packed at `a`.
template <int P>
void some_panels(const GemmArgs& args, const std::byte* a, std::int64_t panel) {
  const std::int64_t blocks = (args.weights->k + kBf16KBlock - 1) / kBf16KBlock;
  const std::int64_t panel_bytes = blocks * kTileBytes;
  const std::byte* w = args.weights->data + panel * panel_bytes;
  const std::int64_t row_tiles = (args.rows + kTileRows - 1) / kTileRows;
  const std::int64_t steps = (row_tiles + 1) / 2 * blocks;
  const std::int64_t lines = 2 * panel_bytes / 64;
  const std::byte* next = w + P * panel_bytes;
  const std::int64_t ahead = smaller(2, args.last_panel - panel - P);
  Prefetcher prefetcher{next, next + ahead * panel_bytes, (lines + steps - 1) / larger(steps, 1)};

  alignas(64) float sums[4 * kTileFloats];
  for (std::int64_t tile = 0; tile < row_tiles; tile += 2) {
    const std::int64_t rows = args.rows - tile * kTileRows;
    if (rows > kTileRows)
      multiply<2, P>(a + tile * panel_bytes, w, blocks, prefetcher, sums);
    else
      multiply<1, P>(a + tile * panel_bytes, w, blocks, prefetcher, sums);
    SumBlock block{.sums = sums,
                   .row_step = kPanelColumns,
                   .panel_step = kTileFloats,
                   .first_row = tile * kTileRows,
                   .rows = smaller(rows, kTileRows),
                   .first_panel = panel,
                   .panels = P};
    finish(args, block);
    if (rows <= kTileRows) continue;
    block.sums = sums + 2 * kTileFloats;
    block.first_row += kTileRows;
    block.rows = smaller(rows - kTileRows, kTileRows);
    finish(args, block);
  }
}

}  // namespace

std::size_t amx_gemm_scratch_bytes(WeightType weights, std::int64_t k) {
  const std::size_t few_rows = kAvx512.gemm_scratch_bytes(weights, k);
  if (weights != WeightType::bf16) return few_rows;
  const std::int64_t row_bytes = round_up_to(k, kBf16KBlock) * 2;
  const auto tiles = static_cast<std::size_t>(kPackedRows.most_bytes(row_bytes) + 64);
  return tiles < few_rows ? few_rows : tiles;
}

void amx_gemm(const GemmArgs& args) {
  const PackedMatrix& w = *args.weights;
  if (w.type != WeightType::bf16 || args.rows < kFewestTileRows) {
    vnni_gemm(args);
    return;
  }
  configure_tiles();
  std::byte* packed = aligned_scratch(args, amx_gemm_scratch_bytes(w.type, w.k));
  const std::int64_t row_bytes = round_up_to(w.k, kBf16KBlock) * 2;
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kPackedRows.next(args.rows - first, row_bytes);
    const GemmArgs part = part_of(args, first, rows);
    pack_rows(part, packed);
    asm volatile("" : : : "memory");  // _tile_loadd does not tell the compiler that it reads
    std::int64_t panel = args.first_panel;
    for (; panel + 2 <= args.last_panel; panel += 2) some_panels<2>(part, packed, panel);
    if (panel < args.last_panel) some_panels<1>(part, packed, panel);
  }
  _tile_release();
}

std::uint64_t amx_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (weights != WeightType::bf16) return vnni_multiply_in_registers(weights, rounds);
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (std::int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  constexpr std::uint64_t kProducts = 4;
  return static_cast<std::uint64_t>(rounds) * kProducts * kTileRows * kPanelColumns * kBf16KBlock *
         2;
}

}  // namespace ferry::cpu
