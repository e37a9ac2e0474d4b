// The block itself, against its definition in scalars: how gate and up become one, and biases.
#include "ferry/compute/gated_ffn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace ferry {
namespace {

constexpr int kHidden = 24;
constexpr int kInter = 20;  // no whole panels
constexpr int kRows = 3;

float value(int i) { return std::sin(static_cast<float>(i) * 0.71F); }

/// A matrix [n, k] as checkpoints store it, and packed.
struct Matrix {
  Matrix(int n, int k, int seed) : width(k) {
    for (int i = 0; i < n * k; ++i) values.push_back(value(i * 13 + seed));
  }

  double times(int row, const float* x) const {
    double sum = 0;
    for (int i = 0; i < width; ++i)
      sum += static_cast<double>(values[static_cast<std::size_t>(row * width + i)]) * x[i];
    return sum;
  }

  void pack_into(std::byte* out, int n, int panel_step) const {
    pack_matrix({.type = WeightType::f32,
                 .source = reinterpret_cast<const std::byte*>(values.data()),
                 .source_type = DType::f32,
                 .k = width,
                 .n = n,
                 .out = out,
                 .panel_step = panel_step});
  }

  int width;
  std::vector<float> values;
};

struct Case {
  std::string name;
  Gating gating = {};
  bool biased = false;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class GatedFfnOf : public ::testing::TestWithParam<Case> {};

double gated(const Gating& gating, double gate, double up) {
  if (gating.kind == Gating::Kind::silu) return gate / (1 + std::exp(-gate)) * up;
  const double limit = static_cast<double>(gating.limit);
  gate = std::min(gate, limit);
  return gate / (1 + std::exp(-static_cast<double>(gating.alpha) * gate)) *
         (std::clamp(up, -limit, limit) + 1);
}

TEST_P(GatedFfnOf, IsWhatItsFormulaSays) {
  const Case& c = GetParam();
  const Matrix gate(kInter, kHidden, 1);
  const Matrix up(kInter, kHidden, 2);
  const Matrix down(kHidden, kInter, 3);
  GatedFfnWeights weights;
  weights.gate_up = {.type = WeightType::f32, .k = kHidden, .n = 2 * kInter};
  weights.down = {.type = WeightType::f32, .k = kInter, .n = kHidden};
  const Buffer gate_up_memory(static_cast<std::size_t>(weights.gate_up.gated_panels()) *
                              weights.gate_up.panel_bytes());
  const Buffer down_memory(static_cast<std::size_t>(weights.down.panels()) *
                           weights.down.panel_bytes());
  weights.gate_up.data = gate_up_memory.data();
  weights.down.data = down_memory.data();
  gate.pack_into(gate_up_memory.data(), kInter, 2);
  up.pack_into(gate_up_memory.data() + weights.gate_up.panel_bytes(), kInter, 2);
  down.pack_into(down_memory.data(), kHidden, 1);

  const auto bias_of = [&](int i) { return c.biased ? value(i) : 0.0F; };
  std::vector<float> gate_up_bias(
      static_cast<std::size_t>(weights.gate_up.gated_panels() * kPanelColumns));
  std::vector<float> down_bias;
  for (int i = 0; i < kInter; ++i) {
    const auto at =
        static_cast<std::size_t>(i / kPanelColumns * 2 * kPanelColumns + i % kPanelColumns);
    gate_up_bias[at] = bias_of(100 + i);
    gate_up_bias[at + kPanelColumns] = bias_of(200 + i);
  }
  for (int i = 0; i < kHidden; ++i) down_bias.push_back(bias_of(300 + i));
  if (c.biased) {
    weights.gate_up_bias = gate_up_bias.data();
    weights.down_bias = down_bias.data();
  }

  ThreadPool pool(2);
  TensorGroup alone(pool);
  GatedFfn ffn(
      {.hidden = kHidden, .inter = kInter, .gating = c.gating, .max_rows = kRows}, alone, pool);
  std::vector<float> in;
  for (int i = 0; i < kRows * kHidden; ++i) in.push_back(value(i));
  std::vector<float> out(in.size());
  constexpr std::ptrdiff_t kStride = kHidden * sizeof(float);
  ffn.run({reinterpret_cast<const std::byte*>(in.data()), kStride},
          kRows,
          weights,
          {reinterpret_cast<std::byte*>(out.data()), kStride},
          {.name = "test"});
  for (int row = 0; row < kRows; ++row) {
    const float* x = in.data() + static_cast<std::ptrdiff_t>(row) * kHidden;
    std::vector<float> between;
    for (int i = 0; i < kInter; ++i) {
      between.push_back(static_cast<float>(
          gated(c.gating, gate.times(i, x) + bias_of(100 + i), up.times(i, x) + bias_of(200 + i))));
    }
    for (int i = 0; i < kHidden; ++i) {
      EXPECT_NEAR(out[static_cast<std::size_t>(row * kHidden + i)],
                  down.times(i, between.data()) + bias_of(300 + i),
                  1e-4)
          << "row " << row << " column " << i;
    }
  }
}

constexpr Gating kClamped{.kind = Gating::Kind::clamped, .alpha = 1.702F, .limit = 1.25F};

INSTANTIATE_TEST_SUITE_P(
    Gatings,
    GatedFfnOf,
    ::testing::Values(Case{.name = "silu"},
                      Case{.name = "clamped", .gating = kClamped},
                      Case{.name = "biased", .biased = true},
                      Case{.name = "clampedAndBiased", .gating = kClamped, .biased = true}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace ferry
