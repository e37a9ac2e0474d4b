// Rows that are looked up one at a time, such as an embedding's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ferry/buffer.h"
#include "ferry/checkpoint/stored_matrix.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"

namespace ferry {

/// A copy of a matrix's rows: as the file has them where that takes less memory than elements of
/// the wanted type do, and every row then becomes elements whenever it is read; else as elements.
/// Both ways read the same bytes. `in_place` they are read where they lie. Threads: const and safe
/// for several.
class HeldRows {
 public:
  HeldRows() = default;  ///< none

  /// Copies on all threads.
  HeldRows(const StoredMatrix& source, DType type, ThreadPool& pool);

  /// No copy: rows are read where they lie, which somebody else keeps. REQUIRES: plain ones.
  static HeldRows in_place(const StoredMatrix& source, DType type);

  /// What such a copy takes.
  static std::size_t bytes_of(const StoredMatrix& source, DType type);

  std::size_t bytes() const { return memory_.size(); }

  std::int64_t columns() const { return matrix_.columns; }

  /// Row `row`, [columns] of the wanted type. Allocates nothing; the thread flushes denormals, as
  /// for kernels.
  ///   scratch  [columns]; may be null where the wanted type is f32
  void read(std::int64_t row, std::byte* out, float* scratch) const;

 private:
  DType type_ = DType::f32;
  Buffer memory_;
  StoredMatrix matrix_;  // in memory_, or in place
};

}  // namespace ferry
