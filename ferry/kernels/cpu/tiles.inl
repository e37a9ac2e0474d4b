// Products on AMX tiles, whatever the weights. Included by amx.cpp alone, after gemm_common.inl.
//
// Rows are gathered into tiles of 16 rows x 64 bytes, [row tile][tile of k][16 rows][64 bytes],
// zeros beyond the rows and beyond k. A panel already is a sequence of tiles: 64 bytes hold what 16
// columns need of 2 (bf16) or 4 (int8) k. Two row tiles meet two panels in four tiles of sums; gate
// and up are such a pair.
//
// K goes in blocks of kBlockTiles. A block of two panels (16 KiB) then stays in the L1 cache while
// all rows pass by, a block of two row tiles (16 KiB) at a time: of four tiles loaded for four
// products two come from L1 and not from L2, which can give 64 bytes a cycle at best and so would
// be all that one waits for. Sums wait in memory meanwhile, as f32 or int32; that changes no bit.

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileRowBytes = 64;
constexpr std::int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr std::int64_t kTileSums = kTileRows * kPanelColumns;
constexpr std::int64_t kBlockTiles = 8;
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

inline void configure_tiles() { asm volatile("ldtilecfg %0" : : "m"(kTileConfig)); }

/// Gathers the first `bytes` of up to 16 rows into the tiles of one row tile.
inline void gather_rows(const std::byte* const* in,
                        std::int64_t rows,
                        std::int64_t bytes,
                        std::byte* out) {
  for (std::int64_t first = 0; first < bytes; first += kTileRowBytes, out += kTileBytes) {
    const std::int64_t left = bytes - first;
    const __mmask64 mask =
        left < kTileRowBytes ? (std::uint64_t{1} << left) - 1 : ~std::uint64_t{0};
    for (std::int64_t r = 0; r < rows; ++r)
      _mm512_store_si512(out + r * kTileRowBytes, _mm512_maskz_loadu_epi8(mask, in[r] + first));
    for (std::int64_t r = rows; r < kTileRows; ++r)
      _mm512_store_si512(out + r * kTileRowBytes, _mm512_setzero_si512());
  }
}

template <class Weights>
std::int64_t tiles_of(std::int64_t k) {
  return (k + Weights::kTileDepth - 1) / Weights::kTileDepth;
}

/// Row tiles and panels that meet, over `tiles` tiles of k.
struct Meeting {
  const std::byte* rows;
  std::int64_t row_step;  ///< from a row tile to the next
  const std::byte* panels;
  std::int64_t panel_step;
  std::int64_t tiles;
};

/// Adds the sums of R row tiles and P panels to what `sums` holds, or begins with zeros where
/// `fresh`: of row tile r and panel p at (2 * r + p) * kTileSums.
template <class Products, int R, int P>
void multiply(Meeting at, bool fresh, Prefetcher& prefetcher, float* sums) {
  asm volatile("" : : : "memory");  // _tile_loadd does not tell the compiler that it reads
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (P == 2) _tile_loadd(1, sums + kTileSums, 64);
    if constexpr (R == 2) _tile_loadd(2, sums + 2 * kTileSums, 64);
    if constexpr (R == 2 && P == 2) _tile_loadd(3, sums + 3 * kTileSums, 64);
  }
  for (std::int64_t i = 0; i < at.tiles; ++i, at.rows += kTileBytes, at.panels += kTileBytes) {
    _tile_loadd(4, at.rows, kTileRowBytes);
    _tile_loadd(6, at.panels, kTileRowBytes);
    Products::template product<0, 4, 6>();
    if constexpr (P == 2) {
      _tile_loadd(7, at.panels + at.panel_step, kTileRowBytes);
      Products::template product<1, 4, 7>();
    }
    if constexpr (R == 2) {
      _tile_loadd(5, at.rows + at.row_step, kTileRowBytes);
      Products::template product<2, 5, 6>();
      if constexpr (P == 2) Products::template product<3, 5, 7>();
    }
    prefetcher.step();
  }
  _tile_stored(0, sums, 64);
  if constexpr (P == 2) _tile_stored(1, sums + kTileSums, 64);
  if constexpr (R == 2) _tile_stored(2, sums + 2 * kTileSums, 64);
  if constexpr (R == 2 && P == 2) _tile_stored(3, sums + 3 * kTileSums, 64);
}

/// Panels as tiles.
struct TilePanels {
  const std::byte* tiles;  ///< of the first panel
  std::int64_t step;       ///< bytes from a panel to the next
  const std::byte* scales;
  std::int64_t scale_step;

  F32x16 scale(std::int64_t panel, std::int64_t group) const {
    return load(reinterpret_cast<const float*>(scales + panel * scale_step) +
                group * kPanelColumns);
  }
};

/// The memory of one call, in its scratch.
struct TileScratch {
  std::byte* rows;      ///< as tiles
  float* sums;          ///< [row tile][2 panels][16 rows][16 columns]
  std::byte* panels;    ///< of Weights that unpack: two panels
  std::byte* ready;     ///< of Weights that make rows ready: 16 of them
  float* scales;        ///< likewise: [rows]
  std::int32_t* minus;  ///< likewise: [rows], what is to be taken off sums

  static constexpr std::int64_t kSumBytes = kPackedRows.most * 2 * kPanelColumns * 4;
  static constexpr std::int64_t kFactorBytes = kPackedRows.most * 4;

  template <class Weights>
  static std::int64_t bytes(std::int64_t tiles) {
    return kPackedRows.most_bytes(tiles * kTileRowBytes) + kSumBytes +
           Weights::unpacked_bytes(tiles) + Weights::ready_bytes(tiles) + 2 * kFactorBytes;
  }

  template <class Weights>
  static TileScratch in(std::byte* memory, std::int64_t tiles) {
    TileScratch scratch{};
    scratch.rows = memory;
    memory += kPackedRows.most_bytes(tiles * kTileRowBytes);
    scratch.sums = reinterpret_cast<float*>(memory);
    scratch.panels = memory += kSumBytes;
    scratch.ready = memory += Weights::unpacked_bytes(tiles);
    memory += Weights::ready_bytes(tiles);
    scratch.scales = reinterpret_cast<float*>(memory);
    scratch.minus = reinterpret_cast<std::int32_t*>(memory + kFactorBytes);
    return scratch;
  }
};

/// P panels from `panel` on and all rows, which lie ready in `scratch`.
template <class Weights, int P>
void some_panels(const GemmArgs& args, const TileScratch& scratch, std::int64_t panel) {
  const std::int64_t tiles = tiles_of<Weights>(args.weights->k);
  const std::int64_t panel_bytes = Weights::panel_bytes(tiles);
  const std::byte* packed = args.weights->data + panel * panel_bytes;
  const std::int64_t row_tiles = (args.rows + kTileRows - 1) / kTileRows;

  const std::int64_t steps = (row_tiles + 1) / 2 * tiles;
  const std::int64_t ahead = smaller(2, args.last_panel - panel - P);
  Prefetcher prefetcher = prefetcher_of(packed + P * panel_bytes, ahead * panel_bytes, steps);

  const TilePanels panels = Weights::template ready_panels<P>(packed, tiles, scratch.panels);
  const std::int64_t block = Weights::block_tiles(tiles, row_tiles);
  for (std::int64_t first = 0; first < tiles; first += block) {
    const bool last = first + block >= tiles;
    for (std::int64_t tile = 0; tile < row_tiles; tile += 2) {
      const Meeting at{.rows = scratch.rows + (tile * tiles + first) * kTileBytes,
                       .row_step = tiles * kTileBytes,
                       .panels = panels.tiles + first * kTileBytes,
                       .panel_step = panels.step,
                       .tiles = smaller(block, tiles - first)};
      float* sums = scratch.sums + 2 * tile * kTileSums;
      if (tile + 1 < row_tiles)
        Weights::template add_block<2, P>(at, panels, first, prefetcher, sums);
      else
        Weights::template add_block<1, P>(at, panels, first, prefetcher, sums);
      if (!last) continue;
      for (std::int64_t t = tile; t < smaller(tile + 2, row_tiles); ++t, sums += 2 * kTileSums) {
        const SumBlock done{.sums = sums,
                            .row_step = kPanelColumns,
                            .panel_step = kTileSums,
                            .first_row = t * kTileRows,
                            .rows = smaller(kTileRows, args.rows - t * kTileRows),
                            .first_panel = panel,
                            .panels = P};
        Weights::complete(done, panels, scratch, sums);
        finish(args, done);
      }
    }
  }
}

template <class Weights>
void tile_gemm(const GemmArgs& args, std::byte* memory) {
  const std::int64_t tiles = tiles_of<Weights>(args.weights->k);
  const TileScratch scratch = TileScratch::in<Weights>(memory, tiles);
  configure_tiles();
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kPackedRows.next(args.rows - first, tiles * kTileRowBytes);
    const GemmArgs part = part_of(args, first, rows);
    for (std::int64_t row = 0; row < rows; row += kTileRows)
      Weights::pack_rows(part, row, smaller(kTileRows, rows - row), tiles, scratch);
    std::int64_t panel = args.first_panel;
    for (; panel + 2 <= args.last_panel; panel += 2) some_panels<Weights, 2>(part, scratch, panel);
    if (panel < args.last_panel) some_panels<Weights, 1>(part, scratch, panel);
  }
  _tile_release();
}
