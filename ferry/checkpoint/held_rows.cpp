#include "ferry/checkpoint/held_rows.h"

#include <cstring>
#include <span>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 64;
constexpr std::int64_t kCopyGrain = std::int64_t{1} << 20;  // bytes

std::size_t bytes_as_elements(const StoredMatrix& source, DType type) {
  return static_cast<std::size_t>(source.rows * source.columns) * dtype_bytes(type);
}

/// Whether a copy of the file's bytes is smaller, and all that rows are made of.
bool stays_as_stored(const StoredMatrix& source, DType type) {
  const bool movable = !source.reader || source.reads_views_alone;
  return movable && source.row_after_row() && source.bytes() < bytes_as_elements(source, type);
}

}  // namespace

std::size_t HeldRows::bytes_of(const StoredMatrix& source, DType type) {
  return stays_as_stored(source, type) ? source.bytes() : bytes_as_elements(source, type);
}

HeldRows::HeldRows(const StoredMatrix& source, DType type, ThreadPool& pool)
    : type_(type), memory_(bytes_of(source, type)), matrix_(source) {
  if (!stays_as_stored(source, type)) {
    const auto row_bytes = source.columns * static_cast<std::ptrdiff_t>(dtype_bytes(type));
    pool.parallel_for(source.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
      source.read_rows(begin, end - begin, type, memory_.data() + begin * row_bytes);
    });
    matrix_ = {.dtype = type,
               .rows = source.rows,
               .columns = source.columns,
               .data = {memory_.data(), memory_.size()},
               .scales = {}};
    return;
  }
  std::byte* next = memory_.data();
  const auto copy = [&](std::span<const std::byte> from) {
    std::byte* to = next;
    next += from.size();
    const auto size = static_cast<std::int64_t>(from.size());
    pool.parallel_for(size, kCopyGrain, [&](std::int64_t begin, std::int64_t end, int) {
      std::memcpy(to + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
    });
    return std::span<const std::byte>(to, from.size());
  };
  matrix_.data = copy(source.data);
  matrix_.scales.data = copy(source.scales.span()).data();
  matrix_.zeros = copy(source.zeros);
}

HeldRows HeldRows::in_place(const StoredMatrix& source, DType type) {
  HeldRows rows;
  rows.type_ = type;
  rows.matrix_ = source;
  return rows;
}

void HeldRows::read(std::int64_t row, std::byte* out, float* scratch) const {
  if (matrix_.is_plain() || type_ == DType::f32) return matrix_.read_rows(row, 1, type_, out);
  auto* elements = reinterpret_cast<std::byte*>(scratch);
  matrix_.read_rows(row, 1, DType::f32, elements);
  kernels().convert(elements, DType::f32, out, type_, matrix_.columns);
}

}  // namespace ferry
