#include "ferry/checkpoint/stored_matrix.h"

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
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

/// The type of weights that are held as such a matrix is stored, codes and scales.
std::optional<WeightType> weight_type_of(StoredMatrix::Format format) {
  switch (format) {
    case StoredMatrix::Format::fp8:
      return WeightType::fp8;
    case StoredMatrix::Format::int8:
      return WeightType::int8;
    case StoredMatrix::Format::int4:
      return WeightType::int4;
    case StoredMatrix::Format::plain:
    case StoredMatrix::Format::mxfp4:
      break;
  }
  return std::nullopt;
}

/// Codes are integers times scales: one rounded product each.
void read_integer_rows(const StoredMatrix& matrix,
                       std::int64_t first,
                       std::int64_t count,
                       DType type,
                       std::byte* out) {
  const std::int64_t k = matrix.columns;
  const WeightType held = weight_type_of(matrix.format).value();
  const std::int64_t group = held == WeightType::int8 ? k : kInt4Group;
  std::vector<std::byte> codes(static_cast<std::size_t>(code_row_bytes(held, k)));
  std::vector<float> scales(static_cast<std::size_t>(weight_groups(held, k)));
  std::vector<float> row(static_cast<std::size_t>(k));
  for (std::int64_t i = first; i < first + count; ++i) {
    matrix.read_codes(i, codes.data(), scales.data());
    for (std::int64_t j = 0; j < k; ++j) {
      const auto at = static_cast<std::size_t>(j);
      const int code = held == WeightType::int8
                           ? static_cast<std::int8_t>(codes[at])
                           : std::to_integer<int>(codes[at / 2] >> (j % 2 * 4) & std::byte{15}) - 8;
      row[at] = static_cast<float>(code) * scales[static_cast<std::size_t>(j / group)];
    }
    kernels().convert(reinterpret_cast<const std::byte*>(row.data()), DType::f32, out, type, k);
    out += k * static_cast<std::ptrdiff_t>(dtype_bytes(type));
  }
}

/// Elements of type T, brought together column by column: rows that are read together are
/// neighbours in the file.
template <class T>
void gather_rows(const StoredMatrix& matrix, std::int64_t first, std::int64_t count, T* out) {
  for (std::int64_t j = 0; j < matrix.columns; ++j) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t element = (first + i) * matrix.row_step + j * matrix.column_step;
      std::memcpy(out + i * matrix.columns + j,
                  matrix.data.data() + element * static_cast<std::int64_t>(sizeof(T)),
                  sizeof(T));
    }
  }
}

/// Each element is exact in f32, and in bf16, but where its power of two leaves their range.
void read_mxfp4_rows(const StoredMatrix& matrix,
                     std::int64_t first,
                     std::int64_t count,
                     DType type,
                     std::byte* out) {
  constexpr std::array<double, 16> kValues = {
      0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
  std::vector<float> row(static_cast<std::size_t>(matrix.columns));
  for (std::int64_t i = first; i < first + count; ++i) {
    for (std::int64_t j = 0; j < matrix.columns; ++j) {
      const std::int64_t element = i * matrix.row_step + j;
      const std::byte two = matrix.data[static_cast<std::size_t>(element / 2)];
      const std::byte code = two >> (element % 2 * 4) & std::byte{15};
      const int exponent =
          std::to_integer<int>(matrix.scales.data[element / StoredMatrix::kMxfp4Group]) - 127;
      row[static_cast<std::size_t>(j)] =
          static_cast<float>(std::ldexp(kValues[std::to_integer<std::size_t>(code)], exponent));
    }
    kernels().convert(
        reinterpret_cast<const std::byte*>(row.data()), DType::f32, out, type, matrix.columns);
    out += matrix.columns * static_cast<std::ptrdiff_t>(dtype_bytes(type));
  }
}

void read_scattered_rows(const StoredMatrix& matrix,
                         std::int64_t first,
                         std::int64_t count,
                         DType type,
                         std::byte* out) {
  const std::int64_t elements = count * matrix.columns;
  std::vector<float> rows(static_cast<std::size_t>(elements));  // room for any type
  auto* bytes = reinterpret_cast<std::byte*>(rows.data());
  if (dtype_bytes(matrix.dtype) == sizeof(float)) {
    gather_rows(matrix, first, count, rows.data());
  } else {
    gather_rows(matrix, first, count, reinterpret_cast<std::uint16_t*>(bytes));
  }
  kernels().convert(bytes, matrix.dtype, out, type, elements);
}

}  // namespace

std::size_t StoredMatrix::bytes() const {
  if (row_after_row()) return data.size() + scales.bytes;
  const auto elements = static_cast<std::size_t>(rows * columns);
  if (format == Format::mxfp4) return elements / 2 + elements / kMxfp4Group;
  return elements * dtype_bytes(dtype);
}

bool StoredMatrix::holds(WeightType type) const { return weight_type_of(format) == type; }

void StoredMatrix::read_codes(std::int64_t i, std::byte* codes, float* into) const {
  const WeightType held = weight_type_of(format).value();
  const std::int64_t groups = weight_groups(held, columns);
  std::memcpy(codes, row(i), static_cast<std::size_t>(code_row_bytes(held, columns)));
  const auto scale_bytes = static_cast<std::ptrdiff_t>(dtype_bytes(scales.dtype));
  kernels().convert(scales.data + i / rows_per_scale(held) * groups * scale_bytes,
                    scales.dtype,
                    reinterpret_cast<std::byte*>(into),
                    DType::f32,
                    groups);
}

void StoredMatrix::read_rows(std::int64_t first,
                             std::int64_t count,
                             DType type,
                             std::byte* out) const {
  if (format == Format::mxfp4)
    read_mxfp4_rows(*this, first, count, type, out);
  else if (!row_after_row())
    read_scattered_rows(*this, first, count, type, out);
  else if (is_plain())
    kernels().convert(row(first), dtype, out, type, count * columns);
  else if (format == Format::fp8)
    read_fp8_rows(*this, first, count, type, out);
  else
    read_integer_rows(*this, first, count, type, out);
}

StoredMatrix plain_matrix(const TensorView& tensor) {
  return {.dtype = tensor.dtype,
          .rows = tensor.shape[0],
          .columns = tensor.shape[1],
          .data = tensor.span()};
}

StoredMatrix stacked_matrix(const TensorView& stack, const StackPlace& place) {
  const std::int64_t columns = stack.shape[1];
  const std::int64_t all_rows = stack.shape[2];
  const auto element = static_cast<std::int64_t>(dtype_bytes(stack.dtype));
  const std::int64_t begin = (place.expert * columns * all_rows + place.first) * element;
  const std::int64_t last = (columns - 1) * all_rows + (place.rows - 1) * place.step;
  return {.dtype = stack.dtype,
          .rows = place.rows,
          .columns = columns,
          .data = {stack.data + begin, stack.data + begin + (last + 1) * element},
          .row_step = place.step,
          .column_step = all_rows,
          .scales = {}};
}

StoredMatrix stacked_mxfp4_matrix(std::span<const std::byte> codes,
                                  std::span<const std::byte> scales,
                                  std::int64_t experts,
                                  std::int64_t columns,
                                  const StackPlace& place) {
  constexpr std::int64_t kGroup = StoredMatrix::kMxfp4Group;
  const std::int64_t all_rows = std::ssize(codes) * 2 / (experts * columns);
  const std::int64_t begin = (place.expert * all_rows + place.first) * columns;
  const std::int64_t elements = ((place.rows - 1) * place.step + 1) * columns;
  const auto part = [&](std::span<const std::byte> bytes, std::int64_t elements_a_byte) {
    return bytes.subspan(static_cast<std::size_t>(begin / elements_a_byte),
                         static_cast<std::size_t>(elements / elements_a_byte));
  };
  const std::span<const std::byte> own_scales = part(scales, kGroup);
  return {.format = StoredMatrix::Format::mxfp4,
          .rows = place.rows,
          .columns = columns,
          .data = part(codes, 2),
          .row_step = place.step * columns,
          .column_step = 1,
          .scales = {.shape = {}, .data = own_scales.data(), .bytes = own_scales.size()}};
}

}  // namespace ferry
