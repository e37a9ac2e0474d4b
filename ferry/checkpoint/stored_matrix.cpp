#include "ferry/checkpoint/stored_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "ferry/kernels/kernels.h"
#include "ferry/wire.h"

namespace ferry {

namespace {

std::ptrdiff_t element_bytes(DType type) { return static_cast<std::ptrdiff_t>(dtype_bytes(type)); }

const std::byte* as_bytes(const float* x) { return reinterpret_cast<const std::byte*>(x); }

std::byte* as_bytes(float* x) { return reinterpret_cast<std::byte*>(x); }

/// Columns that share a scale.
std::int64_t group_width(const StoredMatrix& matrix) {
  return matrix.quant.group_k == 0 ? matrix.columns : matrix.quant.group_k;
}

/// Number of the row's first scale.
std::int64_t first_scale(const StoredMatrix& matrix, std::int64_t row) {
  const QuantSpec& quant = matrix.quant;
  if (!matrix.row_after_row()) return row * matrix.row_step / group_width(matrix);
  return row / quant.group_n * quant.groups(matrix.columns);
}

const std::byte* first_code(const StoredMatrix& matrix, std::int64_t row) {
  if (matrix.row_after_row()) return matrix.row(row);
  return matrix.data.data() + row * matrix.row_step / matrix.quant.codes_a_byte();
}

/// Blocks are those of the fp8 wire, but for their scales, which lie apart and may have another
/// type: each block of a row is put together as the wire has it, and the wire's decoder reads it.
bool like_fp8_wire(const StoredMatrix& matrix) {
  return matrix.quant.code == Code::e4m3 && matrix.quant.group_k == kWireBlock &&
         matrix.quant.scale == ScaleKind::number;
}

void read_fp8_rows(const StoredMatrix& matrix, std::int64_t first, std::int64_t count, float* out) {
  const std::int64_t columns = matrix.columns;
  const DType type = matrix.scales.dtype;
  alignas(float) std::array<std::byte, 2 * kWireBlock> wire{};
  for (std::int64_t i = first; i < first + count; ++i, out += columns) {
    const std::byte* codes = first_code(matrix, i);
    const std::byte* scale = matrix.scales.data + first_scale(matrix, i) * element_bytes(type);
    for (std::int64_t j = 0; j < columns; j += kWireBlock, scale += element_bytes(type)) {
      const std::int64_t wide = std::min<std::int64_t>(kWireBlock, columns - j);
      std::memcpy(wire.data(), codes + j, static_cast<std::size_t>(wide));
      kernels().convert(
          scale, type, wire.data() + wire_scales(WireType::fp8, wide).offset, DType::f32, 1);
      kernels().decode(wire.data(), WireType::fp8, as_bytes(out + j), DType::f32, wide);
    }
  }
}

/// Of every code of a byte.
const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all{};
    for (unsigned code = 0; code < 256; ++code) {
      const int exponent = static_cast<int>(code >> 3 & 15);
      const int mantissa = static_cast<int>(code & 7);
      double value =
          exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
      if (exponent == 15 && mantissa == 7) value = std::nan("");
      all[code] = static_cast<float>((code & 128) == 0 ? value : -value);
    }
    return all;
  }();
  return values;
}

/// The number that code j of a row stands for, before zero point and scale. Exact.
float code_value(Code code, const std::byte* row, std::int64_t j) {
  constexpr std::array<float, 16> kE2m1 = {
      0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
  const auto half = [&] {
    return std::to_integer<std::size_t>(row[j / 2] >> (j % 2 * 4) & std::byte{15});
  };
  switch (code) {
    case Code::e4m3:
      return e4m3_values()[std::to_integer<std::size_t>(row[j])];
    case Code::int8:
      return static_cast<float>(static_cast<std::int8_t>(row[j]));
    case Code::uint4:
      return static_cast<float>(half());
    case Code::e2m1:
      return kE2m1[half()];
    case Code::element:
    case Code::own:
      break;
  }
  return 0;
}

/// Of E8M0; that of 255 is NaN.
double power_of(std::uint8_t exponent) {
  return exponent == 255 ? std::nan("") : std::ldexp(1.0, exponent - 127);
}

float power_number(std::uint8_t exponent) { return static_cast<float>(power_of(exponent)); }

float zero_point(const StoredMatrix& matrix, std::int64_t scale) {
  if (matrix.quant.zero == ZeroPoint::none) return 0;
  if (matrix.quant.zero == ZeroPoint::middle) return matrix.quant.code == Code::uint4 ? 8 : 0;
  const std::byte zero = matrix.zeros[static_cast<std::size_t>(scale)];
  return matrix.quant.code == Code::int8 ? static_cast<float>(static_cast<std::int8_t>(zero))
                                         : static_cast<float>(std::to_integer<int>(zero));
}

/// One product an element, rounded once: of powers of two in f64, since some leave the range of
/// f32 that an element times them does not.
void scale_group(const StoredMatrix& matrix, std::int64_t scale, std::span<float> elements) {
  const float zero = zero_point(matrix, scale);
  if (matrix.quant.zero != ZeroPoint::none)
    for (float& x : elements) x -= zero;  // integers: exact
  if (matrix.quant.scale == ScaleKind::power_of_two) {
    const auto exponent = std::to_integer<std::uint8_t>(matrix.scales.data[scale]);
    const bool mxfp4 = matrix.quant.code == Code::e2m1;  // whose 255 is 2^128
    const double power = mxfp4 ? std::ldexp(1.0, exponent - 127) : power_of(exponent);
    for (float& x : elements) x = static_cast<float>(static_cast<double>(x) * power);
    return;
  }
  float factor = 0;
  const DType type = matrix.scales.dtype;
  kernels().convert(
      matrix.scales.data + scale * element_bytes(type), type, as_bytes(&factor), DType::f32, 1);
  for (float& x : elements) x *= factor;
}

void read_coded_rows(const StoredMatrix& matrix,
                     std::int64_t first,
                     std::int64_t count,
                     float* out) {
  const std::int64_t columns = matrix.columns;
  const std::int64_t group = group_width(matrix);
  const Code code = matrix.quant.code;
  for (std::int64_t i = first; i < first + count; ++i, out += columns) {
    const std::byte* codes = first_code(matrix, i);
    for (std::int64_t j = 0; j < columns; ++j) out[j] = code_value(code, codes, j);
    std::int64_t scale = first_scale(matrix, i);
    for (std::int64_t j = 0; j < columns; j += group) {
      const std::int64_t wide = std::min(group, columns - j);
      scale_group(matrix, scale++, {out + j, static_cast<std::size_t>(wide)});
    }
  }
}

void read_quantised_rows(const StoredMatrix& matrix,
                         std::int64_t first,
                         std::int64_t count,
                         float* out) {
  if (matrix.reader)
    matrix.reader(matrix, first, count, out);
  else if (like_fp8_wire(matrix))
    read_fp8_rows(matrix, first, count, out);
  else
    read_coded_rows(matrix, first, count, out);
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

void read_scattered_rows(const StoredMatrix& matrix,
                         std::int64_t first,
                         std::int64_t count,
                         DType type,
                         std::byte* out) {
  const std::int64_t elements = count * matrix.columns;
  std::vector<float> rows(static_cast<std::size_t>(elements));  // room for any type
  auto* bytes = as_bytes(rows.data());
  if (dtype_bytes(matrix.dtype) == sizeof(float)) {
    gather_rows(matrix, first, count, rows.data());
  } else {
    gather_rows(matrix, first, count, reinterpret_cast<std::uint16_t*>(bytes));
  }
  kernels().convert(bytes, matrix.dtype, out, type, elements);
}

}  // namespace

std::size_t StoredMatrix::bytes() const {
  if (row_after_row()) return data.size() + scales.bytes + zeros.size() + reader_bytes;
  const auto elements = static_cast<std::size_t>(rows * columns);
  if (is_plain()) return elements * dtype_bytes(dtype);
  const std::size_t scale = quant.scale == ScaleKind::number ? dtype_bytes(scales.dtype) : 1;
  return elements / static_cast<std::size_t>(quant.codes_a_byte()) +
         elements / static_cast<std::size_t>(quant.group_k) * scale;
}

std::optional<WeightType> StoredMatrix::held_as() const {
  return code_reader ? held : weight_type_of(quant);
}

void StoredMatrix::read_codes(std::int64_t i, std::byte* codes, float* into) const {
  if (code_reader) return code_reader(*this, i, codes, into);
  std::memcpy(codes, first_code(*this, i), static_cast<std::size_t>(quant.row_bytes(columns)));
  if (quant.scale == ScaleKind::power_of_two) {
    const std::byte* exponents = scales.data + first_scale(*this, i);
    std::transform(exponents, exponents + quant.groups(columns), into, [&](std::byte exponent) {
      const auto power = std::to_integer<std::uint8_t>(exponent);
      return quant.code == Code::e2m1 ? power_scale(power) : power_number(power);
    });
    return;
  }
  kernels().convert(scales.data + first_scale(*this, i) * element_bytes(scales.dtype),
                    scales.dtype,
                    as_bytes(into),
                    DType::f32,
                    quant.groups(columns));
}

void StoredMatrix::read_rows(std::int64_t first,
                             std::int64_t count,
                             DType type,
                             std::byte* out) const {
  constexpr std::int64_t kRowsAtOnce = 16;
  if (is_plain()) {
    if (row_after_row())
      kernels().convert(row(first), dtype, out, type, count * columns);
    else
      read_scattered_rows(*this, first, count, type, out);
    return;
  }
  if (type == DType::f32) {
    read_quantised_rows(*this, first, count, reinterpret_cast<float*>(out));
    return;
  }
  std::vector<float> rows_read(static_cast<std::size_t>(std::min(count, kRowsAtOnce) * columns));
  for (std::int64_t i = 0; i < count; i += kRowsAtOnce) {
    const std::int64_t some = std::min(kRowsAtOnce, count - i);
    read_quantised_rows(*this, first + i, some, rows_read.data());
    kernels().convert(as_bytes(std::as_const(rows_read).data()),
                      DType::f32,
                      out + i * columns * element_bytes(type),
                      type,
                      some * columns);
  }
}

StoredMatrix plain_matrix(const TensorView& tensor) {
  return {.dtype = tensor.dtype,
          .rows = tensor.shape[0],
          .columns = tensor.shape[1],
          .data = tensor.span(),
          .scales = {}};
}

StoredMatrix stacked_matrix(const TensorView& stack, std::int64_t rows, const StackPlace& place) {
  const std::int64_t columns = stack.shape[place.by_rows ? 2 : 1];
  const std::int64_t all_rows = stack.shape[place.by_rows ? 1 : 2];
  const std::int64_t row_step = place.by_rows ? place.step * columns : place.step;
  const std::int64_t column_step = place.by_rows ? 1 : all_rows;
  const std::int64_t first = place.first * (place.by_rows ? columns : 1);
  const std::int64_t begin =
      (place.expert * columns * all_rows + first) * element_bytes(stack.dtype);
  const std::int64_t last = (columns - 1) * column_step + (rows - 1) * row_step;
  return {
      .dtype = stack.dtype,
      .rows = rows,
      .columns = columns,
      .data = {stack.data + begin, stack.data + begin + (last + 1) * element_bytes(stack.dtype)},
      .row_step = row_step == columns && column_step == 1 ? 0 : row_step,
      .column_step = column_step,
      .scales = {}};
}

}  // namespace ferry
