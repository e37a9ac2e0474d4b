#include "ferry/model/mixers/indexer.h"

#include <algorithm>
#include <cmath>

#include "ferry/kernels/kernels.h"
#include "ferry/model/mixers/greatest_scores.h"

namespace ferry {

namespace {

constexpr double kNormEps = 1e-6;  // whatever the model's other norms have

// Positions of a token that one thread scores at a time.
constexpr std::int64_t kScoredAtOnce = 512;

RopeOptions turn_of_keys(const ModelConfig& config) {
  RopeOptions rope = config.rope;
  rope.interleaved = config.latent.indexer.interleaved;
  return rope;
}

/// In place. Sums in doubles, in the order of the elements.
void layer_norm(float* x, const std::vector<float>& weight, const std::vector<float>& shift) {
  const auto n = static_cast<double>(weight.size());
  double sum = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) sum += static_cast<double>(x[i]);
  const double mean = sum / n;
  double squares = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    const double off = static_cast<double>(x[i]) - mean;
    squares += off * off;
  }
  const double deviation = std::sqrt(squares / n + kNormEps);
  for (std::size_t i = 0; i < weight.size(); ++i) {
    const auto normed = static_cast<float>((static_cast<double>(x[i]) - mean) / deviation);
    x[i] = normed * weight[i] + shift[i];
  }
}

}  // namespace

DType index_key_type(WireType kv_type) { return element_type(kv_type).value_or(DType::bf16); }

void read_indexer(const ModelConfig& config,
                  const TensorNames& names,
                  TensorTable& table,
                  IndexerWeights& to) {
  // Small beside the rest, and what they are off by moves choices: nothing quantises them.
  const MatrixPacking how{.role = TensorRole::indexer, .elements = true};
  const IndexerConfig& indexer = config.latent.indexer;
  const std::int64_t queries = std::int64_t{indexer.heads} * indexer.dim;
  table.matrix(to.queries, {{names.index_query, queries}}, config.latent.query_rank, how);
  table.matrix(to.key_weights,
               {{names.index_key, indexer.dim}, {names.index_weights, indexer.heads}},
               config.hidden,
               how);
  table.vector(to.norm, {{names.index_norm, indexer.dim}}, TensorRole::norm);
  table.vector(to.shift, {{names.index_norm_bias, indexer.dim}}, TensorRole::bias);
}

Indexer::Indexer(const MixerContext& context)
    : indexer_(context.config.latent.indexer),
      key_type_(index_key_type(context.kv_type)),
      max_tokens_(context.max_tokens),
      max_positions_(context.config.max_positions),
      at_once_(std::min<std::int64_t>(max_tokens_, kTokensAtOnce)),
      pool_(context.pool),
      gemm_scratch_(context.gemm_scratch),
      angles_(turn_of_keys(context.config), max_tokens_, pool_),
      key_weights_(rows_buffer(max_tokens_, indexer_.dim + indexer_.heads, DType::f32)),
      queries_(rows_buffer(at_once_, std::int64_t{indexer_.heads} * indexer_.dim, DType::f32)),
      scores_(
          rows_buffer(at_once_, indexer_.topk < max_positions_ ? max_positions_ : 0, DType::f32)) {
  // No token of a model with fewer positions ever chooses.
  if (indexer_.topk >= max_positions_) return;
  chosen_.resize(static_cast<std::size_t>(max_tokens_) * static_cast<std::size_t>(indexer_.topk));
  scratch_.resize(static_cast<std::size_t>(pool_.size()));
  for (auto& ranks : scratch_) ranks.resize(static_cast<std::size_t>(max_positions_));
}

void Indexer::begin_step(const MixerStep& step) {
  if (step.number == step_) return;
  check_room(step, max_tokens_);
  tokens_ = step.tokens;
  angles_.begin_step(tokens_);
  step_ = step.number;
}

std::span<const std::int32_t> Indexer::chosen(std::int64_t token) const {
  if (sees_all(token)) return {};
  const auto topk = static_cast<std::size_t>(indexer_.topk);
  return {chosen_.data() + static_cast<std::size_t>(token) * topk, topk};
}

void Indexer::run(int layer, const IndexerWeights& weights, const Inputs& in) {
  keep_keys(layer, weights, in);
  for (std::int64_t first = 0; first < std::ssize(tokens_); first += at_once_) {
    const std::int64_t count = std::min(at_once_, std::ssize(tokens_) - first);
    bool all = true;
    for (std::int64_t t = first; t < first + count; ++t) all = all && sees_all(t);
    if (all) continue;
    make_queries(weights, in, first, count);
    score(layer, in, first, count);
    choose(first, count);
  }
}

void Indexer::keep_keys(int layer, const IndexerWeights& weights, const Inputs& in) {
  const std::int64_t width = indexer_.dim + indexer_.heads;
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = in.normed,
                 .rows = std::ssize(tokens_),
                 .out = {key_weights_.data(), row_bytes(width, DType::f32)},
                 .out_type = DType::f32},
                weights.key_weights.strips);
  const Kernels& kernels = kernels_of(pool_);
  const auto share = static_cast<float>(1.0 / std::sqrt(static_cast<double>(indexer_.heads)));
  pool_.parallel_for(
      std::ssize(tokens_), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          float* key = key_weights_.as<float>() + t * width;
          layer_norm(key, weights.norm, weights.shift);
          angles_.turn(key, t);
          const TokenPlace& place = tokens_[static_cast<std::size_t>(t)];
          std::byte* kept = place.state->rows(layer, 0).row(place.position) + in.kept_at;
          kernels.convert(bytes_of(key), DType::f32, kept, key_type_, indexer_.dim);
          float* head_weights = key + indexer_.dim;
          kernels.scale(head_weights, share, head_weights, indexer_.heads);
        }
      });
}

/// Those of some tokens, with which queries_ begins.
void Indexer::make_queries(const IndexerWeights& weights,
                           const Inputs& in,
                           std::int64_t first,
                           std::int64_t count) {
  const std::int64_t width = std::int64_t{indexer_.heads} * indexer_.dim;
  parallel_gemm(pool_,
                gemm_scratch_,
                {.in = {in.compressed.base + first * in.compressed.stride, in.compressed.stride},
                 .rows = count,
                 .out = {queries_.data(), row_bytes(width, DType::f32)},
                 .out_type = DType::f32},
                weights.queries.strips);
  pool_.parallel_for(count, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t h = 0; h < indexer_.heads; ++h)
        angles_.turn(queries_.as<float>() + t * width + h * indexer_.dim, first + t);
  });
}

void Indexer::score(int layer, const Inputs& in, std::int64_t first, std::int64_t count) {
  const std::int64_t width = indexer_.dim + indexer_.heads;
  std::int64_t most = 0;
  for (std::int64_t t = first; t < first + count; ++t)
    most = std::max<std::int64_t>(most, tokens_[static_cast<std::size_t>(t)].position + 1);
  const std::int64_t pieces = ceil_div(most, kScoredAtOnce);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(indexer_.dim)));
  const auto score_piece = [&](std::int64_t t, std::int64_t begin) {
    const TokenPlace& place = tokens_[static_cast<std::size_t>(first + t)];
    const std::int64_t end =
        std::min<std::int64_t>(begin + kScoredAtOnce, std::int64_t{place.position} + 1);
    if (begin >= end || sees_all(first + t)) return;
    PagedRows keys = paged(place.state->rows(layer, 0));
    keys.offset += in.kept_at;
    kernels_of(pool_).index_scores(
        {.queries = queries_.as<float>() + t * indexer_.heads * indexer_.dim,
         .weights = key_weights_.as<float>() + (first + t) * width + indexer_.dim,
         .heads = indexer_.heads,
         .dim = indexer_.dim,
         .keys = keys,
         .page_shift = kPageShift,
         .key_type = key_type_,
         .scale = scale,
         .begin = begin,
         .end = end,
         .scores = scores_.as<float>() + t * max_positions_ + begin});
  };
  pool_.parallel_for(count * pieces, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) score_piece(i / pieces, i % pieces * kScoredAtOnce);
  });
}

void Indexer::choose(std::int64_t first, std::int64_t count) {
  const auto topk = static_cast<std::size_t>(indexer_.topk);
  pool_.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (sees_all(first + t)) continue;
      const auto n =
          static_cast<std::size_t>(tokens_[static_cast<std::size_t>(first + t)].position) + 1;
      const auto of_token = static_cast<std::size_t>(first + t) * topk;
      greatest_scores({scores_.as<float>() + t * max_positions_, n},
                      std::span(scratch_[static_cast<std::size_t>(worker)]).first(n),
                      std::span(chosen_).subspan(of_token, topk));
    }
  });
}

}  // namespace ferry
