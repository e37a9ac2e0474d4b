// Experts on a device beside those on CPUs, with the same weights and rows: as far from each other
// as docs/numerics.md says, and no further. Run by the emulator.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ferry/moe/experts.h"
#include "moe/gpu_layer.h"
#include "moe/packed_moe.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::Layer;
using testing::LayerShape;
using testing::Line;
using testing::OwnedPack;
using testing::Stack;
using testing::times;

constexpr Gating kClamped{.kind = Gating::Kind::clamped, .alpha = 1.702F, .limit = 1.5F};
constexpr int kRows = 3;

/// Rows [first, first + n) of an expert's matrix into every panel_step-th panel.
void pack_rows(const Stack& stack,
               int expert,
               std::int64_t first,
               std::int64_t n,
               std::byte* out,
               std::int64_t panel_step) {
  const bool fp8 = stack.type == WeightType::fp8;
  const std::size_t width = times(stack.depth, fp8 ? 1 : 2);
  const std::size_t blocks = times(ceil_div(stack.depth, kFp8Block), 1);
  const std::size_t scale_row = first == 0 ? 0 : times(stack.scale_rows / 2, 1);
  pack_matrix({.type = stack.type,
               .source = &stack.numbers[(times(expert, stack.rows) + times(first, 1)) * width],
               .source_type = DType::bf16,
               .scales = fp8 ? &stack.scales[(times(expert, stack.scale_rows) + scale_row) * blocks]
                             : nullptr,
               .scale_rows = fp8 ? kFp8Block : 1,
               .k = stack.depth,
               .n = n,
               .out = out,
               .panel_step = panel_step});
}

/// The layer as CPUs hold it.
struct PackedLayer {
  std::vector<OwnedPack> owned;
  std::vector<std::vector<float>> biases;
  std::vector<GatedFfnWeights> experts;

  explicit PackedLayer(const Layer& layer) {
    const int inter = layer.shape.inter;
    for (int e = 0; e < layer.shape.experts; ++e) {
      OwnedPack& gate_up = owned.emplace_back();
      gate_up.view = {.type = layer.shape.type, .k = layer.w13.depth, .n = 2 * inter};
      const std::size_t panel = gate_up.view.panel_bytes();
      gate_up.memory = Buffer(times(gate_up.view.gated_panels(), 1) * panel);
      gate_up.view.data = gate_up.memory.data();
      for (const int half : {0, 1}) {
        std::byte* const to = gate_up.memory.data() + times(half, 1) * panel;
        pack_rows(layer.w13, e, std::int64_t{half} * inter, inter, to, 2);
      }
      GatedFfnWeights& weights = experts.emplace_back();
      weights.gate_up = gate_up.view;
      OwnedPack& down = owned.emplace_back();
      down.view = {.type = layer.shape.type, .k = inter, .n = layer.shape.hidden};
      down.memory = Buffer(times(down.view.panels(), 1) * down.view.panel_bytes());
      down.view.data = down.memory.data();
      pack_rows(layer.w2, e, 0, layer.shape.hidden, down.memory.data(), 1);
      weights.down = down.view;
      if (layer.shape.biased) add_biases(layer, e, weights);
    }
  }

  void add_biases(const Layer& layer, int expert, GatedFfnWeights& weights) {
    std::vector<float>& own =
        biases.emplace_back(times(weights.gate_up.gated_panels(), kPanelColumns));
    for (int i = 0; i < layer.shape.inter; ++i) {
      for (const int half : {0, 1}) {
        const int panel = i / kPanelColumns * 2 + half;
        own[times(panel, kPanelColumns) + times(i % kPanelColumns, 1)] =
            layer.w13.biased(0, expert, std::int64_t{half} * layer.shape.inter + i);
      }
    }
    weights.biased = true;
    weights.gate_up_bias = own.data();
    weights.down_bias = layer.w2.bias.data() + times(expert, layer.shape.hidden);
  }
};

/// All rows of one expert.
struct Given {
  std::vector<std::byte> rows;
  std::vector<float> weights;  // empty: none
};

ExpertRows expert_rows(const Layer& layer,
                       std::span<const std::int32_t> counts,
                       std::span<const std::int64_t> offsets) {
  return {.format = DispatchFormat::ragged,
          .counts = counts,
          .offsets = offsets,
          .in_type = WireType::bf16,
          .out_type = DType::f32,
          .hidden = layer.shape.hidden};
}

std::vector<float> on_cpu(const Layer& layer, const Given& given) {
  const PackedLayer packed(layer);
  ThreadPool pool(1);
  Experts experts({.hidden = layer.shape.hidden,
                   .inter = layer.shape.inter,
                   .gating = layer.shape.gating,
                   .dtype = DType::bf16,
                   .max_rows = kRows,
                   .row_weights = !given.weights.empty()},
                  pool);
  const std::vector<std::int32_t> counts{kRows};
  const std::vector<std::int64_t> offsets{0};
  std::vector<float> out(times(kRows, layer.shape.hidden));
  ExpertRows rows = expert_rows(layer, counts, offsets);
  rows.in = {given.rows.data(), 2 * std::ptrdiff_t{layer.shape.hidden}};
  rows.weights = given.weights;
  rows.out = {reinterpret_cast<std::byte*>(out.data()), 4 * std::ptrdiff_t{layer.shape.hidden}};
  experts.run(rows, packed.experts);
  return out;
}

std::vector<float> on_device(const Layer& layer, const Given& given, GpuQueue& queue) {
  const auto counts = upload<std::int32_t>(queue, std::vector{kRows});
  const auto offsets = upload<std::int64_t>(queue, std::vector<std::int64_t>{0});
  const auto in = upload<std::byte>(queue, given.rows);
  const auto weights = upload<float>(queue, given.weights);
  const auto out = queue.allocate(times(kRows, layer.shape.hidden) * sizeof(float));
  GpuExperts experts(layer.options(1, kRows), layer.weights(0, 1), queue);
  ExpertRows rows = expert_rows(
      layer, {counts->as<const std::int32_t>(), 1}, {offsets->as<const std::int64_t>(), 1});
  rows.in = {in->data(), 2 * std::ptrdiff_t{layer.shape.hidden}};
  rows.weights = {weights->as<const float>(), given.weights.size()};
  rows.out = {out->data(), 4 * std::ptrdiff_t{layer.shape.hidden}};
  experts.run(rows);
  return download(queue, out->as<const float>(), times(kRows, layer.shape.hidden));
}

/// A sum of products in double precision, and that of their magnitudes.
struct Sum {
  double value = 0, magnitude = 0;

  Sum(const Line& x, const Line& w) {
    for (std::size_t k = 0; k < x.numbers.size(); ++k) {
      const double scale = w.scales.empty() ? 1.0 : static_cast<double>(w.scales[k / kFp8Block]);
      const double one = static_cast<double>(x.numbers[k]) * static_cast<double>(w.numbers[k]);
      value += one * scale;
      magnitude += std::fabs(one * scale);
    }
  }
};

/// What two chains of f32 over a depth are apart at most, of the magnitudes.
double of_chains(int depth) { return 2 * (depth + depth / 64.0 + 6) * 0x1p-24; }

/// How far a row's results may be apart: docs/numerics.md. `weight`: of the row; 0: it has none.
std::vector<double> bounds(const Layer& layer, const Line& x, float weight) {
  const int inter = layer.shape.inter;
  const double times_weight = weight == 0 ? 1.0 : static_cast<double>(weight);
  const double relative = of_chains(layer.shape.hidden) + (weight == 0 ? 0 : 0x1p-8);
  std::vector<double> off(times(inter, 1));
  Line inner;
  for (int i = 0; i < inter; ++i) {
    double values[2]{};
    double errors[2]{};
    for (const int half : {0, 1}) {
      const std::int64_t row = std::int64_t{half} * inter + i;
      const Sum sum(x, layer.w13.line(0, row, half * ceil_div(inter, kFp8Block) + i / kFp8Block));
      values[half] = sum.value * times_weight + static_cast<double>(layer.w13.biased(0, 0, row));
      errors[half] = sum.magnitude * times_weight * relative + std::fabs(values[half]) * 0x1p-22;
    }
    double alpha = 1;
    if (layer.shape.gating.kind == Gating::Kind::clamped) {
      alpha = static_cast<double>(layer.shape.gating.alpha);
      const double limit = static_cast<double>(layer.shape.gating.limit);
      values[0] = std::min(values[0], limit);
      values[1] = std::clamp(values[1], -limit, limit) + 1;
    }
    const double gate = values[0] / (1 + std::exp(-alpha * values[0]));
    inner.numbers.push_back(static_cast<float>(gate * values[1]));
    off[times(i, 1)] = 1.1 * std::fabs(values[1]) * errors[0] + std::fabs(gate) * errors[1] +
                       0x1p-7 * std::fabs(gate * values[1]);
  }
  std::vector<double> all;
  for (int h = 0; h < layer.shape.hidden; ++h) {
    const Line w = layer.w2.line(0, h, h / kFp8Block);
    const Sum sum(inner, w);
    double bound = of_chains(inter) * sum.magnitude +
                   std::fabs(static_cast<double>(layer.w2.biased(0, 0, h))) * 0x1p-22;
    for (int i = 0; i < inter; ++i) {
      const double scale =
          w.scales.empty() ? 1.0 : static_cast<double>(w.scales[times(i / kFp8Block, 1)]);
      bound += std::fabs(static_cast<double>(w.numbers[times(i, 1)])) * scale * off[times(i, 1)];
    }
    all.push_back(bound);
  }
  return all;
}

struct BoundCase {
  std::string name;
  LayerShape shape;
  bool weighed = false;
};

void PrintTo(const BoundCase& c, std::ostream* out) { *out << c.name; }

class GpuExpertsBesideCpus : public ::testing::TestWithParam<BoundCase> {};

TEST_P(GpuExpertsBesideCpus, AreAsFarApartAsTheyMay) {
  if (slow_run()) GTEST_SKIP() << "of numbers alone";
  const FlushDenormals flush;
  const BoundCase& c = GetParam();
  const Layer layer(c.shape);
  Given given{.rows = testing::bf16_bytes(testing::random_rows(kRows, c.shape.hidden, 5))};
  if (c.weighed) given.weights = {0.3F, 1.7F, 0.9F};
  GpuEmulator device;
  EmulatedQueue queue(device, 2);
  const std::vector<float> cpu = on_cpu(layer, given);
  const std::vector<float> gpu = on_device(layer, given, queue);
  const std::size_t width = times(c.shape.hidden, 1);
  double widest = 0;
  double greatest = 0;
  for (std::size_t row = 0; row < kRows; ++row) {
    const auto own = std::span(given.rows).subspan(row * 2 * width, 2 * width);
    const std::vector<double> bound =
        bounds(layer, {testing::bf16_values(own), {}}, c.weighed ? given.weights[row] : 0.0F);
    for (std::size_t h = 0; h < width; ++h) {
      const double apart = std::fabs(static_cast<double>(cpu[row * width + h]) -
                                     static_cast<double>(gpu[row * width + h]));
      ASSERT_LE(apart, bound[h]) << "row " << row << " column " << h;
      widest = std::max(widest, bound[h]);
      greatest = std::max(greatest, std::fabs(static_cast<double>(cpu[row * width + h])));
    }
  }
  EXPECT_LT(widest, greatest / 2);  // else wrong numbers would pass
}

std::vector<BoundCase> bound_cases() {
  constexpr WeightType kFp8 = WeightType::fp8;
  return {{"Bf16", {.hidden = 48, .inter = 80}},
          {"Fp8", {.hidden = 144, .inter = 144, .type = kFp8}},
          {"Clamped", {.hidden = 48, .inter = 80, .biased = true, .gating = kClamped}, true},
          {"ClampedFp8",
           {.hidden = 144, .inter = 48, .type = kFp8, .biased = true, .gating = kClamped},
           true}};
}

INSTANTIATE_TEST_SUITE_P(Layers,
                         GpuExpertsBesideCpus,
                         ::testing::ValuesIn(bound_cases()),
                         [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace ferry
