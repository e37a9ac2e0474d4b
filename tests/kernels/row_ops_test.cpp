// The row operations: every instruction set gives the scalar one's bytes, and those are right.
#include <cmath>

#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

constexpr std::int64_t kLengths[] = {1, 2, 7, 15, 16, 17, 31, 33, 40, 64, 72, 128, 200, 1000};
constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr Values kValues[] = {Values::plain, Values::mixed, Values::special};

class RowOpsOfIsa : public PerIsa {};

TEST_P(RowOpsOfIsa, StreamCopyCopiesEveryByteAndNoOther) {
  std::vector<std::byte> from(700);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + 1);
  for (const std::size_t offset : {0U, 1U, 16U, 63U, 64U}) {
    for (const std::size_t bytes : {0U, 1U, 63U, 64U, 65U, 127U, 128U, 400U, 513U}) {
      std::vector<std::byte> got(800, std::byte{0xEE});
      std::vector<std::byte> want = got;
      std::copy_n(from.begin() + 3, bytes, want.begin() + static_cast<std::ptrdiff_t>(offset));
      fast().stream_copy(got.data() + offset, from.data() + 3, bytes);
      fast().stream_fence();
      ASSERT_TRUE(got == want) << bytes << " bytes at " << offset;
    }
  }
}

TEST_P(RowOpsOfIsa, ConvertEqualsScalar) {
  RandomValues random(2);
  for (const DType from : kTypes) {
    for (const DType to : kTypes) {
      for (const std::int64_t n : kLengths) {
        const auto in = to_type(random.row(n, Values::special), from);
        std::vector<std::byte> got(static_cast<std::size_t>(n) * dtype_bytes(to));
        std::vector<std::byte> want(got.size());
        fast().convert(in.data(), from, got.data(), to, n);
        scalar().convert(in.data(), from, want.data(), to, n);
        ASSERT_TRUE(got == want) << dtype_name(from) << " to " << dtype_name(to) << " n " << n;
      }
    }
  }
}

TEST_P(RowOpsOfIsa, ConvertsEverySixteenBitPatternAsScalar) {
  std::vector<std::uint16_t> in(65536);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(i);
  const auto* bytes = reinterpret_cast<const std::byte*>(in.data());
  for (const DType from : {DType::bf16, DType::f16}) {
    for (const DType to : kTypes) {
      std::vector<std::byte> got(in.size() * dtype_bytes(to));
      std::vector<std::byte> want(got.size());
      fast().convert(bytes, from, got.data(), to, 65536);
      scalar().convert(bytes, from, want.data(), to, 65536);
      ASSERT_TRUE(got == want) << dtype_name(from) << " to " << dtype_name(to);
    }
  }
}

TEST_P(RowOpsOfIsa, RoundsEveryKindOfFloatAsScalar) {
  std::vector<float> in;
  for (std::uint64_t bits = 0; bits < (1ULL << 32); bits += 9973)
    in.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  const auto n = static_cast<std::int64_t>(in.size());
  for (const DType to : {DType::bf16, DType::f16}) {
    std::vector<std::byte> got(in.size() * 2);
    std::vector<std::byte> want(got.size());
    fast().convert(as_bytes(in.data()), DType::f32, got.data(), to, n);
    scalar().convert(as_bytes(in.data()), DType::f32, want.data(), to, n);
    ASSERT_TRUE(got == want) << "to " << dtype_name(to);
  }
}

TEST_P(RowOpsOfIsa, RmsNormEqualsScalar) {
  RandomValues random(3);
  for (const DType type : kTypes) {
    for (const std::int64_t n : kLengths) {
      for (const Values values : kValues) {
        const auto x = to_type(random.row(n, values), type);
        const auto weight = random.row(n, values);
        auto got = x;  // in place
        std::vector<std::byte> want(x.size());
        fast().rms_norm(got.data(), type, weight.data(), 1e-6F, got.data(), n);
        scalar().rms_norm(x.data(), type, weight.data(), 1e-6F, want.data(), n);
        ASSERT_TRUE(same_bytes(got, want, type)) << dtype_name(type) << " n " << n;
      }
    }
  }
}

TEST_P(RowOpsOfIsa, RopeEqualsScalar) {
  RandomValues random(4);
  for (const std::int64_t half : kLengths) {
    for (const Values values : kValues) {
      auto got = random.row(2 * half, values);
      auto want = got;
      const auto cos = random.row(half);
      const auto sin = random.row(half);
      fast().rope(got.data(), cos.data(), sin.data(), 2 * half);
      scalar().rope(want.data(), cos.data(), sin.data(), 2 * half);
      ASSERT_TRUE(same_floats(got, want)) << "half " << half;
    }
  }
}

TEST_P(RowOpsOfIsa, DeltaRuleEqualsScalar) {
  RandomValues random(8);
  for (const std::int64_t keys : {1, 3, 20, 128}) {
    for (const std::int64_t n : kLengths) {
      for (const Values values : kValues) {
        const auto state = random.row(keys * n, values);
        const auto key = random.row(keys, values);
        const auto query = random.row(keys);
        const auto value = random.row(n, values);
        DeltaArgs args{.from = state.data(),
                       .key = key.data(),
                       .query = query.data(),
                       .value = value.data(),
                       .decay = 0.75F,
                       .beta = 0.3F,
                       .key_dim = keys,
                       .value_dim = n};
        const auto run = [&](const Kernels& kernels, std::vector<float>& to) {
          std::vector<float> out(static_cast<std::size_t>(n));
          args.to = to.data();
          args.out = out.data();
          kernels.delta_rule(args);
          return out;
        };
        auto got = state;  // in place
        args.from = got.data();
        const auto got_out = run(fast(), got);
        std::vector<float> want(state.size());
        args.from = state.data();
        const auto want_out = run(scalar(), want);
        ASSERT_TRUE(same_floats(got, want)) << keys << " x " << n;
        ASSERT_TRUE(same_floats(got_out, want_out)) << keys << " x " << n;
      }
    }
  }
}

TEST(RowOps, DeltaRuleIsTheRecurrence) {
  RandomValues random(9);
  const auto state = random.row(static_cast<std::int64_t>(5) * 3);
  const auto key = random.row(5);
  const auto query = random.row(5);
  const auto value = random.row(3);
  std::vector<float> to(15);
  std::vector<float> out(3);
  kernels_for(Isa::scalar)
      .delta_rule({.from = state.data(),
                   .to = to.data(),
                   .key = key.data(),
                   .query = query.data(),
                   .value = value.data(),
                   .decay = 0.9F,
                   .beta = 0.4F,
                   .out = out.data(),
                   .key_dim = 5,
                   .value_dim = 3});
  for (std::size_t j = 0; j < 3; ++j) {
    double held = 0;
    for (std::size_t i = 0; i < 5; ++i) held += 0.9 * state[3 * i + j] * key[i];
    const double change = (value[j] - held) * 0.4;
    double expected = 0;
    for (std::size_t i = 0; i < 5; ++i) {
      const double next = 0.9 * state[3 * i + j] + key[i] * change;
      EXPECT_NEAR(to[3 * i + j], next, 1e-5);
      expected += next * query[i];
    }
    EXPECT_NEAR(out[j], expected, 1e-5);
  }
}

TEST_P(RowOpsOfIsa, FloatRowsEqualScalar) {
  RandomValues random(5);
  for (const std::int64_t n : kLengths) {
    for (const Values values : kValues) {
      const auto x = random.row(n, values);
      const auto both = [&](auto op) {
        auto got = x;
        auto want = x;
        op(fast(), got);
        op(scalar(), want);
        return same_floats(got, want);
      };
      ASSERT_TRUE(both([&](const Kernels& k, auto& r) { k.softmax(r.data(), n); })) << n;
      ASSERT_TRUE(both([&](const Kernels& k, auto& r) { k.sigmoid(x.data(), r.data(), n); })) << n;
      ASSERT_TRUE(both([&](const Kernels& k, auto& r) { k.scale(x.data(), 0.3F, r.data(), n); }));
    }
  }
}

TEST_P(RowOpsOfIsa, AddEqualsScalar) {
  RandomValues random(6);
  for (const DType type : kTypes) {
    for (const std::int64_t n : kLengths) {
      auto got = to_type(random.row(n, Values::mixed), type);
      auto want = got;
      const auto y = random.row(n, Values::mixed);
      fast().add(got.data(), type, y.data(), n);
      scalar().add(want.data(), type, y.data(), n);
      ASSERT_TRUE(same_bytes(got, want, type)) << dtype_name(type) << " n " << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, RowOpsOfIsa, ::testing::ValuesIn(kFasterIsas), isa_test_name);

TEST(ScalarRowOps, RoundsToNearestEven) {
  const auto bf16 = [](float x) {
    return std::bit_cast<std::uint16_t>(
        *reinterpret_cast<const std::array<std::byte, 2>*>(to_type({x}, DType::bf16).data()));
  };
  const auto f16 = [](float x) {
    return std::bit_cast<std::uint16_t>(
        *reinterpret_cast<const std::array<std::byte, 2>*>(to_type({x}, DType::f16).data()));
  };
  EXPECT_EQ(bf16(1.0F), 0x3f80);
  EXPECT_EQ(bf16(0x1.01p0F), 0x3f80);        // half way, down to even
  EXPECT_EQ(bf16(0x1.03p0F), 0x3f82);        // half way, up to even
  EXPECT_EQ(bf16(0x1.010002p0F), 0x3f81);    // just above half
  EXPECT_EQ(bf16(0x1.fffffep127F), 0x7f80);  // rounds to infinity
  EXPECT_EQ(bf16(-0.0F), 0x8000);
  EXPECT_EQ(f16(1.0F), 0x3c00);
  EXPECT_EQ(f16(0x1.002p0F), 0x3c00);
  EXPECT_EQ(f16(0x1.006p0F), 0x3c02);
  EXPECT_EQ(f16(65519.0F), 0x7bff);
  EXPECT_EQ(f16(65520.0F), 0x7c00);
  EXPECT_EQ(f16(0x1p-24F), 0x0001);
  EXPECT_EQ(f16(0x1p-25F), 0x0000);
  EXPECT_EQ(f16(0x1.8p-25F), 0x0001);
  EXPECT_EQ(f16(-0x1.8p-24F), 0x8002);
}

TEST(ScalarRowOps, EveryHalfPrecisionValueSurvivesF32) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const auto wide = to_floats(reinterpret_cast<const std::byte*>(&half), DType::f16, 1);
    if (wide[0] != wide[0]) continue;
    const auto back = to_type(wide, DType::f16);
    ASSERT_EQ(std::memcmp(back.data(), &half, 2), 0) << bits;
  }
  const std::uint16_t smallest = 1;
  EXPECT_EQ(to_floats(reinterpret_cast<const std::byte*>(&smallest), DType::f16, 1)[0], 0x1p-24F);
}

TEST(ScalarRowOps, NormAgreesWithDoublePrecision) {
  const FlushDenormals flush;
  RandomValues random(8);
  for (const std::int64_t n : kLengths) {
    const auto x = random.row(n);
    const auto weight = random.row(n);
    std::vector<float> out(x.size());
    kernels_for(Isa::scalar)
        .rms_norm(as_bytes(x.data()), DType::f32, weight.data(), 1e-5F, as_bytes(out.data()), n);
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double want = x[i] * inverse * weight[i];
      ASSERT_NEAR(out[i], want, std::abs(want) * 1e-5) << "n " << n;
    }
  }
}

TEST(ScalarRowOps, RopeRotatesHalfSplitPairs) {
  const FlushDenormals flush;
  std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<float> cos = {0.6F, 1, 0};
  const std::vector<float> sin = {0.8F, 0, 1};
  kernels_for(Isa::scalar).rope(x.data(), cos.data(), sin.data(), 6);
  const std::vector<float> want = {1 * 0.6F - 4 * 0.8F, 2, -6, 4 * 0.6F + 1 * 0.8F, 5, 3};
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], want[i], 1e-6) << i;
}

TEST(ScalarRowOps, SoftmaxAgreesWithDoublePrecision) {
  const FlushDenormals flush;
  RandomValues random(9);
  for (const std::int64_t n : kLengths) {
    auto x = random.row(n);
    for (float& v : x) v = v * 5 - 40;  // all negative: an empty lane must not be the maximum
    double sum = 0;
    std::vector<double> want(x.begin(), x.end());
    for (double& v : want) v = std::exp(v);
    for (const double e : want) sum += e;
    kernels_for(Isa::scalar).softmax(x.data(), n);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(x[i], want[i] / sum, 1e-5 * want[i] / sum) << "n " << n;
  }
}

TEST(ScalarRowOps, SoftmaxMasksMinusInfinity) {
  std::vector<float> x = {-std::numeric_limits<float>::infinity(), 1, 1};
  kernels_for(Isa::scalar).softmax(x.data(), 3);
  EXPECT_EQ(x[0], 0.0F);
  EXPECT_EQ(x[1], 0.5F);
  EXPECT_EQ(x[2], 0.5F);
}

TEST(ScalarRowOps, SigmoidAgreesWithDoublePrecision) {
  const FlushDenormals flush;
  for (int i = 0; i < 432; ++i) {
    const float x = -80 + 0.37F * static_cast<float>(i);
    float got = 0;
    kernels_for(Isa::scalar).sigmoid(&x, &got, 1);
    const double want = 1 / (1 + std::exp(-static_cast<double>(x)));
    ASSERT_NEAR(got, want, 4e-7 * want) << x;
  }
}

}  // namespace

}  // namespace ferry::testing
