// attend: every instruction set gives the scalar one's bytes, and those are right.
#include <algorithm>
#include <cmath>

#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

/// One head over keys and values that lie in a strided cache or behind pointers.
class Head {
 public:
  Head(
      DType type, std::int64_t length, std::int64_t head_dim, std::int64_t value_dim, bool pointers)
      : type_(type),
        length_(length),
        head_dim_(head_dim),
        value_dim_(value_dim),
        use_pointers_(pointers) {
    RandomValues random(static_cast<std::uint32_t>(length * 1000 + head_dim));
    query_ = random.row(head_dim);
    keys_ = to_type(random.row(length * stride()), type);
    values_ = to_type(random.row(length * stride()), type);
    for (std::int64_t p = 0; p < length; ++p) {
      key_pointers_.push_back(keys_.data() + p * stride_bytes());
      value_pointers_.push_back(values_.data() + p * stride_bytes());
    }
  }

  void add_sink(float sink) { sink_ = sink; }

  std::vector<float> run(const Kernels& kernels) const {
    std::vector<float> scores(static_cast<std::size_t>(length_));
    std::vector<float> out(static_cast<std::size_t>(value_dim_));
    kernels.attend({.query = query_.data(),
                    .keys = view(keys_, key_pointers_),
                    .values = view(values_, value_pointers_),
                    .kv_type = type_,
                    .length = length_,
                    .head_dim = head_dim_,
                    .value_dim = value_dim_,
                    .scale = kScale,
                    .sink = sink_,
                    .scores = scores.data(),
                    .out = out.data()});
    return out;
  }

  std::vector<double> exact() const {
    const auto keys = to_floats(keys_.data(), type_, length_ * stride());
    const auto values = to_floats(values_.data(), type_, length_ * stride());
    std::vector<double> out(static_cast<std::size_t>(value_dim_));
    double sum = std::exp(sink_);
    for (std::int64_t p = 0; p < length_; ++p) {
      double score = 0;
      for (std::int64_t i = 0; i < head_dim_; ++i)
        score += static_cast<double>(query_[static_cast<std::size_t>(i)]) *
                 keys[static_cast<std::size_t>(p * stride() + i)];
      const double e = std::exp(score * kScale);
      sum += e;
      for (std::int64_t i = 0; i < value_dim_; ++i)
        out[static_cast<std::size_t>(i)] += e * values[static_cast<std::size_t>(p * stride() + i)];
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  static constexpr float kScale = 0.125F;

  std::int64_t stride() const { return std::max(head_dim_, value_dim_) + 1; }

  std::int64_t stride_bytes() const {
    return stride() * static_cast<std::int64_t>(dtype_bytes(type_));
  }

  RowsView view(const std::vector<std::byte>& rows,
                const std::vector<const std::byte*>& pointers) const {
    if (use_pointers_) return {nullptr, 0, pointers.data()};
    return {rows.data(), stride_bytes(), nullptr};
  }

  DType type_;
  std::int64_t length_;
  std::int64_t head_dim_;
  std::int64_t value_dim_;
  bool use_pointers_;
  float sink_ = kNoSink;
  std::vector<float> query_;
  std::vector<std::byte> keys_;
  std::vector<std::byte> values_;
  std::vector<const std::byte*> key_pointers_;
  std::vector<const std::byte*> value_pointers_;
};

constexpr std::int64_t kHeadDims[] = {8, 16, 24, 40, 64, 80, 128, 200};
constexpr std::int64_t kLengths[] = {1, 3, 4, 5, 16, 33, 100};

class AttendOfIsa : public PerIsa {};

TEST_P(AttendOfIsa, EqualsScalar) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t head_dim : kHeadDims) {
      for (const std::int64_t length : kLengths) {
        for (const std::int64_t value_dim : {head_dim, kHeadDims[(head_dim + length) % 8]}) {
          Head head(type, length, head_dim, value_dim, length % 2 == 0);
          if (head_dim % 3 == 0) head.add_sink(0.25F * static_cast<float>(length));
          ASSERT_TRUE(same_floats(head.run(fast()), head.run(scalar())))
              << dtype_name(type) << " dims " << head_dim << " and " << value_dim << " length "
              << length;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttendOfIsa,
                         ::testing::Values(Isa::avx2, Isa::avx512, Isa::amx),
                         isa_test_name);

TEST(ScalarAttend, AgreesWithDoublePrecision) {
  const FlushDenormals flush;
  for (const std::int64_t head_dim : kHeadDims) {
    for (const std::int64_t length : kLengths) {
      const Head head(DType::f32, length, head_dim, head_dim / 2 + 3, false);
      const auto got = head.run(kernels_for(Isa::scalar));
      const auto want = head.exact();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 2e-5) << "head_dim " << head_dim << " length " << length;
    }
  }
}

TEST(ScalarAttend, SinkTakesItsShareBelowAndAboveAllScores) {
  const FlushDenormals flush;
  for (const float sink : {-30.0F, 0.5F, 4.0F, 30.0F}) {
    Head head(DType::f32, 33, 24, 24, false);
    head.add_sink(sink);
    const auto got = head.run(kernels_for(Isa::scalar));
    const auto want = head.exact();
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5) << sink;
  }
}

TEST(ScalarAttend, NoPositionsGiveZeros) {
  const Head head(DType::f32, 0, 24, 40, false);
  for (const float x : head.run(kernels_for(Isa::scalar))) EXPECT_EQ(x, 0.0F);
}

}  // namespace

}  // namespace ferry::testing
