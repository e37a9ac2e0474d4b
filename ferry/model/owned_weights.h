// Packed weights together with the memory they lie in. It is empty where they lie in the file of a
// packed checkpoint, which then somebody else keeps mapped.
#pragma once

#include <vector>

#include "ferry/buffer.h"
#include "ferry/compute/gated_ffn.h"
#include "ferry/core/error.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

/// One matrix and its memory.
struct OwnedMatrix {
  Buffer memory;
  std::vector<PackedMatrix> strips;  // side by side (parallel_gemm.h); none: no matrix

  /// A matrix of one strip, or of none: no data. REQUIRES: at most one.
  PackedMatrix whole() const {
    FERRY_CHECK(strips.size() <= 1, "{} strips of a matrix that is to have one", strips.size());
    return strips.empty() ? PackedMatrix{} : strips.front();
  }
};

/// A gated feed-forward block and its memory; no data where a layer has none.
struct OwnedFfn {
  Buffer gate_up, down;
  GatedFfnWeights view;
};

/// A matrix for each head, and their memory.
struct HeadMatrices {
  Buffer memory;
  std::vector<PackedMatrix> views;  // [heads]
};

/// What the mixer of one layer computes with; each kind of mixer has a type of its own.
struct MixerWeights {
  MixerWeights() = default;
  virtual ~MixerWeights() = default;
  MixerWeights(const MixerWeights&) = delete;
  MixerWeights& operator=(const MixerWeights&) = delete;
};

}  // namespace ferry
