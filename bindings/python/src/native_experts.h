// Our own experts for other engines: weights packed once, the grouped gated block over an
// exchange's rows or over rows that the caller has grouped.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "arrays.h"
#include "comm.h"
#include "ferry/buffer.h"
#include "ferry/moe/experts.h"
#include "settings.h"

namespace ferry::python {

/// Owns the packed weights of L slots and the scratch. Threads: one call at a time.
class NativeExperts {
 public:
  /// w13 [L, 2 * I, H]: gate rows, then up rows; w2 [L, H, I]; f32, bf16. Copied.
  NativeExperts(nb::handle w13, nb::handle w2, const nb::dict& options);

  /// REQUIRES: the GIL is not held.
  void run(const ExpertRows& rows);

  /// x [rows, H], rows of slot 0 first, counts[l] of each.
  nb::object apply(const Array& x, const Array& counts, nb::handle out, Framework framework);

  int slots() const { return static_cast<int>(weights_.size()); }

  int hidden() const { return options_.hidden; }

  int inter() const { return options_.inter; }

  DType dtype() const { return options_.dtype; }

  std::size_t weight_bytes() const { return packed_.size(); }

 private:
  NativeExperts(const Array& w13, const Array& w2, Settings settings);

  void pack(const Array& w13, const Array& w2, WeightType type);
  void take_biases(const Array& b13, const Array& b2);

  Experts::Options options_;
  std::shared_ptr<CommState> comm_;   // whose threads compute; or
  std::unique_ptr<ThreadPool> pool_;  // own ones
  Buffer packed_;
  std::vector<float> biases_;
  std::vector<GatedFfnWeights> weights_;  // of each slot, into packed_ and biases_
  std::unique_ptr<Experts> experts_;
};

void bind_native_experts(nb::module_& module);

}  // namespace ferry::python
