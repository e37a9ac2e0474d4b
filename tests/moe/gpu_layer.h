// Experts as a checkpoint has them, with random weights of a type that devices hold, and what they
// make of a row by definition, in the emulator's order of sums.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "ferry/kernels/kernels.h"
#include "ferry/moe/gpu_experts.h"

namespace ferry::testing {

inline std::size_t times(std::int64_t a, std::int64_t b) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

/// Numbers with what multiplies sums of 128 of them; none: nothing does.
struct Line {
  std::vector<float> numbers;
  std::vector<float> scales;
};

/// The sum as the emulator has it: tensor cores' products take 16 of every 32 numbers in turn, of
/// each eight the first four and then the others, pairs that lie in lanes side by side first.
inline float product(const Line& a, const Line& b) {
  const bool scaled = !a.scales.empty() || !b.scales.empty();
  const auto scale = [](const Line& of, std::size_t block) {
    return of.scales.empty() ? 1.0F : of.scales[block];
  };
  float total = 0;
  float sum = 0;
  const std::size_t n = a.numbers.size();
  for (std::size_t step = 0; step < n; step += 32) {
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t place = i % 16;
      const std::size_t k = step + place % 8 / 2 * 8 + i / 16 * 4 + place / 8 * 2 + place % 2;
      const bool there = k < n;
      sum = std::fma(there ? a.numbers[k] : 0.0F, there ? b.numbers[k] : 0.0F, sum);
    }
    if (scaled && (step % 128 == 96 || step + 32 >= n)) {
      total = std::fma(sum, scale(b, step / 128) * scale(a, step / 128), total);
      sum = 0;
    }
  }
  return scaled ? total : sum;
}

/// Numbers of bf16, as such.
inline std::vector<std::byte> bf16_bytes(const std::vector<float>& numbers) {
  std::vector<std::byte> bytes;
  for (const float x : numbers) {
    const std::uint16_t bits = ferry::gpu::f32_to_bf16(x);
    bytes.push_back(static_cast<std::byte>(bits & 0xffU));
    bytes.push_back(static_cast<std::byte>(bits >> 8));
  }
  return bytes;
}

inline std::vector<float> bf16_values(std::span<const std::byte> bytes) {
  std::vector<float> numbers(bytes.size() / 2);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    numbers[i] = ferry::gpu::bf16_to_f32(bits);
  }
  return numbers;
}

/// A row of a wire: bf16, or fp8 with its scales.
inline Line wire_line(std::span<const std::byte> row, WireType type, std::int64_t n) {
  Line line;
  if (type == WireType::bf16) {
    line.numbers = bf16_values(row.first(times(2, n)));
    return line;
  }
  for (std::int64_t i = 0; i < n; ++i)
    line.numbers.push_back(ferry::gpu::fp8_to_f32(std::to_integer<std::uint8_t>(row[times(i, 1)])));
  const WireScales at = wire_scales(type, n);
  line.scales.resize(times(at.count, 1));
  std::memcpy(line.scales.data(), row.data() + at.offset, times(at.count, sizeof(float)));
  return line;
}

/// One of the two stacks of matrices of a layer.
struct Stack {
  WeightType type = WeightType::bf16;
  std::int64_t rows = 0;        ///< of one matrix
  std::int64_t scale_rows = 0;  ///< of one matrix's scales
  std::int64_t depth = 0;
  std::vector<std::byte> numbers;
  std::vector<float> scales;
  std::vector<float> bias;

  Stack() = default;

  /// `halves`: matrices that lie one behind the other in one, with scales of their own.
  Stack(WeightType t, int experts, int halves, int half_rows, int k, unsigned seed)
      : type(t), rows(halves * half_rows), depth(k) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    const std::size_t n = times(experts, rows) * times(k, 1);
    if (type == WeightType::bf16) {
      std::vector<float> all(n);
      for (float& x : all) x = normal(engine) * 0.3F;
      numbers = bf16_bytes(all);
      return;
    }
    scale_rows = halves * ceil_div(half_rows, kFp8Block);
    for (std::size_t i = 0; i < n; ++i) {  // every code but NaN's
      const auto code = static_cast<unsigned>(engine() % 254);
      numbers.push_back(static_cast<std::byte>(code < 127 ? code : code + 1));
    }
    for (std::size_t i = times(experts, scale_rows) * times(ceil_div(k, kFp8Block), 1); i > 0; --i)
      scales.push_back(0.001F + 0.002F * std::fabs(normal(engine)));
  }

  void add_bias(int experts, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    bias.resize(times(experts, rows));
    for (float& x : bias) x = normal(engine);
  }

  /// `scale_row`: which of the expert's the row is multiplied by.
  Line line(int expert, std::int64_t row, std::int64_t scale_row) const {
    const std::size_t bytes = type == WeightType::fp8 ? 1 : 2;
    const std::size_t width = times(depth, 1) * bytes;
    const auto own =
        std::span(numbers).subspan((times(expert, rows) + times(row, 1)) * width, width);
    if (type == WeightType::bf16) return {bf16_values(own), {}};
    Line line;
    for (const std::byte code : own)
      line.numbers.push_back(ferry::gpu::fp8_to_f32(std::to_integer<std::uint8_t>(code)));
    const std::size_t blocks = times(ceil_div(depth, kFp8Block), 1);
    const auto first =
        scales.begin() +
        static_cast<std::ptrdiff_t>((times(expert, scale_rows) + times(scale_row, 1)) * blocks);
    line.scales.assign(first, first + static_cast<std::ptrdiff_t>(blocks));
    return line;
  }

  float biased(float sum, int expert, std::int64_t row) const {
    return bias.empty() ? sum : sum + bias[times(expert, rows) + times(row, 1)];
  }
};

struct LayerShape {
  int experts = 1, hidden = 16, inter = 16;
  WeightType type = WeightType::bf16;
  bool biased = false;
  Gating gating = {};
};

struct Layer {
  LayerShape shape;
  Stack w13, w2;

  explicit Layer(const LayerShape& s)
      : shape(s),
        w13(s.type, s.experts, 2, s.inter, s.hidden, 1),
        w2(s.type, s.experts, 1, s.hidden, s.inter, 2) {
    if (!s.biased) return;
    w13.add_bias(s.experts, 11);
    w2.add_bias(s.experts, 12);
  }

  GpuExpertsOptions options(int slots, std::int64_t rows) const {
    return {.slots = slots,
            .hidden = shape.hidden,
            .inter = shape.inter,
            .gating = shape.gating,
            .max_rows = rows};
  }

  /// Of some experts.
  GpuExpertWeights weights(int first, int count) const {
    const auto part = [&](const auto& all) {
      const std::size_t one = all.size() / times(shape.experts, 1);
      return std::span(all).subspan(one * times(first, 1), one * times(count, 1));
    };
    return {.type = shape.type,
            .w13 = part(w13.numbers),
            .w2 = part(w2.numbers),
            .w13_scales = part(w13.scales),
            .w2_scales = part(w2.scales),
            .b13 = part(w13.bias),
            .b2 = part(w2.bias)};
  }

  /// Of gates and ups, one of the two sums with its bias.
  float sum(int expert, int half, int i, const Line& x, float weight) const {
    const std::int64_t row = half * shape.inter + i;
    const std::int64_t scale_row = half * ceil_div(shape.inter, kFp8Block) + i / kFp8Block;
    return w13.biased(product(x, w13.line(expert, row, scale_row)) * weight, expert, row);
  }

  /// The definition.
  std::vector<float> result(int expert, const Line& x, float weight = 1.0F) const {
    Line inner;
    for (int i = 0; i < shape.inter; ++i) {
      float g = sum(expert, 0, i, x, weight);
      float u = sum(expert, 1, i, x, weight);
      float alpha = 1;
      if (shape.gating.kind == Gating::Kind::clamped) {
        alpha = shape.gating.alpha;
        g = std::min(g, shape.gating.limit);
        u = std::clamp(u, -shape.gating.limit, shape.gating.limit) + 1.0F;
      }
      const float made = g / (1.0F + expf(-(alpha * g))) * u;
      inner.numbers.push_back(ferry::gpu::bf16_to_f32(ferry::gpu::f32_to_bf16(made)));
    }
    std::vector<float> out;
    for (int h = 0; h < shape.hidden; ++h)
      out.push_back(w2.biased(product(inner, w2.line(expert, h, h / kFp8Block)), expert, h));
    return out;
  }
};

}  // namespace ferry::testing
