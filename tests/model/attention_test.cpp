#include "ferry/model/mixers/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using Values = std::vector<double>;

/// Attention with random f32 weights, and the same in double precision.
struct Shape {
  std::string name;
  int hidden, heads, kv_heads, head_dim;
  bool bias, qk_norm;
};

ModelConfig config_of(const Shape& shape) {
  ModelConfig config;
  config.hidden = shape.hidden;
  config.layers = 2;
  config.heads = shape.heads;
  config.kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.max_positions = 40000;
  config.rope = {.theta = 1e6, .dim = shape.head_dim};
  config.layer_attention.resize(2);
  return config;
}

std::vector<float> random_floats(std::mt19937& gen, std::int64_t n, float mean, float spread) {
  std::normal_distribution<float> distribution(mean, spread);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& x : values) x = distribution(gen);
  return values;
}

OwnedMatrix pack(const std::vector<float>& source, std::int64_t n, std::int64_t k) {
  OwnedMatrix m;
  PackedMatrix strip{.type = WeightType::f32, .k = k, .n = n};
  m.memory = Buffer(static_cast<std::size_t>(strip.panels()) * strip.panel_bytes());
  strip.data = m.memory.data();
  m.strips = {strip};
  pack_matrix({.type = WeightType::f32,
               .source = reinterpret_cast<const std::byte*>(source.data()),
               .source_type = DType::f32,
               .k = k,
               .n = n,
               .out = m.memory.data()});
  return m;
}

class RandomAttention {
 public:
  explicit RandomAttention(const Shape& shape) : shape_(shape), config_(config_of(shape)) {
    std::mt19937 gen(7);
    const float spread = 1.0F / std::sqrt(static_cast<float>(shape.hidden));
    qkv_ = random_floats(gen, qkv_width() * shape.hidden, 0.0F, 3.0F * spread);
    output_ = random_floats(gen, shape.hidden * heads_width(), 0.0F, spread);
    layer_.qkv = pack(qkv_, qkv_width(), shape.hidden);
    layer_.output = pack(output_, shape.hidden, heads_width());
    if (shape.bias) {
      layer_.qkv_bias = random_floats(gen, qkv_width(), 0.0F, 0.5F);
      layer_.output_bias = random_floats(gen, shape.hidden, 0.0F, 0.5F);
    }
    if (shape.qk_norm) {
      layer_.query_norm = random_floats(gen, shape.head_dim, 1.0F, 0.2F);
      layer_.key_norm = random_floats(gen, shape.head_dim, 1.0F, 0.2F);
    }
  }

  const ModelConfig& config() const { return config_; }

  const AttentionWeights& layer() const { return layer_; }

  std::vector<float> random_rows(unsigned seed, std::int64_t n) const {
    std::mt19937 gen(seed);
    return random_floats(gen, n * shape_.hidden, 0.0F, 1.0F);
  }

  /// What tokens add to the residual stream, the first of them at position `first`; earlier
  /// positions hold zero keys and values.
  Values reference(const std::vector<float>& rows, int first) const {
    const int d = shape_.head_dim;
    const auto n = static_cast<std::int64_t>(rows.size()) / shape_.hidden;
    std::vector<Values> qkv;
    for (std::int64_t t = 0; t < n; ++t)
      qkv.push_back(project(rows.data() + t * shape_.hidden, first + static_cast<int>(t)));
    Values out;
    for (std::int64_t t = 0; t < n; ++t) {
      Values heads;
      for (int h = 0; h < shape_.heads; ++h) {
        const int kv = h / (shape_.heads / shape_.kv_heads);
        const double* q = qkv[static_cast<std::size_t>(t)].data() + h * d;
        Values weights;
        double sum = first;  // exp(0) for each empty position
        for (std::int64_t p = 0; p <= t; ++p) {
          const double* k = qkv[static_cast<std::size_t>(p)].data() + (shape_.heads + kv) * d;
          double score = 0.0;
          for (int i = 0; i < d; ++i) score += q[i] * k[i];
          weights.push_back(std::exp(score / std::sqrt(d)));
          sum += weights.back();
        }
        for (int i = 0; i < d; ++i) {
          double x = 0.0;
          for (std::size_t p = 0; p < weights.size(); ++p)
            x += weights[p] * qkv[p].data()[(shape_.heads + shape_.kv_heads + kv) * d + i];
          heads.push_back(x / sum);
        }
      }
      for (int o = 0; o < shape_.hidden; ++o) {
        double x = shape_.bias ? layer_.output_bias[static_cast<std::size_t>(o)] : 0.0;
        for (std::size_t i = 0; i < heads.size(); ++i)
          x += heads[i] * output_[static_cast<std::size_t>(o) * heads.size() + i];
        out.push_back(x);
      }
    }
    return out;
  }

 private:
  std::int64_t heads_width() const { return shape_.heads * shape_.head_dim; }

  std::int64_t qkv_width() const {
    return (shape_.heads + 2 * shape_.kv_heads) * std::int64_t{shape_.head_dim};
  }

  Values project(const float* row, int position) const {
    Values out(static_cast<std::size_t>(qkv_width()));
    for (std::size_t c = 0; c < out.size(); ++c) {
      out[c] = shape_.bias ? layer_.qkv_bias[c] : 0.0;
      for (std::size_t k = 0; k < static_cast<std::size_t>(shape_.hidden); ++k)
        out[c] +=
            static_cast<double>(row[k]) * qkv_[c * static_cast<std::size_t>(shape_.hidden) + k];
    }
    for (int head = 0; head < shape_.heads + shape_.kv_heads; ++head) {
      double* x = out.data() + head * shape_.head_dim;
      if (shape_.qk_norm) norm(x, head < shape_.heads ? layer_.query_norm : layer_.key_norm);
      turn(x, position);
    }
    return out;
  }

  void norm(double* x, const std::vector<float>& weight) const {
    double squares = 0.0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += x[i] * x[i];
    const double factor =
        1.0 / std::sqrt(squares / shape_.head_dim + static_cast<double>(config_.rms_eps));
    for (std::size_t i = 0; i < weight.size(); ++i) x[i] *= factor * weight[i];
  }

  void turn(double* x, int position) const {
    const std::vector<float> frequencies = rope_frequencies(config_.rope);
    const std::size_t half = frequencies.size();
    for (std::size_t i = 0; i < half; ++i) {
      // The angle alone is f32, as in transformers: at far positions its rounding shows.
      const float angle = static_cast<float>(position) * frequencies[i];
      const double c = std::cos(static_cast<double>(angle));
      const double s = std::sin(static_cast<double>(angle));
      const double x0 = x[i];
      const double x1 = x[i + half];
      x[i] = x0 * c - x1 * s;
      x[i + half] = x1 * c + x0 * s;
    }
  }

  Shape shape_;
  ModelConfig config_;
  std::vector<float> qkv_, output_;
  AttentionWeights layer_;
};

/// Tokens of several sequences through one Attention; what it adds to a residual of zeros.
struct Sequence {
  SequenceState* state;
  const std::vector<float>* rows;  // [tokens, hidden]
};

std::vector<float> run(const RandomAttention& model,
                       const std::vector<Sequence>& sequences,
                       int threads) {
  const ModelConfig& config = model.config();
  std::vector<float> rows;
  std::vector<TokenPlace> places;
  for (const Sequence& s : sequences) {
    rows.insert(rows.end(), s.rows->begin(), s.rows->end());
    const auto n = static_cast<int>(s.rows->size()) / config.hidden;
    for (int i = 0; i < n; ++i) places.push_back({s.state, s.state->length() + i});
    s.state->reserve(n);
  }
  ThreadPool pool(threads);
  const GemmScratch scratch(
      pool, DType::f32, std::max(config.hidden, config.heads * config.head_dim));
  TensorGroup group(pool);
  MixerContext context{.config = config,
                       .type = DType::f32,
                       .max_tokens = static_cast<int>(places.size()),
                       .group = group,
                       .pool = pool,
                       .gemm_scratch = scratch};
  Attention attention(context, 1, model.layer());
  std::vector<float> residual(rows.size());
  const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * config.hidden;
  attention.begin_step({.number = 0, .tokens = places});
  attention.forward({reinterpret_cast<const std::byte*>(rows.data()), stride},
                    {reinterpret_cast<std::byte*>(residual.data()), stride});
  for (const Sequence& s : sequences)
    s.state->commit(static_cast<int>(s.rows->size()) / config.hidden);
  return residual;
}

StateLayout layout_of(const RandomAttention& model) {
  return StateLayout(state_specs(model.config(), WireType::f32));
}

void expect_close(const std::vector<float>& found, const Values& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(found[i]) - expected[i]));
  EXPECT_LT(worst, tolerance);
}

class AttentionShapes : public testing::TestWithParam<Shape> {
 protected:
  const RandomAttention model_{GetParam()};
};

TEST_P(AttentionShapes, AgreeWithDoublePrecision) {
  const std::vector<float> rows = model_.random_rows(1, 37);
  PagePool pages(layout_of(model_));
  SequenceState state(pages, 37);
  expect_close(run(model_, {{&state, &rows}}, 1), model_.reference(rows, 0), 5e-5);
}

TEST_P(AttentionShapes, AgreeAtFarPositions) {
  const std::vector<float> rows = model_.random_rows(2, 5);
  PagePool pages(layout_of(model_));
  SequenceState state(pages, 40000);
  state.reserve(32766);  // of zeros: nobody has touched the memory yet
  state.commit(32766);
  expect_close(run(model_, {{&state, &rows}}, 2), model_.reference(rows, 32766), 2e-4);
}

TEST_P(AttentionShapes, GiveTheSameBytesHoweverTheTokensAreCut) {
  const int hidden = model_.config().hidden;
  const std::vector<float> rows = model_.random_rows(3, 29);
  const std::vector<float> others = model_.random_rows(4, 23);
  PagePool pages(layout_of(model_));
  SequenceState whole(pages, 29);
  const std::vector<float> expected = run(model_, {{&whole, &rows}}, 1);

  SequenceState cut(pages, 64);
  std::vector<float> found;
  int begin = 0;
  for (const int n : {1, 7, 2, 16, 3}) {  // beside another sequence, of another length
    const std::vector<float> part(rows.begin() + begin * hidden,
                                  rows.begin() + (begin + n) * hidden);
    SequenceState other(pages, 23);
    const std::vector<float> both = run(model_, {{&other, &others}, {&cut, &part}}, 2);
    found.insert(found.end(), both.begin() + std::ssize(others), both.end());
    begin += n;
  }
  ASSERT_EQ(found.size(), expected.size());
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Some,
                         AttentionShapes,
                         testing::Values(Shape{"plain", 32, 2, 2, 16, false, false},
                                         Shape{"bias", 20, 3, 1, 12, true, false},
                                         Shape{"norm", 44, 6, 2, 10, false, true},
                                         Shape{"both", 24, 5, 5, 2, true, true},
                                         Shape{"wide", 36, 4, 2, 66, true, true}),
                         [](const auto& param) { return param.param.name; });

TEST(Attention, WithoutTokensDoesNothing) {
  const RandomAttention model({"plain", 32, 2, 2, 16, false, false});
  EXPECT_TRUE(run(model, {}, 2).empty());
}

TEST(Attention, RefusesMoreTokensThanItHasRoomFor) {
  const RandomAttention model({"plain", 32, 2, 2, 16, false, false});
  ThreadPool pool(1);
  const GemmScratch scratch(pool, DType::f32, 32);
  TensorGroup group(pool);
  MixerContext context{.config = model.config(),
                       .type = DType::f32,
                       .max_tokens = 2,
                       .group = group,
                       .pool = pool,
                       .gemm_scratch = scratch};
  Attention attention(context, 0, model.layer());
  const std::vector<TokenPlace> places(3);
  EXPECT_THROW(attention.begin_step({.number = 0, .tokens = places}), BrokenContract);
}

}  // namespace
}  // namespace ferry
