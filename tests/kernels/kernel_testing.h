// What the kernel tests share: values, matrices, and comparing as bytes.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry::testing {

enum class Values {
  plain,    ///< around 1
  extreme,  ///< 1 and -1, runs of either: codes of the greatest magnitude, whose products add up
  mixed,    ///< plain ones, denormals, zeros of both signs, very large and very small ones
  special,  ///< mixed with infinities and NaN
};

class RandomValues {
 public:
  explicit RandomValues(std::uint32_t seed) : engine_(seed) {}

  float next(Values values) {
    const float plain = normal_(engine_);
    if (values == Values::plain) return plain;
    if (values == Values::extreme) {
      if (engine_() % 5 == 0) extreme_ = -extreme_;
      return extreme_;
    }
    const auto dice = engine_() % (values == Values::special ? 32 : 28);
    const float sign = plain < 0 ? -1.0F : 1.0F;
    if (dice < 3) return sign * 0.0F;
    if (dice < 6) return plain * 1e-39F;
    if (dice < 9) return plain * 1e-20F;
    if (dice < 12) return plain * 1e16F;
    if (dice == 30) return sign * std::numeric_limits<float>::infinity();
    if (dice == 31) return std::numeric_limits<float>::quiet_NaN();
    return plain;
  }

  std::vector<float> row(std::int64_t n, Values values = Values::plain) {
    std::vector<float> out(static_cast<std::size_t>(n));
    for (float& x : out) x = next(values);
    return out;
  }

 private:
  std::mt19937 engine_;
  float extreme_ = 1.0F;
  std::normal_distribution<float> normal_;
};

inline const std::byte* as_bytes(const float* p) { return reinterpret_cast<const std::byte*>(p); }

inline std::byte* as_bytes(float* p) { return reinterpret_cast<std::byte*>(p); }

/// Elements of `type` with the values of `x`, rounded by the scalar kernel.
inline std::vector<std::byte> to_type(const std::vector<float>& x, DType type) {
  std::vector<std::byte> out(x.size() * dtype_bytes(type));
  kernels_for(Isa::scalar)
      .convert(
          as_bytes(x.data()), DType::f32, out.data(), type, static_cast<std::int64_t>(x.size()));
  return out;
}

inline std::vector<float> to_floats(const std::byte* row, DType type, std::int64_t n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  kernels_for(Isa::scalar).convert(row, type, as_bytes(out.data()), DType::f32, n);
  return out;
}

inline float e2m1_value(unsigned code) {
  constexpr float kMagnitudes[] = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F};
  return code < 8 ? kMagnitudes[code] : -kMagnitudes[code - 8];
}

/// A weight matrix and its packed form. For gate and up: `n` columns of which the first half are
/// gate's, packed panel by panel in turns, and quantised apart.
struct Weights {
  PackedMatrix packed;
  std::vector<float> values;  ///< [n, k], as held; codes without their scales
  std::vector<float> scales;  ///< [n][weight_groups] of quantised types
  Buffer memory;

  Weights(RandomValues& random,
          WeightType type,
          std::int64_t k,
          std::int64_t n,
          Values kind,
          bool gated) {
    const std::vector<float> wanted = random.row(n * k, kind);
    packed = {type, k, n, nullptr};
    const std::int64_t panels = gated ? packed.gated_panels() : packed.panels();
    memory = Buffer(static_cast<std::size_t>(panels) * packed.panel_bytes() + 1);
    packed.data = memory.data();
    const std::int64_t part = gated ? n / 2 : n;
    for (std::int64_t first = 0; first < n; first += part) {
      const auto begin = wanted.begin() + first * k;
      add(type, {begin, begin + part * k}, part, gated ? 2 : 1, first == 0 ? 0 : 1);
    }
  }

  float scale(std::int64_t column, std::int64_t group) const {
    const std::int64_t groups = weight_groups(packed.type, packed.k);
    return scales[static_cast<std::size_t>(column * groups + group)];
  }

 private:
  void add(WeightType type,
           const std::vector<float>& wanted,
           std::int64_t n,
           std::int64_t panel_step,
           std::int64_t first_panel) {
    const DType dtype = activation_type(type);
    const std::vector<std::byte> source = to_type(wanted, dtype);
    PackArgs args{
        .type = type,
        .source = source.data(),
        .source_type = dtype,
        .k = packed.k,
        .n = n,
        .out = memory.data() + first_panel * static_cast<std::int64_t>(packed.panel_bytes()),
        .panel_step = panel_step};
    QuantizedMatrix quantized;
    if (is_quantized(type)) {
      quantized = quantize_matrix(type, source.data(), dtype, n, packed.k);
      args.source = quantized.codes.data();
      args.scales = quantized.scales.data();
      args.scale_rows = rows_per_scale(type);
      keep(type, quantized, n);
    } else {
      const auto plain = to_floats(source.data(), dtype, n * packed.k);
      values.insert(values.end(), plain.begin(), plain.end());
    }
    pack_matrix(args);
  }

  void keep(WeightType type, const QuantizedMatrix& quantized, std::int64_t n) {
    const std::int64_t groups = weight_groups(type, packed.k);
    for (std::int64_t row = 0; row < n; ++row) {
      const std::byte* codes = quantized.codes.data() + row * code_row_bytes(type, packed.k);
      for (std::int64_t i = 0; i < packed.k; ++i) values.push_back(value_of(type, codes, i));
      for (std::int64_t g = 0; g < groups; ++g) {
        scales.push_back(
            quantized.scales[static_cast<std::size_t>(row / rows_per_scale(type) * groups + g)]);
      }
    }
  }

  static float value_of(WeightType type, const std::byte* codes, std::int64_t i) {
    if (type == WeightType::int8) return static_cast<float>(static_cast<std::int8_t>(codes[i]));
    if (type == WeightType::int4)
      return static_cast<float>(std::to_integer<int>(codes[i / 2] >> (i % 2 * 4) & std::byte{15})) -
             8.0F;
    if (type == WeightType::mxfp4)
      return e2m1_value(std::to_integer<unsigned>(codes[i / 2] >> (i % 2 * 4) & std::byte{15}));
    const int code = std::to_integer<int>(codes[i]);
    const int exponent = code >> 3 & 15;
    const int mantissa = code & 7;
    const float magnitude = exponent == 0
                                ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    return code < 128 ? magnitude : -magnitude;
  }
};

inline bool is_nan(const std::byte* element, DType type) {
  const float x = to_floats(element, type, 1)[0];
  return x != x;
}

/// Equal as bytes; two NaN count as equal whatever their payload. Names the first that differs.
inline ::testing::AssertionResult same_bytes(const std::vector<std::byte>& got,
                                             const std::vector<std::byte>& want,
                                             DType type) {
  if (got == want) return ::testing::AssertionSuccess();
  if (got.size() != want.size()) return ::testing::AssertionFailure() << "sizes differ";
  const std::size_t size = dtype_bytes(type);
  for (std::size_t i = 0; i + size <= got.size(); i += size) {
    if (std::memcmp(&got[i], &want[i], size) == 0) continue;
    if (is_nan(&got[i], type) && is_nan(&want[i], type)) continue;
    return ::testing::AssertionFailure()
           << "element " << i / size << " is " << to_floats(&got[i], type, 1)[0] << ", not "
           << to_floats(&want[i], type, 1)[0];
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult same_floats(const std::vector<float>& got,
                                              const std::vector<float>& want) {
  const auto bytes = [](const std::vector<float>& x) {
    return std::vector<std::byte>(as_bytes(x.data()), as_bytes(x.data() + x.size()));
  };
  return same_bytes(bytes(got), bytes(want), DType::f32);
}

/// Those that are compared with scalar, which is the first.
inline constexpr std::span kFasterIsas = std::span(kAllIsas).subspan<1>();

/// Runs each test for one instruction set, with denormals flushed as the kernels expect.
class PerIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam())) GTEST_SKIP() << "this machine has no " << isa_name(GetParam());
  }

  const Kernels& scalar() const { return kernels_for(Isa::scalar); }

  const Kernels& fast() const { return kernels_for(GetParam()); }

 private:
  FlushDenormals flush_;
};

inline std::string isa_test_name(const ::testing::TestParamInfo<Isa>& info) {
  return std::string(isa_name(info.param));
}

}  // namespace ferry::testing
