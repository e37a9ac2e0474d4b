// attend: every instruction set gives the scalar one's bytes, and those are right.
#include <algorithm>
#include <cmath>

#include "kernels/kernel_testing.h"
#include "support/long_tests.h"

namespace ferry::testing {

namespace {

/// Queries over keys and values that lie in one piece or in pages, of which two at a time follow
/// each other in memory.
class Queries {
 public:
  struct Shape {
    DType type = DType::f32;
    std::int64_t positions = 0;
    std::int64_t head_dim = 0;
    std::int64_t value_dim = 0;
    int page_shift = kOnePage;
  };

  explicit Queries(const Shape& shape) : shape_(shape) {
    RandomValues random(static_cast<std::uint32_t>(shape.positions * 1000 + shape.head_dim));
    query_ = random.row(shape.head_dim * kAttendQueries);
    memory_ = to_type(random.row(2 * rows() * stride()), shape.type);
    for (std::int64_t page = 0; page << shape.page_shift < shape.positions; ++page)
      pages_.push_back(memory_.data() + place(page << shape.page_shift) * stride_bytes());
  }

  /// One more query, over [begin, end).
  void add(std::int64_t begin, std::int64_t end, float sink = kNoSink) {
    const float* query = query_.data() + std::ssize(queries_) * shape_.head_dim;
    queries_.push_back({.query = query, .begin = begin, .end = end, .sink = sink});
  }

  std::int64_t size() const { return std::ssize(queries_); }

  /// Makes keys and values of one position NaN.
  void spoil(std::int64_t position) {
    for (const std::int64_t row : {place(position), rows() + place(position)}) {
      std::memset(
          memory_.data() + row * stride_bytes(), 0xff, static_cast<std::size_t>(stride_bytes()));
    }
  }

  /// Results of queries [first, last) in one call.
  std::vector<float> run(const Kernels& kernels, std::int64_t first, std::int64_t last) const {
    std::vector<AttendQuery> queries(queries_.begin() + first, queries_.begin() + last);
    std::vector<float> out(static_cast<std::size_t>(shape_.value_dim * (last - first)), 7.0F);
    for (std::size_t q = 0; q < queries.size(); ++q)
      queries[q].out = out.data() + q * static_cast<std::size_t>(shape_.value_dim);
    const std::int64_t stride = shape_.positions + kAttendPadding;
    std::vector<float> scores(queries.size() * static_cast<std::size_t>(stride), 7.0F);
    kernels.attend({.queries = queries.data(),
                    .num_queries = last - first,
                    .keys = {pages_.data(), 0, stride_bytes()},
                    .values = {pages_.data(), rows() * stride_bytes(), stride_bytes()},
                    .page_shift = shape_.page_shift,
                    .kv_type = shape_.type,
                    .head_dim = shape_.head_dim,
                    .value_dim = shape_.value_dim,
                    .scale = kScale,
                    .scores = scores.data(),
                    .score_stride = stride});
    return out;
  }

  std::vector<float> together(const Kernels& kernels) const { return run(kernels, 0, size()); }

  std::vector<float> one_by_one(const Kernels& kernels) const {
    std::vector<float> out;
    for (std::int64_t q = 0; q < size(); ++q) {
      const std::vector<float> one = run(kernels, q, q + 1);
      out.insert(out.end(), one.begin(), one.end());
    }
    return out;
  }

  /// Of the first query.
  std::vector<double> exact() const {
    const AttendQuery& query = queries_.front();
    const auto all = rows() * stride();
    const auto floats = to_floats(memory_.data(), shape_.type, 2 * all);
    const auto key = [&](std::int64_t p, std::int64_t i) {
      return static_cast<double>(floats[static_cast<std::size_t>(place(p) * stride() + i)]);
    };
    const auto value = [&](std::int64_t p, std::int64_t i) {
      return static_cast<double>(floats[static_cast<std::size_t>(all + place(p) * stride() + i)]);
    };
    std::vector<double> out(static_cast<std::size_t>(shape_.value_dim));
    double sum = std::exp(query.sink);
    for (std::int64_t p = query.begin; p < query.end; ++p) {
      double score = 0;
      for (std::int64_t i = 0; i < shape_.head_dim; ++i)
        score += static_cast<double>(query.query[i]) * key(p, i);
      const double e = std::exp(score * kScale);
      sum += e;
      for (std::int64_t i = 0; i < shape_.value_dim; ++i)
        out[static_cast<std::size_t>(i)] += e * value(p, i);
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  static constexpr float kScale = 0.125F;

  std::int64_t stride() const { return std::max(shape_.head_dim, shape_.value_dim) + 1; }

  std::int64_t stride_bytes() const {
    return stride() * static_cast<std::int64_t>(dtype_bytes(shape_.type));
  }

  /// In memory: room for whole groups of four pages.
  std::int64_t rows() const {
    if (shape_.page_shift == kOnePage) return shape_.positions;
    return round_up(shape_.positions, std::int64_t{4} << shape_.page_shift);
  }

  /// The row in memory of a position: pages 0, 1, 2, 3 lie as 2, 3, 0, 1.
  std::int64_t place(std::int64_t position) const {
    return shape_.page_shift == kOnePage ? position
                                         : position ^ (std::int64_t{2} << shape_.page_shift);
  }

  Shape shape_;
  std::vector<AttendQuery> queries_;
  std::vector<float> query_;
  std::vector<std::byte> memory_;  // the rows of keys, then those of values
  std::vector<const std::byte*> pages_;
};

constexpr std::int64_t kHeadDims[] = {8, 16, 24, 40, 64, 80, 128, 200};
constexpr std::int64_t kLengths[] = {1, 3, 4, 5, 16, 33, 100};

/// Some of each kind: pages of a row, of a few, of more than a block of the kernel's, and one.
int page_shift_of(std::int64_t positions) {
  constexpr int kShifts[] = {kOnePage, 0, 2, 4, 8};
  return kShifts[positions % 5];
}

class AttendOfIsa : public PerIsa {};

TEST_P(AttendOfIsa, EqualsScalar) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t head_dim : kHeadDims) {
      for (const std::int64_t length : kLengths) {
        for (const std::int64_t value_dim : {head_dim, kHeadDims[(head_dim + length) % 8]}) {
          Queries head({type, length, head_dim, value_dim, page_shift_of(length)});
          head.add(0, length, head_dim % 3 == 0 ? 0.25F * static_cast<float>(length) : kNoSink);
          ASSERT_TRUE(same_floats(head.together(fast()), head.together(scalar())))
              << dtype_name(type) << " dims " << head_dim << " and " << value_dim << " length "
              << length;
        }
      }
    }
  }
}

/// What queries of a block see.
enum class Seen { all, up_to_their_own, window, own_chunk, nothing_in_common };

void add_queries(Queries& queries, Seen seen, std::int64_t count, std::int64_t positions) {
  for (std::int64_t q = 0; q < count; ++q) {
    const std::int64_t end = std::max<std::int64_t>(1, positions - count + q + 1);
    const float sink = q % 3 == 1 ? 0.5F * static_cast<float>(q) : kNoSink;
    switch (seen) {
      case Seen::all:
        queries.add(0, positions, sink);
        break;
      case Seen::up_to_their_own:
        queries.add(0, end, sink);
        break;
      case Seen::window:
        queries.add(std::max<std::int64_t>(0, end - 37), end, sink);
        break;
      case Seen::own_chunk:
        queries.add((end - 1) / 48 * 48, end, sink);
        break;
      case Seen::nothing_in_common:
        queries.add(positions * q / count, positions * (q + 1) / count, sink);
        break;
    }
  }
}

TEST_P(AttendOfIsa, QueriesTogetherEqualTheScalarOnesByThemselves) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t head_dim : {24, 128, 200}) {
      for (const std::int64_t positions : {1, 5, 16, 47, 130, 299, 303}) {
        for (const std::int64_t count : {1, 2, 3, 4, 7, 13, 16}) {
          for (const Seen seen : {Seen::all,
                                  Seen::up_to_their_own,
                                  Seen::window,
                                  Seen::own_chunk,
                                  Seen::nothing_in_common}) {
            if (slow_run() && (positions + count + static_cast<int>(seen)) % 4 != 0) continue;
            const std::int64_t value_dim = count % 2 == 0 ? head_dim : head_dim - 19;
            Queries queries({type, positions, head_dim, value_dim, page_shift_of(positions)});
            add_queries(queries, seen, count, positions);
            ASSERT_TRUE(same_floats(queries.together(fast()), queries.one_by_one(scalar())))
                << dtype_name(type) << " dims " << head_dim << " and " << value_dim << ", "
                << positions << " positions, " << count << " queries of kind "
                << static_cast<int>(seen);
          }
        }
      }
    }
  }
}

TEST_P(AttendOfIsa, PositionsThatAQueryDoesNotSeeTouchNothing) {
  Queries queries({DType::bf16, 200, 64, 64});
  for (std::int64_t q = 0; q < 16; ++q) queries.add(20 + q, 180 + q);
  const std::vector<float> before = queries.together(fast());
  for (const std::int64_t position : {19, 20, 194, 195}) queries.spoil(position);
  const std::vector<float> after = queries.together(fast());
  // The first query alone sees position 20 and the last alone position 194.
  const auto inner = [](const std::vector<float>& x) {
    return std::vector<float>(x.begin() + 64, x.end() - 64);
  };
  ASSERT_TRUE(same_floats(inner(after), inner(before)));
  EXPECT_TRUE(std::isnan(after.front()));
  EXPECT_TRUE(std::isnan(after.back()));
}

INSTANTIATE_TEST_SUITE_P(Kernels,
                         AttendOfIsa,
                         ::testing::Values(Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx),
                         isa_test_name);

TEST(ScalarAttend, AgreesWithDoublePrecision) {
  const FlushDenormals flush;
  for (const std::int64_t head_dim : kHeadDims) {
    for (const std::int64_t length : kLengths) {
      Queries head({DType::f32, length, head_dim, head_dim / 2 + 3, page_shift_of(length)});
      head.add(length / 4, length);
      const auto got = head.together(kernels_for(Isa::scalar));
      const auto want = head.exact();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 2e-5) << "head_dim " << head_dim << " length " << length;
    }
  }
}

TEST(ScalarAttend, SinkTakesItsShareBelowAndAboveAllScores) {
  const FlushDenormals flush;
  for (const float sink : {-30.0F, 0.5F, 4.0F, 30.0F}) {
    Queries head({DType::f32, 33, 24, 24, false});
    head.add(0, 33, sink);
    const auto got = head.together(kernels_for(Isa::scalar));
    const auto want = head.exact();
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5) << sink;
  }
}

TEST(ScalarAttend, NoPositionsGiveZeros) {
  Queries head({DType::f32, 8, 24, 40, false});
  head.add(3, 3);
  for (const float x : head.together(kernels_for(Isa::scalar))) EXPECT_EQ(x, 0.0F);
}

}  // namespace

}  // namespace ferry::testing
