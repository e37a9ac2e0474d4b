#include "ferry/compute/residual.h"

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time

}  // namespace

void add_to_residual(ThreadPool& pool,
                     const RowsView& rows,
                     const ColumnRange& columns,
                     const MutableRowsView& residual,
                     DType type,
                     std::int64_t count) {
  const std::int64_t skipped = columns.begin * static_cast<std::int64_t>(dtype_bytes(type));
  pool.parallel_for(count, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      kernels_of(pool).add(residual.row(i) + skipped,
                           type,
                           reinterpret_cast<const float*>(rows.row(i)) + columns.begin,
                           columns.size());
    }
  });
}

}  // namespace ferry
