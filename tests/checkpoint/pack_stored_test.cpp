#include "ferry/checkpoint/pack_stored.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"

namespace ferry {
namespace {

constexpr std::int64_t kDepth = 200;

std::vector<float> random_rows(std::int64_t rows, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(rows * kDepth));
  for (float& x : out) x = normal(engine);
  return out;
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& x) {
  return std::as_bytes(std::span(x));
}

StoredMatrix plain(const std::vector<float>& values) {
  return {.rows = static_cast<std::int64_t>(values.size()) / kDepth,
          .columns = kDepth,
          .data = bytes_of(values)};
}

/// Quantised, and as a checkpoint has it.
struct Stored {
  QuantizedMatrix q;
  std::vector<std::byte> exponents;  // mxfp4's scales
  StoredMatrix matrix;

  Stored(WeightType type, const std::vector<float>& values, std::int64_t rows)
      : q(quantize_matrix(type, bytes_of(values).data(), DType::f32, rows, kDepth)) {
    for (const float scale : q.scales) exponents.push_back(std::byte{power_exponent(scale)});
    const auto scales = type == WeightType::mxfp4 ? bytes_of(exponents) : bytes_of(q.scales);
    matrix = {.quant = quant_spec(type),
              .rows = rows,
              .columns = kDepth,
              .data = bytes_of(q.codes),
              .scales = {
                  .dtype = DType::f32, .shape = {}, .data = scales.data(), .bytes = scales.size()}};
  }
};

class PackStored : public testing::TestWithParam<WeightType> {
 protected:
  std::vector<std::byte> pack(std::span<const StoredMatrix> sources, std::int64_t columns) {
    const std::size_t bytes = PackedMatrix::packed_panel_bytes(GetParam(), kDepth) *
                              static_cast<std::size_t>(ceil_div(columns, kPanelColumns));
    Buffer memory(bytes);
    pack_stored(sources, {.type = GetParam(), .data = memory.data()}, pool_);
    return {memory.data(), memory.data() + bytes};
  }

  ThreadPool pool_{2};
};

/// Panels that two matrices share; blocks of 128 rows that begin with each matrix.
TEST_P(PackStored, MergedMatricesAreQuantisedEachByItself) {
  const auto first = random_rows(150, 1);
  const auto second = random_rows(23, 2);
  const StoredMatrix sources[] = {plain(first), plain(second)};
  std::vector<std::byte> codes;
  std::vector<float> scales;
  for (const StoredMatrix& source : sources) {
    const QuantizedMatrix q =
        quantize_matrix(GetParam(), source.data.data(), DType::f32, source.rows, kDepth);
    codes.insert(codes.end(), q.codes.begin(), q.codes.end());
    const std::int64_t groups = weight_groups(GetParam(), kDepth);
    for (std::int64_t row = 0; row < source.rows; ++row) {
      const auto begin = q.scales.begin() + row / rows_per_scale(GetParam()) * groups;
      scales.insert(scales.end(), begin, begin + groups);
    }
  }
  const std::vector<std::byte> found = pack(sources, 173);
  Buffer want(found.size());
  pack_matrix({.type = GetParam(),
               .source = codes.data(),
               .scales = scales.data(),
               .k = kDepth,
               .n = 173,
               .out = want.data()});
  EXPECT_EQ(std::memcmp(found.data(), want.data(), found.size()), 0);
}

TEST_P(PackStored, CodesOfTheCheckpointStayAsTheyAre) {
  const auto values = random_rows(150, 3);
  const Stored held(GetParam(), values, 150);
  const StoredMatrix source = plain(values);
  EXPECT_TRUE(held.matrix.holds(GetParam()));
  EXPECT_EQ(pack({&held.matrix, 1}, 150), pack({&source, 1}, 150));
}

/// What another type makes of stored codes is what it makes of their values.
TEST_P(PackStored, CodesOfAnotherTypeAreReadAsTheirValues) {
  for (const WeightType other :
       {WeightType::int8, WeightType::fp8, WeightType::int4, WeightType::mxfp4}) {
    if (other == GetParam()) continue;
    const auto values = random_rows(40, 4);
    const Stored held(other, values, 40);
    std::vector<float> read(values.size());
    const FlushDenormals flush;
    held.matrix.read_rows(0, 40, DType::f32, reinterpret_cast<std::byte*>(read.data()));
    for (std::size_t i = 0; i < read.size(); ++i) ASSERT_NEAR(read[i], values[i], 0.6F) << i;
    const StoredMatrix source = plain(read);
    EXPECT_EQ(pack({&held.matrix, 1}, 40), pack({&source, 1}, 40)) << weight_type_name(other);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types,
    PackStored,
    testing::Values(WeightType::int8, WeightType::fp8, WeightType::int4, WeightType::mxfp4),
    [](const auto& param) { return std::string(weight_type_name(param.param)); });

}  // namespace
}  // namespace ferry
