// The rotary embedding: queries and keys turn with their position.
#pragma once

#include <cstdint>
#include <vector>

namespace ferry {

class ConfigReader;
struct Kernels;

/// How a model reaches beyond the positions it was first trained on (Hugging Face's rope_type).
enum class RopeScaling : std::uint8_t {
  none,
  linear,  ///< every frequency divided by factor
  llama3,  ///< low frequencies divided, high ones kept, a straight transition between
  yarn,    ///< the same by pair number instead of wavelength, and all results magnified
};

/// Position p turns pair i of a head's first `dim` elements by p * theta^(-2i/dim), scaled; the
/// elements behind them stay as they are.
struct RopeOptions {
  double theta = 10000.0;
  int dim = 0;               ///< even, at most the head's size
  bool interleaved = false;  ///< pair i is (2i, 2i + 1), not (i, i + dim/2)

  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;              ///< of the positions
  double original_positions = 0.0;  ///< llama3, yarn: those trained on first
  /// Full turns within the original positions: with fewer than `low` a frequency is divided, with
  /// more than `high` kept. llama3's low_freq_factor and high_freq_factor; yarn's beta_slow and
  /// beta_fast.
  double low_turns = 1.0;
  double high_turns = 4.0;
  bool whole_pairs = true;      ///< yarn: the transition starts and ends at whole pairs
  double magnitude = 1.0;       ///< yarn: turned elements are that much longer
  double mscale_all_dim = 0.0;  ///< yarn: what attention makes of it is the family's affair
};

/// The embedding of one model. Threads: const and safe for several.
class Rope {
 public:
  /// REQUIRES: options.dim is even and in [2, kMaxDim].
  explicit Rope(const RopeOptions& options);

  static constexpr int kMaxDim = 1 << 12;

  std::int64_t pairs() const { return static_cast<std::int64_t>(frequencies_.size()); }

  /// cos and sin, [pairs()] each, of the angles at one position, times the magnitude.
  void angles(std::int32_t position, float* cos, float* sin) const;

  /// Turns one head in place. Interleaved pairs come out in halves, (i, i + dim/2): queries and
  /// keys alike, which changes no product of the two.
  void turn(const Kernels& kernels, float* head, const float* cos, const float* sin) const;

 private:
  RopeOptions options_;
  std::vector<float> frequencies_;  // [dim / 2]
};

/// The frequency of each pair, [dim / 2], rounded at each step as transformers does it in f32.
std::vector<float> rope_frequencies(const RopeOptions& options);

/// 0.1 * mscale * ln(factor) + 1: how much yarn magnifies.
double yarn_mscale(double factor, double mscale);

/// What config.json says of it: rope_theta, and rope_parameters or rope_scaling, for heads of
/// `head_dim` elements. `turned`: how many of those turn where the family has a field for it, which
/// partial_rotary_factor may only repeat; 0: that factor alone says. A `dynamic` scaling with a
/// fixed `alpha` is a greater theta (HunYuan). Throws ModelError naming the field; scalings other
/// than those above are refused.
RopeOptions read_rope(const ConfigReader& in, int head_dim, int max_positions, int turned = 0);

}  // namespace ferry
