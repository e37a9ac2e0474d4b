// The rotary embedding: queries and keys turn with their position.
#pragma once

#include <cstdint>
#include <vector>

namespace ferry {

/// Position p turns pair i of a head's first `dim` elements by p * theta^(-2i/dim); the elements
/// behind them stay as they are.
struct RopeOptions {
  double theta = 10000.0;
  int dim = 0;               ///< even, at most the head's size
  bool interleaved = false;  ///< pair i is (2i, 2i + 1), not (i, i + dim/2)
};

/// The embedding of one model. Threads: const and safe for several.
class Rope {
 public:
  /// REQUIRES: options.dim is even and in [2, kMaxDim].
  explicit Rope(const RopeOptions& options);

  static constexpr int kMaxDim = 1 << 12;

  std::int64_t pairs() const { return static_cast<std::int64_t>(frequencies_.size()); }

  /// cos and sin, [pairs()] each, of the angles at one position.
  void angles(std::int32_t position, float* cos, float* sin) const;

  /// Turns one head in place. Interleaved pairs come out in halves, (i, i + dim/2): queries and
  /// keys alike, which changes no product of the two.
  void turn(float* head, const float* cos, const float* sin) const;

 private:
  RopeOptions options_;
  std::vector<float> frequencies_;  // [dim / 2]
};

/// theta^(-2i/dim) for i < dim / 2, rounded at each step as transformers does it in f32.
std::vector<float> rope_frequencies(const RopeOptions& options);

}  // namespace ferry
