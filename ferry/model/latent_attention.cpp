#include "ferry/model/latent_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

std::byte* bytes_of(float* x) { return reinterpret_cast<std::byte*>(x); }

const std::byte* bytes_of(const float* x) { return reinterpret_cast<const std::byte*>(x); }

/// DeepSeek magnifies queries and keys alike where yarn stretches the positions.
float score_scale(const ModelConfig& config) {
  const RopeOptions& rope = config.rope;
  const double mscale =
      rope.mscale_all_dim == 0 ? 1.0 : yarn_mscale(rope.factor, rope.mscale_all_dim);
  return static_cast<float>(mscale * mscale / std::sqrt(static_cast<double>(config.head_dim)));
}

}  // namespace

LatentAttention::LatentAttention(const ModelConfig& config,
                                 DType type,
                                 int max_tokens,
                                 TensorGroup& group,
                                 ThreadPool& pool,
                                 const GemmScratch& gemm_scratch)
    : config_(config),
      latent_(config.latent),
      type_(type),
      max_tokens_(max_tokens),
      heads_(config.heads),
      own_(latent_heads(config.heads, group.self())),
      rope_(config.rope.dim),
      rank_(latent_.rank),
      row_(rank_ + rope_),
      head_dim_(config.head_dim),
      from_down_(latent_.query_rank > 0 ? latent_.query_rank : heads_ * head_dim_),
      scale_(score_scale(config)),
      pool_(pool),
      gemm_scratch_(gemm_scratch),
      angles_(config.rope, max_tokens),
      blocks_(kTokensAtOnce, config.heads),
      output_(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      down_(rows_buffer(max_tokens, from_down_ + row_, DType::f32)),
      compressed_(rows_buffer(max_tokens, latent_.query_rank, type)),
      projected_(
          rows_buffer(max_tokens, latent_.query_rank > 0 ? heads_ * head_dim_ : 0, DType::f32)),
      heads_out_(rows_buffer(max_tokens, heads_ * latent_.value_dim, type)) {
  const std::int64_t at_once = std::min<std::int64_t>(max_tokens, kTokensAtOnce);
  plain_ = rows_buffer(at_once, heads_ * latent_.plain_dim, type);
  queries_ = rows_buffer(at_once, heads_ * row_, DType::f32);
  attended_ = rows_buffer(at_once, heads_ * rank_, type);
  for (int worker = 0; worker < pool.size(); ++worker)
    attend_scratch_.emplace_back(rank_, config.max_positions);
}

void LatentAttention::begin_step(std::span<const TokenPlace> tokens) {
  FERRY_CHECK(std::ssize(tokens) <= max_tokens_,
              "{} tokens in a step, room for {}",
              tokens.size(),
              max_tokens_);
  tokens_ = tokens;
  angles_.begin_step(tokens, pool_);
}

void LatentAttention::forward(int layer,
                              const DenseWeights::Layer& weights,
                              const RowsView& normed,
                              const MutableRowsView& residual) {
  if (tokens_.empty()) return;
  project_down(weights, normed);
  store_latents(layer, weights);
  project_queries(weights);
  for (std::int64_t first = 0; first < num_tokens(); first += kTokensAtOnce) {
    const std::int64_t count = std::min(kTokensAtOnce, num_tokens() - first);
    make_queries(weights, first, count);
    attend(layer, first, count);
    make_values(weights, first, count);
  }
  const auto heads = static_cast<int>(heads_);
  output_.add(layer,
              {.rows = {heads_out_.data(), row_bytes(heads_ * latent_.value_dim, type_)},
               .heads = heads,
               .kv_heads = heads,
               .head_dim = latent_.value_dim},
              num_tokens(),
              weights.output.view,
              weights.output_bias,
              residual);
}

/// All that is made of the hidden state at once: of queries this rank's, but compressed ones whole.
void LatentAttention::project_down(const DenseWeights::Layer& weights, const RowsView& normed) {
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = normed,
                 .rows = num_tokens(),
                 .weights = &weights.qkv.view,
                 .out = {down_.data(), row_bytes(from_down_ + row_, DType::f32)},
                 .out_type = DType::f32},
                latent_down_panels(config_, own_));
}

void LatentAttention::store_latents(int layer, const DenseWeights::Layer& weights) {
  const Kernels& k = kernels();
  pool_.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          const TokenPlace& place = tokens_[static_cast<std::size_t>(t)];
          float* latent = down_.as<float>() + t * (from_down_ + row_) + from_down_;
          k.rms_norm(bytes_of(latent),
                     DType::f32,
                     weights.key_norm.data(),
                     config_.rms_eps,
                     bytes_of(latent),
                     rank_);
          angles_.turn(latent + rank_, t);
          std::byte* cached = place.cache->latents(layer).row(place.position);
          k.convert(bytes_of(latent), DType::f32, cached, type_, row_);
        }
      });
}

/// From compressed queries to those of this rank's heads, where they are compressed.
void LatentAttention::project_queries(const DenseWeights::Layer& weights) {
  const std::int64_t width = latent_.query_rank;
  if (width == 0) return;
  const Kernels& k = kernels();
  pool_.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          float* query = down_.as<float>() + t * (from_down_ + row_);
          k.rms_norm(bytes_of(query),
                     DType::f32,
                     weights.query_norm.data(),
                     config_.rms_eps,
                     bytes_of(query),
                     width);
          k.convert(bytes_of(query),
                    DType::f32,
                    compressed_.data() + row_bytes(t * width, type_),
                    type_,
                    width);
        }
      });
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = {compressed_.data(), row_bytes(width, type_)},
                 .rows = num_tokens(),
                 .weights = &weights.query_up.view,
                 .out = {projected_.data(), row_bytes(heads_ * head_dim_, DType::f32)},
                 .out_type = DType::f32},
                latent_query_panels(config_, own_));
}

/// queries_ of some tokens: what does not turn through the head's key matrix, what turns behind it.
void LatentAttention::make_queries(const DenseWeights::Layer& weights,
                                   std::int64_t first,
                                   std::int64_t count) {
  const bool compressed = latent_.query_rank > 0;
  const std::int64_t plain = latent_.plain_dim;
  pool_.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* heads = compressed ? projected_.as<float>() + (first + t) * heads_ * head_dim_
                                      : down_.as<float>() + (first + t) * (from_down_ + row_);
      for (std::int64_t h = own_.begin; h < own_.end; ++h) {
        const std::int64_t head = t * heads_ + h;
        kernels().convert(bytes_of(heads + h * head_dim_),
                          DType::f32,
                          plain_.data() + row_bytes(head * plain, type_),
                          type_,
                          plain);
        float* turned = queries_.as<float>() + head * row_ + rank_;
        std::copy_n(heads + h * head_dim_ + plain, rope_, turned);
        angles_.turn(turned, first + t);
      }
    }
  });
  each_head(weights.head_keys.views,
            count,
            {plain_.data(), row_bytes(heads_ * plain, type_)},
            {queries_.data(), row_bytes(heads_ * row_, DType::f32)},
            row_bytes(row_, DType::f32),
            DType::f32);
}

void LatentAttention::attend(int layer, std::int64_t first, std::int64_t count) {
  std::int32_t last = 0;
  for (std::int64_t t = first; t < first + count; ++t)
    last = std::max(last, tokens_[static_cast<std::size_t>(t)].position);
  blocks_.build(tokens_.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
                own_,
                static_cast<int>(heads_),
                pool_.size());
  pool_.parallel_for(blocks_.size(),
                     attend_grain((last + 1) * row_),
                     [&](std::int64_t begin, std::int64_t end, int worker) {
                       for (std::int64_t i = begin; i < end; ++i)
                         attend(layer, first, blocks_.at(i), worker);
                     });
}

/// A block of the tokens from `first` on, with which queries_ and attended_ begin.
void LatentAttention::attend(int layer, std::int64_t first, const QueryBlock& block, int worker) {
  const auto place_of = [&](std::int64_t q) -> const TokenPlace& {
    return tokens_[static_cast<std::size_t>(first + block.token(q))];
  };
  const auto row_of = [&](std::int64_t q) { return block.token(q) * heads_ + block.head(q); };
  const AttendScratch& scratch = attend_scratch_[static_cast<std::size_t>(worker)];
  std::array<AttendQuery, kAttendQueries> queries;
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    queries[static_cast<std::size_t>(q)] = {.query = queries_.as<float>() + row_of(q) * row_,
                                            .end = std::int64_t{place_of(q).position} + 1,
                                            .out = scratch.out(q)};
  }
  const MutableRowsView latents = place_of(0).cache->latents(layer);
  kernels().attend(scratch.with_scores({.queries = queries.data(),
                                        .num_queries = block.queries(),
                                        .keys = {latents.base, latents.stride},
                                        .values = {latents.base, latents.stride},
                                        .kv_type = type_,
                                        .head_dim = row_,
                                        .value_dim = rank_,
                                        .scale = scale_}));
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    std::byte* out = attended_.data() + row_bytes(row_of(q) * rank_, type_);
    kernels().convert(bytes_of(scratch.out(q)), DType::f32, out, type_, rank_);
  }
}

void LatentAttention::make_values(const DenseWeights::Layer& weights,
                                  std::int64_t first,
                                  std::int64_t count) {
  const std::ptrdiff_t out_row = row_bytes(heads_ * latent_.value_dim, type_);
  each_head(weights.head_values.views,
            count,
            {attended_.data(), row_bytes(heads_ * rank_, type_)},
            {heads_out_.data() + first * out_row, out_row},
            row_bytes(latent_.value_dim, type_),
            type_);
}

void LatentAttention::each_head(std::span<const PackedMatrix> matrices,
                                std::int64_t rows,
                                const RowsView& in,
                                const MutableRowsView& out,
                                std::ptrdiff_t out_step,
                                DType out_type) {
  pool_.parallel_for(own_.size(), 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t h = own_.begin + begin; h < own_.begin + end; ++h) {
      const PackedMatrix& matrix = matrices[static_cast<std::size_t>(h)];
      kernels().gemm({.in = {in.base + h * row_bytes(matrix.k, type_), in.stride},
                      .rows = rows,
                      .weights = &matrix,
                      .last_panel = matrix.panels(),
                      .out = {out.base + h * out_step, out.stride},
                      .out_type = out_type,
                      .scratch = gemm_scratch_.of(worker)});
    }
  });
}

}  // namespace ferry
