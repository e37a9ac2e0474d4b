// Products with matrices that lie in strips, each packed in a type of its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "ferry/compute/tensor_group.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr std::int64_t kDepth = 128;
constexpr std::int64_t kRows = 5;
constexpr float kUntouched = -7.25e30F;

std::vector<float> random_floats(std::mt19937& gen, std::int64_t n) {
  std::normal_distribution<float> distribution(0.0F, 1.0F);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& x : values) x = distribution(gen);
  return values;
}

/// Strips of these types and widths, and what a product makes of each by itself.
class Strips {
 public:
  struct Width {
    WeightType type;
    std::int64_t columns;
  };

  explicit Strips(std::span<const Width> widths) {
    std::mt19937 gen(11);
    const std::vector<float> in = random_floats(gen, kRows * kDepth);
    in_.resize(static_cast<std::size_t>(kRows * kDepth) * sizeof(std::uint16_t));
    kernels().convert(reinterpret_cast<const std::byte*>(in.data()),
                      DType::f32,
                      in_.data(),
                      DType::bf16,
                      kRows * kDepth);
    for (const auto& [type, columns] : widths) add(gen, type, columns);
    bias_ = random_floats(gen, width());
    expected_.resize(static_cast<std::size_t>(kRows * width()));
    ThreadPool pool(1);
    std::int64_t first = 0;
    for (const PackedMatrix& strip : strips_) {
      std::vector<float> out(static_cast<std::size_t>(kRows * strip.n));
      GemmArgs args = this->args(out, strip.n);
      args.weights = &strip;
      args.bias = bias_.data() + first;
      parallel_gemm(pool, GemmScratch(pool, DType::bf16, kDepth), args);
      for (std::int64_t r = 0; r < kRows; ++r)
        std::copy_n(out.data() + r * strip.n, strip.n, expected_.data() + r * width() + first);
      first += strip.n;
    }
  }

  std::int64_t width() const { return columns_of(strips_); }

  std::span<const PackedMatrix> strips() const { return strips_; }

  const std::vector<float>& expected() const { return expected_; }

  /// For rows of `n` elements.
  GemmArgs args(std::vector<float>& out, std::int64_t n) const {
    return {.in = {in_.data(), kDepth * std::ptrdiff_t{sizeof(std::uint16_t)}},
            .rows = kRows,
            .bias = bias_.data(),
            .out = {reinterpret_cast<std::byte*>(out.data()), n * std::ptrdiff_t{sizeof(float)}},
            .out_type = DType::f32};
  }

  /// Whether these columns, and none but others of their panels, are as expected.
  void expect(const std::vector<float>& out, std::span<const ColumnRange> columns) const {
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (std::int64_t c = 0; c < width(); ++c) {
        const auto i = static_cast<std::size_t>(r * width() + c);
        const bool wanted = std::ranges::any_of(
            columns, [&](const ColumnRange& range) { return range.begin <= c && c < range.end; });
        ASSERT_TRUE(std::memcmp(&out[i], &expected_[i], sizeof(float)) == 0 ||
                    (!wanted && out[i] == kUntouched))
            << "row " << r << ", column " << c;
      }
    }
  }

 private:
  void add(std::mt19937& gen, WeightType type, std::int64_t columns) {
    PackedMatrix strip{.type = type, .k = kDepth, .n = columns};
    Buffer memory(static_cast<std::size_t>(strip.panels()) * strip.panel_bytes());
    const std::vector<float> source = random_floats(gen, columns * kDepth);
    const auto* rows = reinterpret_cast<const std::byte*>(source.data());
    PackArgs args{.type = type, .source = rows, .k = kDepth, .n = columns, .out = memory.data()};
    QuantizedMatrix codes;
    if (is_quantized(type)) {
      codes = quantize_matrix(type, rows, DType::f32, columns, kDepth);
      args.source = codes.codes.data();
      args.scales = codes.scales.data();
      args.scale_rows = rows_per_scale(type);
    }
    pack_matrix(args);
    strip.data = memory.data();
    strips_.push_back(strip);
    memory_.push_back(std::move(memory));
  }

  std::vector<std::byte> in_;
  std::vector<Buffer> memory_;
  std::vector<PackedMatrix> strips_;
  std::vector<float> bias_;
  std::vector<float> expected_;  // [kRows, width]
};

const std::vector<std::vector<Strips::Width>>& cases() {
  using enum WeightType;
  static const std::vector<std::vector<Strips::Width>> all = {
      {{bf16, 37}},
      {{int8, 96}, {bf16, 48}},
      {{mxfp4, 50}, {bf16, 7}, {int4, 33}},                  // no panel ends where a strip does
      {{bf16, 1}, {fp8, 200}, {bf16, 1}, {int8, 16}},        // of one column
      {{bf16, 160}, {mxfp4, 16}, {bf16, 40}, {mxfp4, 130}},  // a type twice
  };
  return all;
}

TEST(Strips, GiveTheBytesOfEachByItself) {
  for (const auto& widths : cases()) {
    const Strips matrix(widths);
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<float> out(matrix.expected().size(), kUntouched);
      const GemmScratch scratch(pool, DType::bf16, kDepth);
      parallel_gemm(pool, scratch, matrix.args(out, matrix.width()), matrix.strips());
      const std::array all{ColumnRange{0, matrix.width()}};
      matrix.expect(out, all);
    }
  }
}

TEST(Strips, GiveTheColumnsThatAreWanted) {
  std::mt19937 gen(3);
  ThreadPool pool(2);
  const GemmScratch scratch(pool, DType::bf16, kDepth);
  for (const auto& widths : cases()) {
    const Strips matrix(widths);
    for (int round = 0; round < 20; ++round) {
      std::vector<std::int64_t> bounds(4);
      for (std::int64_t& bound : bounds)
        bound = static_cast<std::int64_t>(gen() % static_cast<unsigned>(matrix.width() + 1));
      std::ranges::sort(bounds);
      const std::array columns{ColumnRange{bounds[0], bounds[1]},
                               ColumnRange{bounds[2], bounds[3]}};
      std::vector<float> out(matrix.expected().size(), kUntouched);
      parallel_gemm(pool, scratch, matrix.args(out, matrix.width()), matrix.strips(), columns);
      matrix.expect(out, columns);
    }
  }
}

TEST(Strips, MembersOfAGroupGatherTheWholeProduct) {
  for (const auto& widths : cases()) {
    const Strips matrix(widths);
    on_ranks({.ranks = 3}, [&](Transport& transport) {
      ThreadPool pool(1);
      TensorGroup group(
          {.tp = 3, .max_row_bytes = static_cast<std::size_t>(matrix.width()) * sizeof(float)},
          transport,
          pool);
      std::vector<float> out(matrix.expected().size(), kUntouched);
      const GemmArgs args = matrix.args(out, matrix.width());
      group.multiply(GemmScratch(pool, DType::bf16, kDepth), args, matrix.strips());
      group.gather_columns(args.out, kRows, matrix.width(), DType::f32, {.name = "strips"});
      ASSERT_EQ(std::memcmp(out.data(), matrix.expected().data(), out.size() * sizeof(float)), 0);
    });
  }
}

}  // namespace
}  // namespace ferry
