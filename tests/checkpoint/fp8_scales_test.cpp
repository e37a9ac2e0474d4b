// Scales of fp8 matrices: numbers, and powers of two.
#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/pack_stored.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "small_source.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::SmallTensor;
using testing::HasSubstr;

/// Files like DeepSeek-V4's: the same matrix as with the same scales as numbers, held and read.
TEST(Fp8, ScalesMayBePowersOfTwo) {
  const FlushDenormals flush;
  const json config = {
      {"quant_method", "fp8"}, {"scale_fmt", "ue8m0"}, {"weight_block_size", {128, 128}}};
  const auto format = read_stored_format(ConfigReader(config, "config.json"));
  const test::SmallDirectory dir;
  const test::SmallDirectory other_dir;
  SmallTensor codes = test::small_tensor("x.weight", "F8_E4M3", {150, 200});
  SmallTensor numbers = test::small_tensor("x.weight_scale_inv", "F32", {2, 2});
  const std::array<std::uint8_t, 4> exponents = {1, 127, 130, 240};
  for (std::size_t i = 0; i < exponents.size(); ++i) {
    const float number = std::ldexp(1.0F, exponents.at(i) - 127);
    std::memcpy(numbers.data.data() + 4 * i, &number, sizeof number);
  }
  const auto with_numbers = other_dir.open({codes, numbers});
  const StoredMatrix expected = find_matrix(*with_numbers, format.get(), {"x.weight", 150, 200});
  const auto packed = [](const StoredMatrix& matrix) {
    ThreadPool pool(1);
    std::vector<std::byte> out(PackedMatrix::packed_panel_bytes(WeightType::fp8, 200) * 10);
    pack_stored({&matrix, 1}, {.type = WeightType::fp8, .data = out.data()}, pool);
    return out;
  };
  const auto read = [](const StoredMatrix& matrix) {
    std::vector<float> out(std::size_t{150} * 200);
    matrix.read_rows(0, 150, DType::f32, reinterpret_cast<std::byte*>(out.data()));
    return out;
  };
  for (const char* type : {"F8_E8M0", "U8"}) {
    SmallTensor powers = test::small_tensor("x.weight_scale_inv", type, {2, 2});
    std::memcpy(powers.data.data(), exponents.data(), exponents.size());
    const auto source = dir.open({codes, powers});
    const StoredMatrix matrix = find_matrix(*source, format.get(), {"x.weight", 150, 200});
    EXPECT_TRUE(matrix.holds(WeightType::fp8));
    EXPECT_THAT(read(matrix), testing::Pointwise(testing::NanSensitiveFloatEq(), read(expected)));
    EXPECT_EQ(packed(matrix), packed(expected)) << type;
    powers.data[1] = '\xff';  // NaN
    const auto other = dir.open({codes, powers});
    const auto rows = read(find_matrix(*other, format.get(), {"x.weight", 150, 200}));
    EXPECT_TRUE(std::isnan(rows[130]));
    EXPECT_THAT(test::message_of<ModelError>([&] {
                  find_matrix(
                      *dir.open({codes, test::small_tensor("x.weight_scale_inv", type, {4})}),
                      format.get(),
                      {"x.weight", 150, 200});
                }),
                HasSubstr("x.weight_scale_inv"));
  }
}

TEST(Fp8, OtherScalesAreRefused) {
  const json config = {
      {"quant_method", "fp8"}, {"scale_fmt", "e5m2"}, {"weight_block_size", {128, 128}}};
  EXPECT_THAT(test::message_of<ModelError>(
                  [&] { read_stored_format(ConfigReader(config, "config.json")); }),
              HasSubstr("\"float\" or \"ue8m0\""));
}

}  // namespace
}  // namespace ferry
