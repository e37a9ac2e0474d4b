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
    WireType type = WireType::f32;
    std::int64_t positions = 0;
    std::int64_t head_dim = 0;
    std::int64_t value_dim = 0;
    int page_shift = kOnePage;
    bool values_in_keys = false;  ///< they are the beginnings of the keys
  };

  explicit Queries(const Shape& shape) : shape_(shape) {
    RandomValues random(static_cast<std::uint32_t>(shape.positions * 1000 + shape.head_dim));
    query_ = random.row(shape.head_dim * kAttendQueries);
    memory_.resize(static_cast<std::size_t>(2 * rows() * stride_bytes()));
    for (std::int64_t row = 0; row < 2 * rows(); ++row) {
      const std::int64_t width = row < rows() ? shape.head_dim : shape.value_dim;
      wanted_.push_back(random.row(width));
      kernels_for(Isa::scalar)
          .encode(as_bytes(wanted_.back().data()), DType::f32, row_at(row), shape.type, width);
    }
    for (std::int64_t page = 0; page << shape.page_shift < shape.positions; ++page)
      pages_.push_back(row_at(place(page << shape.page_shift)));
  }

  /// The same queries over what the rows stand for.
  Queries decoded() const {
    Queries other({WireType::f32,
                   shape_.positions,
                   shape_.head_dim,
                   shape_.value_dim,
                   shape_.page_shift,
                   shape_.values_in_keys});
    for (std::int64_t row = 0; row < 2 * rows(); ++row) {
      const std::vector<float> floats = floats_of(row);
      std::memcpy(other.row_at(row), floats.data(), floats.size() * sizeof(float));
    }
    for (const AttendQuery& query : queries_) other.add(query.begin, query.end, query.sink);
    return other;
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
      std::memset(row_at(row), 0xff, static_cast<std::size_t>(stride_bytes()));
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
                    .values = {pages_.data(),
                               shape_.values_in_keys ? 0 : rows() * stride_bytes(),
                               stride_bytes()},
                    .page_shift = shape_.page_shift,
                    .kv_type = shape_.type,
                    .head_dim = shape_.head_dim,
                    .value_dim = shape_.value_dim,
                    .value_row = shape_.values_in_keys ? shape_.head_dim : shape_.value_dim,
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

  /// Of the first query, over the values that were to be kept.
  std::vector<double> exact() const {
    const AttendQuery& query = queries_.front();
    const auto at = [&](std::int64_t row, std::int64_t i) {
      return static_cast<double>(
          wanted_[static_cast<std::size_t>(row)][static_cast<std::size_t>(i)]);
    };
    const auto key = [&](std::int64_t p, std::int64_t i) { return at(place(p), i); };
    const auto value = [&](std::int64_t p, std::int64_t i) { return at(rows() + place(p), i); };
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

  /// How far the first query's results may be from exact() for what the rows' type loses: no score
  /// moves by more than `moved`, so no weight by more than a factor of e^(2 moved).
  double bound() const {
    const AttendQuery& query = queries_.front();
    double moved = 0;
    double greatest = 0;
    double lost = 0;
    for (std::int64_t p = query.begin; p < query.end; ++p) {
      double score = 0;
      for (std::int64_t i = 0; i < shape_.head_dim; ++i)
        score += std::abs(static_cast<double>(query.query[i])) * error_of(place(p), i);
      moved = std::max(moved, score * kScale);
      for (std::int64_t i = 0; i < shape_.value_dim; ++i) {
        const std::int64_t row = rows() + place(p);
        greatest =
            std::max(greatest,
                     std::abs(static_cast<double>(
                         wanted_[static_cast<std::size_t>(row)][static_cast<std::size_t>(i)])));
        lost = std::max(lost, error_of(row, i));
      }
    }
    return (std::exp(2 * moved) - 1) * (greatest + lost) + lost;
  }

 private:
  double error_of(std::int64_t row, std::int64_t i) const {
    const std::vector<float>& values = wanted_[static_cast<std::size_t>(row)];
    const auto begin = static_cast<std::size_t>(i / kWireBlock * kWireBlock);
    const std::size_t end = std::min(values.size(), begin + kWireBlock);
    float greatest = 0;
    for (std::size_t j = begin; j < end; ++j) greatest = std::max(greatest, std::abs(values[j]));
    return wire_error_bound(
        shape_.type, static_cast<double>(values[static_cast<std::size_t>(i)]), greatest);
  }

  std::byte* row_at(std::int64_t row) { return memory_.data() + row * stride_bytes(); }

  const std::byte* row_at(std::int64_t row) const { return memory_.data() + row * stride_bytes(); }

  std::vector<float> floats_of(std::int64_t row) const {
    const std::int64_t width = row < rows() ? shape_.head_dim : shape_.value_dim;
    std::vector<float> floats(static_cast<std::size_t>(width));
    kernels_for(Isa::scalar)
        .decode(row_at(row), shape_.type, as_bytes(floats.data()), DType::f32, width);
    return floats;
  }

  static constexpr float kScale = 0.125F;

  std::int64_t stride_bytes() const {
    const std::int64_t widest = std::max(shape_.head_dim, shape_.value_dim);
    return static_cast<std::int64_t>(wire_row_bytes(shape_.type, widest)) + 4;
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
  std::vector<std::vector<float>> wanted_;  // what was to be in the rows of memory
  std::vector<std::byte> memory_;           // the rows of keys, then those of values
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
  for (const WireType type : kKvTypes) {
    for (const std::int64_t head_dim : kHeadDims) {
      for (const std::int64_t length : kLengths) {
        for (const std::int64_t value_dim : {head_dim, kHeadDims[(head_dim + length) % 8]}) {
          Queries head({type, length, head_dim, value_dim, page_shift_of(length)});
          head.add(0, length, head_dim % 3 == 0 ? 0.25F * static_cast<float>(length) : kNoSink);
          ASSERT_TRUE(same_floats(head.together(fast()), head.together(scalar())))
              << wire_type_name(type) << " dims " << head_dim << " and " << value_dim << " length "
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
  for (const WireType type : kKvTypes) {
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
                << wire_type_name(type) << " dims " << head_dim << " and " << value_dim << ", "
                << positions << " positions, " << count << " queries of kind "
                << static_cast<int>(seen);
          }
        }
      }
    }
  }
}

/// More values than one scale has, of rows that have more values still, too.
TEST_P(AttendOfIsa, WideRowsAndValuesInKeysEqualTheScalarOnes) {
  for (const WireType type : kKvTypes) {
    for (const auto& [head_dim, value_dim] :
         {std::pair{576, 512}, {576, 500}, {300, 300}, {40, 300}}) {
      Queries queries({type, 70, head_dim, value_dim, 4, head_dim > value_dim});
      for (std::int64_t q = 0; q < 7; ++q) queries.add(q, 60 + q);
      ASSERT_TRUE(same_floats(queries.together(fast()), queries.one_by_one(scalar())))
          << wire_type_name(type) << " dims " << head_dim << " and " << value_dim;
    }
  }
}

TEST_P(AttendOfIsa, QuantisedRowsAreWhatDecodeGives) {
  for (const WireType type : {WireType::fp8, WireType::int8_block}) {
    for (const std::int64_t head_dim : {24, 128, 200, 576}) {
      for (const bool values_in_keys : {false, true}) {
        Queries queries({type, 150, head_dim, head_dim - 8, 4, values_in_keys});
        for (std::int64_t q = 0; q < 5; ++q) queries.add(3 * q, 140 + q);
        ASSERT_TRUE(same_floats(queries.together(fast()), queries.decoded().together(fast())))
            << wire_type_name(type) << " dims " << head_dim;
      }
    }
  }
}

TEST_P(AttendOfIsa, PositionsThatAQueryDoesNotSeeTouchNothing) {
  Queries queries({WireType::bf16, 200, 64, 64});
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

INSTANTIATE_TEST_SUITE_P(Kernels, AttendOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

TEST(ScalarAttend, AgreesWithDoublePrecision) {
  const FlushDenormals flush;
  for (const std::int64_t head_dim : kHeadDims) {
    for (const std::int64_t length : kLengths) {
      Queries head({WireType::f32, length, head_dim, head_dim / 2 + 3, page_shift_of(length)});
      head.add(length / 4, length);
      const auto got = head.together(kernels_for(Isa::scalar));
      const auto want = head.exact();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 2e-5) << "head_dim " << head_dim << " length " << length;
    }
  }
}

TEST(ScalarAttend, QuantisedRowsAreWithinTheirBoundOfTheExactResult) {
  const FlushDenormals flush;
  double fp8 = 0;
  double int8 = 0;
  for (const std::int64_t head_dim : kHeadDims) {
    for (const std::int64_t length : kLengths) {
      for (const WireType type : {WireType::bf16, WireType::fp8, WireType::int8_block}) {
        Queries head({type, length, head_dim, head_dim / 2 + 3, page_shift_of(length)});
        head.add(length / 4, length);
        const auto got = head.together(kernels_for(Isa::scalar));
        const auto want = head.exact();
        const double bound = head.bound();
        for (std::size_t i = 0; i < got.size(); ++i) {
          const double error = std::abs(static_cast<double>(got[i]) - want[i]);
          ASSERT_LE(error, bound + 2e-5)
              << wire_type_name(type) << " head_dim " << head_dim << " length " << length;
          if (type == WireType::fp8) fp8 += error;
          if (type == WireType::int8_block) int8 += error;
        }
      }
    }
  }
  EXPECT_GT(fp8, 0);
  EXPECT_GT(fp8, int8) << "these values are of one magnitude, which a common step suits";
}

TEST(ScalarAttend, SinkTakesItsShareBelowAndAboveAllScores) {
  const FlushDenormals flush;
  for (const float sink : {-30.0F, 0.5F, 4.0F, 30.0F}) {
    Queries head({WireType::f32, 33, 24, 24});
    head.add(0, 33, sink);
    const auto got = head.together(kernels_for(Isa::scalar));
    const auto want = head.exact();
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5) << sink;
  }
}

TEST(ScalarAttend, NoPositionsGiveZeros) {
  Queries head({WireType::f32, 8, 24, 40});
  head.add(3, 3);
  for (const float x : head.together(kernels_for(Isa::scalar))) EXPECT_EQ(x, 0.0F);
}

}  // namespace

}  // namespace ferry::testing
