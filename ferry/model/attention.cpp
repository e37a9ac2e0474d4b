#include "ferry/model/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

std::byte* bytes_of(float* x) { return reinterpret_cast<std::byte*>(x); }

const std::byte* bytes_of(const float* x) { return reinterpret_cast<const std::byte*>(x); }

const float* or_null(const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); }

}  // namespace

Attention::Attention(const ModelConfig& config,
                     DType type,
                     int max_tokens,
                     TensorGroup& group,
                     ThreadPool& pool,
                     const GemmScratch& gemm_scratch)
    : config_(config),
      type_(type),
      max_tokens_(max_tokens),
      heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      heads_width_(heads_ * head_dim_),
      kv_width_(kv_heads_ * head_dim_),
      qkv_width_(heads_width_ + 2 * kv_width_),
      group_(group),
      own_(head_share(heads_, kv_heads_, group.self())),
      pool_(pool),
      gemm_scratch_(gemm_scratch),
      ones_(static_cast<std::size_t>(config.head_dim), 1.0F),
      angles_(config.rope, max_tokens),
      blocks_(max_tokens, heads_),
      output_(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      qkv_(rows_buffer(max_tokens, qkv_width_, DType::f32)),
      heads_out_(rows_buffer(max_tokens, heads_width_, type)) {
  for (int worker = 0; worker < pool.size(); ++worker)
    attend_scratch_.emplace_back(head_dim_, config.max_positions);
}

void Attention::begin_step(std::span<const TokenPlace> tokens) {
  FERRY_CHECK(std::ssize(tokens) <= max_tokens_,
              "{} tokens in a step, room for {}",
              tokens.size(),
              max_tokens_);
  tokens_ = tokens;
  angles_.begin_step(tokens, pool_);
  blocks_.build(tokens, own_.query, heads_ / kv_heads_, pool_.size());
}

void Attention::forward(int layer,
                        const DenseWeights::Layer& weights,
                        const RowsView& normed,
                        const MutableRowsView& residual) {
  if (tokens_.empty()) return;
  project_qkv(layer, weights, normed);
  pool_.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) rotate_and_store(layer, weights, t);
      });
  const AttentionSpan& span = config_.layer_attention[static_cast<std::size_t>(layer)].span;
  pool_.parallel_for(blocks_.size(),
                     attend_grain(most_positions(span) * head_dim_),
                     [&](std::int64_t begin, std::int64_t end, int worker) {
                       for (std::int64_t i = begin; i < end; ++i)
                         attend(layer, weights.sinks, blocks_.at(i), worker);
                     });
  output_.add(layer,
              {.rows = {heads_out_.data(), row_bytes(heads_width_, type_)},
               .heads = heads_,
               .kv_heads = kv_heads_,
               .head_dim = head_dim_},
              num_tokens(),
              weights.output.view,
              weights.output_bias,
              residual);
}

/// Of any token of the step.
std::int32_t Attention::most_positions(const AttentionSpan& span) const {
  std::int32_t most = 1;
  for (const TokenPlace& place : tokens_)
    most = std::max(most, place.position + 1 - span.first(place.position));
  return most;
}

void Attention::project_qkv(int layer, const DenseWeights::Layer& weights, const RowsView& normed) {
  const MutableRowsView qkv{qkv_.data(), row_bytes(qkv_width_, DType::f32)};
  const GemmArgs product{.in = normed,
                         .rows = num_tokens(),
                         .weights = &weights.qkv.view,
                         .bias = or_null(weights.qkv_bias),
                         .out = qkv,
                         .out_type = DType::f32};
  if (config_.qk_norm != QkNorm::whole) {
    const auto panels = head_panels(own_, heads_, kv_heads_, head_dim_);
    return parallel_gemm(pool_, gemm_scratch_, product, panels);
  }
  group_.multiply(gemm_scratch_, product);  // the norm of each head needs all heads
  group_.gather_columns(
      qkv, num_tokens(), qkv_width_, DType::f32, {.name = "queries and keys", .layer = layer});
}

/// Normalises each piece of x that is as long as the weights; without weights nothing.
void Attention::norm(float* x, std::int64_t width, const std::vector<float>& weight) const {
  if (weight.empty()) return;
  const auto piece = static_cast<std::int64_t>(weight.size());
  for (std::int64_t i = 0; i < width; i += piece) {
    std::byte* row = bytes_of(x + i);
    kernels().rms_norm(row, DType::f32, weight.data(), config_.rms_eps, row, piece);
  }
}

/// Of one token: this rank's heads, or where all heads are normalised together, all of them.
void Attention::norm_heads(const DenseWeights::Layer& weights, float* query, float* key) const {
  if (config_.qk_norm == QkNorm::whole) {
    norm(query, heads_width_, weights.query_norm);
    norm(key, kv_width_, weights.key_norm);
    return;
  }
  norm(query + own_.query.begin * head_dim_, own_.query.size() * head_dim_, weights.query_norm);
  norm(key + own_.kv.begin * head_dim_, own_.kv.size() * head_dim_, weights.key_norm);
}

/// Of one token, this rank's heads.
void Attention::turn_heads(float* query, float* key, std::int64_t token) const {
  for (int head = own_.query.begin; head < own_.query.end; ++head)
    angles_.turn(query + head * head_dim_, token);
  for (int head = own_.kv.begin; head < own_.kv.end; ++head)
    angles_.turn(key + head * head_dim_, token);
  if (config_.qk_norm != QkNorm::turned) return;
  norm(query + own_.query.begin * head_dim_, own_.query.size() * head_dim_, ones_);
  norm(key + own_.kv.begin * head_dim_, own_.kv.size() * head_dim_, ones_);
}

void Attention::rotate_and_store(int layer,
                                 const DenseWeights::Layer& weights,
                                 std::int64_t token) {
  const TokenPlace& place = tokens_[static_cast<std::size_t>(token)];
  float* query = qkv_row(token);
  float* key = query + heads_width_;
  const float* value = key + kv_width_;
  norm_heads(weights, query, key);
  const LayerAttention& how = config_.layer_attention[static_cast<std::size_t>(layer)];
  if (how.rope) turn_heads(query, key, token);
  if (how.growth.step > 0) {
    float* own = query + own_.query.begin * head_dim_;
    kernels().scale(own, how.growth.factor(place.position), own, own_.query.size() * head_dim_);
  }
  const auto store = [&](const float* head, const MutableRowsView& rows) {
    kernels().convert(bytes_of(head), DType::f32, rows.row(place.position), type_, head_dim_);
  };
  for (int head = own_.kv.begin; head < own_.kv.end; ++head) {
    store(key + head * head_dim_, place.cache->keys(layer, head));
    store(value + head * head_dim_, place.cache->values(layer, head));
  }
}

void Attention::attend(int layer,
                       const std::vector<float>& sinks,
                       const QueryBlock& block,
                       int worker) {
  const AttentionSpan& span = config_.layer_attention[static_cast<std::size_t>(layer)].span;
  const AttendScratch& scratch = attend_scratch_[static_cast<std::size_t>(worker)];
  std::array<AttendQuery, kAttendQueries> queries;
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    const int head = block.head(q);
    const std::int32_t position = tokens_[static_cast<std::size_t>(block.token(q))].position;
    queries[static_cast<std::size_t>(q)] = {
        .query = qkv_row(block.token(q)) + head * head_dim_,
        .begin = span.first(position),
        .end = std::int64_t{position} + 1,
        .sink = sinks.empty() ? kNoSink : sinks[static_cast<std::size_t>(head)],
        .out = scratch.out(q)};
  }
  const KvCache& cache = *tokens_[static_cast<std::size_t>(block.first_token)].cache;
  const int kv_head = block.first_head / (heads_ / kv_heads_);
  const MutableRowsView keys = cache.keys(layer, kv_head);
  const MutableRowsView values = cache.values(layer, kv_head);
  kernels().attend(scratch.with_scores(
      {.queries = queries.data(),
       .num_queries = block.queries(),
       .keys = {keys.base, keys.stride},
       .values = {values.base, values.stride},
       .kv_type = type_,
       .head_dim = head_dim_,
       .value_dim = head_dim_,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_)))}));
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    const std::int64_t column = block.head(q) * head_dim_;
    std::byte* out = heads_out_.data() + row_bytes(block.token(q) * heads_width_ + column, type_);
    kernels().convert(bytes_of(scratch.out(q)), DType::f32, out, type_, head_dim_);
  }
}

}  // namespace ferry
