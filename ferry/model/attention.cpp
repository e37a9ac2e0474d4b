#include "ferry/model/attention.h"

#include <algorithm>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 4;  // tokens a thread takes at a time for work along rows
// Multiply-adds worth handing to another thread: well above the cost of waking it.
constexpr std::int64_t kAttendGrainWork = 1 << 16;

Buffer rows_buffer(std::int64_t rows, std::int64_t width, DType type) {
  return Buffer(static_cast<std::size_t>(rows * width) * dtype_bytes(type));
}

std::ptrdiff_t row_bytes(std::int64_t width, DType type) {
  return width * static_cast<std::ptrdiff_t>(dtype_bytes(type));
}

std::byte* bytes_of(float* x) { return reinterpret_cast<std::byte*>(x); }

const float* or_null(const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); }

}  // namespace

Attention::Attention(const ModelConfig& config,
                     DType type,
                     int max_tokens,
                     ThreadPool& pool,
                     const GemmScratch& gemm_scratch)
    : config_(config),
      type_(type),
      max_tokens_(max_tokens),
      qkv_width_(std::int64_t{config.heads + 2 * config.kv_heads} * config.head_dim),
      heads_width_(std::int64_t{config.heads} * config.head_dim),
      pool_(pool),
      gemm_scratch_(gemm_scratch),
      rope_(config.rope),
      cos_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)),
      sin_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)),
      qkv_(rows_buffer(max_tokens, qkv_width_, DType::f32)),
      heads_out_(rows_buffer(max_tokens, heads_width_, type)),
      projected_(rows_buffer(max_tokens, config.hidden, DType::f32)) {
  for (int worker = 0; worker < pool.size(); ++worker)
    attend_scratch_.push_back(rows_buffer(1, config.head_dim + config.max_positions, DType::f32));
}

void Attention::begin_step(std::span<const TokenPlace> tokens) {
  FERRY_CHECK(std::ssize(tokens) <= max_tokens_,
              "{} tokens in a step, room for {}",
              tokens.size(),
              max_tokens_);
  tokens_ = tokens;
  pool_.parallel_for(num_tokens(), kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      rope_.angles(tokens_[static_cast<std::size_t>(t)].position,
                   cos_.as<float>() + t * rope_.pairs(),
                   sin_.as<float>() + t * rope_.pairs());
    }
  });
}

void Attention::forward(int layer,
                        const DenseWeights::Layer& weights,
                        const RowsView& normed,
                        const MutableRowsView& residual) {
  if (tokens_.empty()) return;
  project_qkv(weights, normed);
  pool_.parallel_for(num_tokens(), kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) rotate_and_store(layer, weights, t);
  });
  // Head by head of a token: heads that share keys stand side by side and find them in cache.
  std::int32_t last = 0;
  for (const TokenPlace& place : tokens_) last = std::max(last, place.position);
  const std::int64_t grain =
      std::max<std::int64_t>(1, kAttendGrainWork / (std::int64_t{last + 1} * config_.head_dim));
  pool_.parallel_for(
      num_tokens() * config_.heads, grain, [&](std::int64_t begin, std::int64_t end, int worker) {
        for (std::int64_t i = begin; i < end; ++i)
          attend(layer, i / config_.heads, static_cast<int>(i % config_.heads), worker);
      });
  project_output(weights, residual);
}

void Attention::project_qkv(const DenseWeights::Layer& weights, const RowsView& normed) {
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = normed,
                 .rows = num_tokens(),
                 .weights = &weights.qkv.view,
                 .bias = or_null(weights.qkv_bias),
                 .out = {qkv_.data(), row_bytes(qkv_width_, DType::f32)},
                 .out_type = DType::f32});
}

void Attention::rotate_and_store(int layer,
                                 const DenseWeights::Layer& weights,
                                 std::int64_t token) {
  const Kernels& k = kernels();
  const std::int64_t head_dim = config_.head_dim;
  const float* cos = cos_.as<float>() + token * rope_.pairs();
  const float* sin = sin_.as<float>() + token * rope_.pairs();
  const TokenPlace& place = tokens_[static_cast<std::size_t>(token)];
  float* query = qkv_row(token);
  float* key = query + heads_width_;
  float* value = key + config_.kv_heads * head_dim;

  const auto turn = [&](float* x, const std::vector<float>& norm) {
    if (!norm.empty())
      k.rms_norm(bytes_of(x), DType::f32, norm.data(), config_.rms_eps, bytes_of(x), head_dim);
    rope_.turn(x, cos, sin);
  };
  for (int head = 0; head < config_.heads; ++head)
    turn(query + head * head_dim, weights.query_norm);
  for (int head = 0; head < config_.kv_heads; ++head) {
    turn(key + head * head_dim, weights.key_norm);
    k.convert(bytes_of(key + head * head_dim),
              DType::f32,
              place.cache->keys(layer, head).row(place.position),
              type_,
              head_dim);
    k.convert(bytes_of(value + head * head_dim),
              DType::f32,
              place.cache->values(layer, head).row(place.position),
              type_,
              head_dim);
  }
}

void Attention::attend(int layer, std::int64_t token, int head, int worker) {
  const TokenPlace& place = tokens_[static_cast<std::size_t>(token)];
  const int kv_head = head / (config_.heads / config_.kv_heads);
  const std::int64_t head_dim = config_.head_dim;
  const MutableRowsView keys = place.cache->keys(layer, kv_head);
  const MutableRowsView values = place.cache->values(layer, kv_head);
  float* out = attend_scratch_[static_cast<std::size_t>(worker)].as<float>();
  kernels().attend({.query = qkv_row(token) + head * head_dim,
                    .keys = {keys.base, keys.stride},
                    .values = {values.base, values.stride},
                    .kv_type = type_,
                    .length = std::int64_t{place.position} + 1,
                    .head_dim = head_dim,
                    .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))),
                    .scores = out + head_dim,
                    .out = out});
  kernels().convert(bytes_of(out),
                    DType::f32,
                    heads_out_.data() + row_bytes(token * heads_width_ + head * head_dim, type_),
                    type_,
                    head_dim);
}

void Attention::project_output(const DenseWeights::Layer& weights,
                               const MutableRowsView& residual) {
  const MutableRowsView projected{projected_.data(), row_bytes(config_.hidden, DType::f32)};
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = {heads_out_.data(), row_bytes(heads_width_, type_)},
                 .rows = num_tokens(),
                 .weights = &weights.output.view,
                 .bias = or_null(weights.output_bias),
                 .out = projected,
                 .out_type = DType::f32});
  pool_.parallel_for(num_tokens(), kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      kernels().add(
          residual.row(t), type_, reinterpret_cast<const float*>(projected.row(t)), config_.hidden);
  });
}

}  // namespace ferry
