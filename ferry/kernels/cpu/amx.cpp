// Products of more than a few rows with all weights but f32 and int4, on AMX tiles. Everything
// else of the amx table is the AVX-512 one with VNNI.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ferry/kernels/cpu/tables.h"

namespace ferry::cpu {

namespace {

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx512.inl"
#include "ferry/kernels/cpu/int_avx512.inl"
#include "ferry/kernels/cpu/math.inl"
#include "ferry/kernels/cpu/row_ops.inl"
#include "ferry/kernels/cpu/wire.inl"
#include "ferry/kernels/cpu/gemm_common.inl"
#include "ferry/kernels/cpu/fp8_panels.inl"
#include "ferry/kernels/cpu/mxfp4_panels.inl"
#include "ferry/kernels/cpu/ggml_panels.inl"
#include "ferry/kernels/cpu/int_rows.inl"
#include "ferry/kernels/cpu/tiles.inl"

// clang-format on

/// sum tile += row tile * panel tile, of bf16.
struct Bf16Products {
  static constexpr std::int64_t kTileDepth = kBf16KBlock;

  template <int Sum, int Row, int Panel>
  static void product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Row), "i"(Panel));
  }
};

/// The same of the rows' bytes with sign and the panels' without, in int32.
struct Int8Products {
  static constexpr std::int64_t kTileDepth = kIntKBlock;

  template <int Sum, int Row, int Panel>
  static void product() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Row), "i"(Panel));
  }
};

/// bf16 rows, as they are.
struct Bf16Rows : Bf16Products {
  static std::int64_t ready_bytes(std::int64_t /*tiles*/) { return 0; }

  static void pack_rows(const GemmArgs& args,
                        std::int64_t first,
                        std::int64_t rows,
                        std::int64_t tiles,
                        const TileScratch& scratch) {
    const std::byte* in[kTileRows];
    for (std::int64_t r = 0; r < rows; ++r) in[r] = row_of(args.in, first + r);
    gather_rows(in, rows, args.weights->k * 2, scratch.rows + first * tiles * kTileRowBytes);
  }

  static void complete(const SumBlock& /*block*/,
                       const TilePanels& /*panels*/,
                       const TileScratch& /*scratch*/,
                       float* /*sums*/) {}
};

/// Panels that are tiles as they lie, and blocks of k that go on where the one before ended. Rows
/// that meet each panel once only have nothing to gain from blocks.
template <class Products>
struct TilesInPlace : Products {
  static std::int64_t unpacked_bytes(std::int64_t /*tiles*/) { return 0; }

  static std::int64_t block_tiles(std::int64_t tiles, std::int64_t row_tiles) {
    return row_tiles > 2 ? kBlockTiles : larger(tiles, 1);
  }

  template <int R, int P>
  static void add_block(const Meeting& at,
                        const TilePanels& /*panels*/,
                        std::int64_t first,
                        Prefetcher& prefetcher,
                        float* sums) {
    multiply<Products, R, P>(at, first == 0, prefetcher, sums);
  }
};

struct Bf16Tiles : TilesInPlace<Bf16Rows> {
  static std::int64_t panel_bytes(std::int64_t tiles) { return tiles * kTileBytes; }

  template <int P>
  static TilePanels ready_panels(const std::byte* packed, std::int64_t tiles, std::byte* /*room*/) {
    return {.tiles = packed, .step = panel_bytes(tiles), .scales = nullptr, .scale_step = 0};
  }
};

/// Codes become bf16 once for all rows.
struct Mxfp4Tiles : TilesInPlace<Bf16Rows> {
  static std::int64_t panel_bytes(std::int64_t tiles) {
    return mxfp4_panel_bytes(tiles * kBf16KBlock);
  }

  static std::int64_t unpacked_bytes(std::int64_t tiles) { return 2 * tiles * kTileBytes; }

  template <int P>
  static TilePanels ready_panels(const std::byte* packed, std::int64_t tiles, std::byte* room) {
    for (std::int64_t p = 0; p < P; ++p) {
      unpack_mxfp4(
          packed + p * panel_bytes(tiles), tiles * kBf16KBlock, room + p * tiles * kTileBytes);
    }
    return {.tiles = room, .step = tiles * kTileBytes, .scales = nullptr, .scale_step = 0};
  }
};

template <class Pairs16>
struct GgmlTiles : TilesInPlace<Bf16Rows> {
  static std::int64_t panel_bytes(std::int64_t tiles) {
    return Pairs16::panel_bytes(tiles * kBf16KBlock);
  }

  static std::int64_t unpacked_bytes(std::int64_t tiles) { return 2 * tiles * kTileBytes; }

  template <int P>
  static TilePanels ready_panels(const std::byte* packed, std::int64_t tiles, std::byte* room) {
    for (std::int64_t p = 0; p < P; ++p) {
      unpack_ggml<Pairs16>(
          packed + p * panel_bytes(tiles), tiles * kBf16KBlock, room + p * tiles * kTileBytes);
    }
    return {.tiles = room, .step = tiles * kTileBytes, .scales = nullptr, .scale_step = 0};
  }
};

/// Likewise, but each group of k has a scale, and so is a block whose sums begin with zeros.
struct Fp8Tiles : Bf16Rows {
  static constexpr std::int64_t kGroupTiles = kFp8Block / kBf16KBlock;

  static std::int64_t panel_bytes(std::int64_t tiles) {
    return fp8_panel_bytes(tiles * kBf16KBlock);
  }

  static std::int64_t unpacked_bytes(std::int64_t tiles) { return 2 * tiles * kTileBytes; }

  static std::int64_t block_tiles(std::int64_t /*tiles*/, std::int64_t /*row_tiles*/) {
    return kGroupTiles;
  }

  template <int P>
  static TilePanels ready_panels(const std::byte* packed, std::int64_t tiles, std::byte* room) {
    const std::int64_t k = tiles * kBf16KBlock;
    for (std::int64_t p = 0; p < P; ++p)
      unpack_fp8(packed + p * panel_bytes(tiles), k, room + p * tiles * kTileBytes);
    return {.tiles = room,
            .step = tiles * kTileBytes,
            .scales = packed + k * kPanelColumns,
            .scale_step = panel_bytes(tiles)};
  }

  template <int R, int P>
  static void add_block(const Meeting& at,
                        const TilePanels& panels,
                        std::int64_t first,
                        Prefetcher& prefetcher,
                        float* totals) {
    alignas(64) float sums[4 * kTileSums];
    multiply<Bf16Products, R, P>(at, true, prefetcher, sums);
    for (std::int64_t p = 0; p < P; ++p) {
      const F32x16 scale = panels.scale(p, first / kGroupTiles);
      for (std::int64_t r = 0; r < R * kTileRows; ++r) {
        const std::int64_t i =
            (2 * (r / kTileRows) + p) * kTileSums + r % kTileRows * kPanelColumns;
        const F32x16 before = first == 0 ? splat(0.0F) : load(totals + i);
        store(totals + i, fma(load(sums + i), scale, before));
      }
    }
  }
};

/// Rows rounded to int8; exact integer sums, which become floats at the end.
struct Int8Tiles : TilesInPlace<Int8Products> {
  using Row = IntRow<Int8Codes>;

  static std::int64_t panel_bytes(std::int64_t tiles) {
    return tiles * kTileBytes + kPanelColumns * 4;
  }

  static std::int64_t ready_bytes(std::int64_t tiles) {
    return kTileRows * Row::bytes(tiles * kIntKBlock);
  }

  static void pack_rows(const GemmArgs& args,
                        std::int64_t first,
                        std::int64_t rows,
                        std::int64_t tiles,
                        const TileScratch& scratch) {
    const std::int64_t k = tiles * kIntKBlock;
    const std::byte* in[kTileRows];
    for (std::int64_t r = 0; r < rows; ++r) {
      std::byte* ready = scratch.ready + r * Row::bytes(k);
      Row::quantise(row_of(args.in, first + r), args.weights->k, k, ready);
      scratch.scales[first + r] = Row::scale(ready, k);
      scratch.minus[first + r] = Row::sum(ready, k, 0) * std::int32_t{Int8Codes::kBias};
      in[r] = ready;
    }
    gather_rows(in, rows, k, scratch.rows + first * tiles * kTileRowBytes);
  }

  template <int P>
  static TilePanels ready_panels(const std::byte* packed, std::int64_t tiles, std::byte* /*room*/) {
    return {.tiles = packed,
            .step = panel_bytes(tiles),
            .scales = packed + tiles * kTileBytes,
            .scale_step = panel_bytes(tiles)};
  }

  static void complete(const SumBlock& block,
                       const TilePanels& panels,
                       const TileScratch& scratch,
                       float* sums) {
    for (std::int64_t p = 0; p < block.panels; ++p, sums += block.panel_step) {
      const F32x16 scale = panels.scale(p, 0);
      for (std::int64_t r = 0; r < block.rows; ++r) {
        float* sum = sums + r * block.row_step;
        const I32x16 exact = subtract({_mm512_load_si512(sum)}, scratch.minus[block.first_row + r]);
        const F32x16 scaled = fma(to_floats(exact), scale, splat(0.0F));
        store(sum, mul(scaled, splat(scratch.scales[block.first_row + r])));
      }
    }
  }
};

/// Fewer rows go through the loops of the AVX-512 table, whose results have the same bits: they
/// read weights as fast. Measured with bf16, where one and two rows do. fp8, mxfp4 and blocks:
/// fewer do not pay for unpacking.
constexpr std::int64_t fewest_tile_rows(WeightType weights) {
  const bool unpacks =
      weights == WeightType::fp8 || weights == WeightType::mxfp4 || is_ggml(weights);
  return unpacks ? 8 : 3;
}

/// Calls body with the tiles of these weights. False where they have none.
template <class Body>
bool with_tiles(WeightType weights, Body body) {
  if (is_byte_block(weights)) return false;
  switch (weights) {
    case WeightType::bf16:
      body(Bf16Tiles{});
      return true;
    case WeightType::fp8:
      body(Fp8Tiles{});
      return true;
    case WeightType::mxfp4:
      body(Mxfp4Tiles{});
      return true;
    case WeightType::int8:
      body(Int8Tiles{});
      return true;
    case WeightType::f32:
    case WeightType::int4:
      break;
    default:
      with_ggml_pairs(weights, [&]<class Pairs16>(Pairs16) { body(GgmlTiles<Pairs16>{}); });
      return true;
  }
  return false;
}

/// Products in all four tiles of sums.
template <class Products>
std::uint64_t multiply_tiles(std::int64_t rounds) {
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
    Products::template product<0, 4, 6>();
    Products::template product<1, 4, 7>();
    Products::template product<2, 5, 6>();
    Products::template product<3, 5, 7>();
  }
  _tile_release();
  return static_cast<std::uint64_t>(rounds * 4 * kTileSums * Products::kTileDepth * 2);
}

}  // namespace

std::size_t amx_gemm_scratch_bytes(WeightType weights, std::int64_t k) {
  const std::size_t few_rows = kAvx512.gemm_scratch_bytes(weights, k);
  std::size_t needed = few_rows;
  with_tiles(weights, [&]<class Tiles>(Tiles) {
    needed = static_cast<std::size_t>(TileScratch::bytes<Tiles>(tiles_of<Tiles>(k)) + 64);
  });
  return needed < few_rows ? few_rows : needed;
}

void amx_gemm(const GemmArgs& args) {
  const PackedMatrix& w = *args.weights;
  const bool done =
      args.rows >= fewest_tile_rows(w.type) && with_tiles(w.type, [&]<class Tiles>(Tiles) {
        tile_gemm<Tiles>(args, aligned_scratch(args, amx_gemm_scratch_bytes(w.type, w.k)));
      });
  if (!done) vnni_gemm(args);
}

std::uint64_t amx_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  std::uint64_t operations = 0;
  const bool done =
      with_tiles(weights, [&]<class Tiles>(Tiles) { operations = multiply_tiles<Tiles>(rounds); });
  return done ? operations : vnni_multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
