// Packing of weights into panels, once at load.
#include <algorithm>
#include <cstring>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kChunk = 256;  // k at a time: 16 columns of f32 are 16 KB

/// One panel's chunk: 16 columns of up to kChunk elements of the packed type, column after column.
struct Chunk {
  alignas(64) std::byte data[kPanelColumns * kChunk * 4];
};

/// Reads k elements from `first` on of the panel's columns, zeros beyond the matrix.
void read_chunk(const PackArgs& args,
                std::int64_t panel,
                std::int64_t first,
                std::int64_t count,
                Chunk& chunk) {
  const std::int64_t from_bytes = static_cast<std::int64_t>(dtype_bytes(args.source_type));
  const std::int64_t to_bytes = static_cast<std::int64_t>(dtype_bytes(args.dtype));
  for (std::int64_t c = 0; c < kPanelColumns; ++c) {
    const std::int64_t column = panel * kPanelColumns + c;
    const std::int64_t have =
        column < args.n ? std::clamp<std::int64_t>(args.k - first, 0, count) : 0;
    std::byte* to = chunk.data + c * kChunk * to_bytes;
    if (have > 0) {
      const std::byte* from = args.source + (column * args.k + first) * from_bytes;
      kernels().convert(from, args.source_type, to, args.dtype, have);
    }
    std::memset(to + have * to_bytes, 0, static_cast<std::size_t>((count - have) * to_bytes));
  }
}

/// Writes columns side by side: in units of one f32, or of one pair of bf16.
void write_chunk(const Chunk& chunk, std::int64_t units, std::int64_t chunk_units, std::byte* out) {
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t c = 0; c < kPanelColumns; ++c)
      std::memcpy(out + (u * kPanelColumns + c) * 4, chunk.data + (c * chunk_units + u) * 4, 4);
}

}  // namespace

void pack_matrix(const PackArgs& args) {
  const bool pairs = args.dtype == DType::bf16;
  const std::int64_t k = pairs ? round_up(args.k, kBf16KBlock) : args.k;
  const std::int64_t per_unit = pairs ? 2 : 1;
  const auto panel_bytes =
      static_cast<std::int64_t>(PackedMatrix::packed_panel_bytes(args.dtype, args.k));
  Chunk chunk;
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * panel_bytes;
    for (std::int64_t first = 0; first < k; first += kChunk) {
      const std::int64_t count = std::min(kChunk, k - first);
      read_chunk(args, panel, first, count, chunk);
      write_chunk(
          chunk, count / per_unit, kChunk / per_unit, out + first / per_unit * kPanelColumns * 4);
    }
  }
}

}  // namespace ferry
