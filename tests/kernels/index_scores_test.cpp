// index_scores: every instruction set gives the scalar one's bytes, and those are right.
#include <algorithm>
#include <cmath>

#include "kernels/kernel_testing.h"

namespace ferry::testing {

namespace {

struct Shape {
  DType type = DType::f32;
  std::int64_t positions = 0;
  std::int64_t heads = 0;
  std::int64_t dim = 0;
};

/// Keys in pages of 16 positions, of which none follows another in memory, each key inside a wider
/// row.
class IndexerKeys {
 public:
  explicit IndexerKeys(const Shape& shape, Values values = Values::plain) : shape_(shape) {
    RandomValues random(static_cast<std::uint32_t>(shape.positions * 1000 + shape.dim));
    queries_ = random.row(shape.heads * shape.dim, values);
    weights_ = random.row(shape.heads, values);
    const std::int64_t pages = shape.positions / kPage + 1;
    memory_ = to_type(random.row(pages * kPage * stride(), values), shape.type);
    for (std::int64_t page = pages; page-- > 0;)
      pages_.push_back(memory_.data() + page * kPage * stride_bytes());
  }

  /// Scores of [begin, end).
  std::vector<float> run(const Kernels& kernels, std::int64_t begin, std::int64_t end) const {
    std::vector<float> scores(static_cast<std::size_t>(end - begin) + 1, 7.0F);
    kernels.index_scores({.queries = queries_.data(),
                          .weights = weights_.data(),
                          .heads = shape_.heads,
                          .dim = shape_.dim,
                          .keys = {pages_.data(), offset(), stride_bytes()},
                          .page_shift = 4,
                          .key_type = shape_.type,
                          .scale = kScale,
                          .begin = begin,
                          .end = end,
                          .scores = scores.data()});
    EXPECT_EQ(scores.back(), 7.0F) << "wrote behind the last position";
    scores.pop_back();
    return scores;
  }

  std::vector<float> run(const Kernels& kernels) const { return run(kernels, 0, shape_.positions); }

  std::vector<double> exact() const {
    std::vector<double> scores;
    for (std::int64_t p = 0; p < shape_.positions; ++p) {
      const std::byte* row = pages_[static_cast<std::size_t>(p / kPage)] + offset();
      const std::vector<float> key =
          to_floats(row + p % kPage * stride_bytes(), shape_.type, shape_.dim);
      double score = 0;
      for (std::int64_t h = 0; h < shape_.heads; ++h) {
        double product = 0;
        for (std::int64_t i = 0; i < shape_.dim; ++i)
          product += static_cast<double>(queries_[static_cast<std::size_t>(h * shape_.dim + i)]) *
                     static_cast<double>(key[static_cast<std::size_t>(i)]);
        score += static_cast<double>(weights_[static_cast<std::size_t>(h)]) *
                 std::max(0.0, product * kScale);
      }
      scores.push_back(score);
    }
    return scores;
  }

 private:
  static constexpr std::int64_t kPage = 16;
  static constexpr float kScale = 0.25F;

  std::int64_t stride() const { return shape_.dim + 3; }

  std::ptrdiff_t stride_bytes() const {
    return stride() * static_cast<std::ptrdiff_t>(dtype_bytes(shape_.type));
  }

  std::ptrdiff_t offset() const {
    return 2 * static_cast<std::ptrdiff_t>(dtype_bytes(shape_.type));
  }

  Shape shape_;
  std::vector<float> queries_, weights_;
  std::vector<std::byte> memory_;
  std::vector<const std::byte*> pages_;
};

class IndexScoresOfIsa : public PerIsa {};

TEST_P(IndexScoresOfIsa, EqualsScalar) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16})
    for (const std::int64_t dim : {8, 24, 128})
      for (const std::int64_t heads : {1, 2, 3, 5, 64})
        for (const std::int64_t positions : {1, 15, 16, 47, 128, 129, 300})
          for (const Values values : {Values::plain, Values::special}) {
            const IndexerKeys keys({type, positions, heads, dim}, values);
            ASSERT_TRUE(same_floats(keys.run(fast()), keys.run(scalar())))
                << dtype_name(type) << " dim " << dim << ", " << heads << " heads, " << positions
                << " positions";
          }
}

TEST_P(IndexScoresOfIsa, PiecesGiveTheBytesOfTheWhole) {
  const IndexerKeys keys({DType::bf16, 300, 6, 40});
  const std::vector<float> whole = keys.run(fast());
  for (const std::int64_t piece : {1, 7, 16, 130}) {
    std::vector<float> pieces;
    for (std::int64_t p = 0; p < 300; p += piece) {
      const std::vector<float> next = keys.run(fast(), p, std::min<std::int64_t>(300, p + piece));
      pieces.insert(pieces.end(), next.begin(), next.end());
    }
    ASSERT_TRUE(same_floats(pieces, whole)) << "pieces of " << piece;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, IndexScoresOfIsa, ::testing::ValuesIn(kAllIsas), isa_test_name);

TEST(ScalarIndexScores, AgreeWithDoublePrecision) {
  const FlushDenormals flush;
  for (const std::int64_t heads : {1, 4, 7}) {
    const IndexerKeys keys({DType::f32, 150, heads, 48});
    const auto got = keys.run(kernels_for(Isa::scalar));
    const auto want = keys.exact();
    for (std::size_t p = 0; p < got.size(); ++p) ASSERT_NEAR(got[p], want[p], 2e-5) << p;
  }
}

}  // namespace

}  // namespace ferry::testing
