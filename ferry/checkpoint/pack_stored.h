// From a checkpoint's matrices to the panels that kernels read, quantised on the way where they are
// to be and are not yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ferry/checkpoint/stored_matrix.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

/// Where panels go, and what they hold.
struct PackTarget {
  WeightType type = WeightType::f32;
  std::byte* data = nullptr;
  std::int64_t panel_step = 1;  ///< panels from one to the next: 2 interleaves gate and up
  /// Those of the merged matrix that are packed, each to its own place, the others' being left
  /// untouched. Empty: all.
  std::span<const PanelRange> panels = {};
  std::int64_t first_panel = 0;  ///< the one whose place is at `data`; none before it is packed
};

/// Packs the merged matrix whose columns are the rows of `sources`, one behind the other, all of
/// the same length. Sources that hold codes of the wanted type keep them and their scales; others
/// are quantised by themselves, each as if it stood alone.
void pack_stored(std::span<const StoredMatrix> sources, const PackTarget& target, ThreadPool& pool);

/// The whole matrix as `type` holds it: codes and scales of the file where they are of that type,
/// else quantised on all threads. REQUIRES: is_quantized(type).
QuantizedMatrix quantize_stored(const StoredMatrix& matrix, WeightType type, ThreadPool& pool);

}  // namespace ferry
