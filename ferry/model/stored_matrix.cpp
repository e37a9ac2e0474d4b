#include "ferry/model/stored_matrix.h"

#include <cstring>
#include <vector>

#include "ferry/kernels/kernels.h"
#include "ferry/kernels/wire.h"

namespace ferry {

namespace {

/// Rows of blocks are rows of the fp8 wire, but for their scales, which lie apart and may have
/// another type: each row is put together as the wire has it, and the wire's decoder reads it.
void read_fp8_rows(const StoredMatrix& matrix,
                   std::int64_t first,
                   std::int64_t count,
                   DType type,
                   std::byte* out) {
  const std::int64_t columns = matrix.columns;
  const WireScales layout = wire_scales(WireType::fp8, columns);
  const auto scale_bytes = static_cast<std::ptrdiff_t>(dtype_bytes(matrix.scales.dtype));
  std::vector<std::byte> wire(wire_row_bytes(WireType::fp8, columns));
  for (std::int64_t i = first; i < first + count; ++i) {
    std::memcpy(wire.data(), matrix.row(i), static_cast<std::size_t>(columns));
    const std::int64_t block = i / StoredMatrix::kFp8BlockRows;
    kernels().convert(matrix.scales.data + block * layout.count * scale_bytes,
                      matrix.scales.dtype,
                      wire.data() + layout.offset,
                      DType::f32,
                      layout.count);
    kernels().decode(wire.data(), WireType::fp8, out, type, columns);
    out += columns * static_cast<std::ptrdiff_t>(dtype_bytes(type));
  }
}

}  // namespace

void StoredMatrix::read_rows(std::int64_t first,
                             std::int64_t count,
                             DType type,
                             std::byte* out) const {
  if (format == Format::fp8) {
    read_fp8_rows(*this, first, count, type, out);
  } else {
    kernels().convert(row(first), dtype, out, type, count * columns);
  }
}

StoredMatrix plain_matrix(const TensorView& tensor) {
  return {.dtype = tensor.dtype,
          .rows = tensor.shape[0],
          .columns = tensor.shape[1],
          .data = tensor.span()};
}

}  // namespace ferry
