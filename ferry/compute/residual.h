// The residual stream: what every block of a layer adds its result to.
#pragma once

#include <cstdint>

#include "ferry/compute/tensor_group.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"

namespace ferry {

/// Adds these columns of `count` f32 rows to the same of the residual stream, whose rows are of
/// `type`.
void add_to_residual(ThreadPool& pool,
                     const RowsView& rows,
                     const ColumnRange& columns,
                     const MutableRowsView& residual,
                     DType type,
                     std::int64_t count);

}  // namespace ferry
