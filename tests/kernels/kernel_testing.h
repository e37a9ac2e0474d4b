// What the kernel tests share: values, matrices, and comparing as bytes.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry::testing {

enum class Values {
  plain,    ///< around 1
  mixed,    ///< plain ones, denormals, zeros of both signs, very large and very small ones
  special,  ///< mixed with infinities and NaN
};

class RandomValues {
 public:
  explicit RandomValues(std::uint32_t seed) : engine_(seed) {}

  float next(Values values) {
    const float plain = normal_(engine_);
    if (values == Values::plain) return plain;
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

/// A weight matrix and its packed form. For gate and up: `n` columns of which the first half are
/// gate's, packed panel by panel in turns.
struct Weights {
  PackedMatrix packed;
  std::vector<float> values;  ///< [n, k], rounded to the packed type
  Buffer memory;

  Weights(
      RandomValues& random, DType dtype, std::int64_t k, std::int64_t n, Values kind, bool gated) {
    const std::vector<float> wanted = random.row(n * k, kind);
    const std::vector<std::byte> source = to_type(wanted, dtype);
    values = to_floats(source.data(), dtype, n * k);
    packed = {dtype, k, n, nullptr};
    const std::int64_t panels = gated ? packed.gated_panels() : packed.panels();
    memory = Buffer(static_cast<std::size_t>(panels) * packed.panel_bytes() + 1);
    packed.data = memory.data();
    PackArgs args{.dtype = dtype,
                  .source = source.data(),
                  .source_type = dtype,
                  .k = k,
                  .n = gated ? n / 2 : n,
                  .out = memory.data(),
                  .panel_step = gated ? 2 : 1};
    pack_matrix(args);
    if (!gated) return;
    args.source += static_cast<std::size_t>(n / 2 * k) * dtype_bytes(dtype);
    args.out += packed.panel_bytes();
    pack_matrix(args);
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
