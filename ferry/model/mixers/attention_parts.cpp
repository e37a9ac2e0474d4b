#include "ferry/model/mixers/attention_parts.h"

#include <algorithm>

#include "ferry/compute/residual.h"

namespace ferry {

namespace {

// Multiply-adds worth handing to another thread: well above the cost of waking it.
constexpr std::int64_t kAttendGrainWork = 1 << 16;

}  // namespace

Buffer rows_buffer(std::int64_t rows, std::int64_t width, DType type) {
  return Buffer(static_cast<std::size_t>(rows * width) * dtype_bytes(type));
}

void by_tap(std::vector<float>& taps, int num_taps) {
  const std::vector<float> stored = taps;
  const auto each = static_cast<std::size_t>(num_taps);
  const std::size_t channels = stored.size() / each;
  for (std::size_t i = 0; i < stored.size(); ++i) taps[i % each * channels + i / each] = stored[i];
}

StepAngles::StepAngles(const RopeOptions& options, int max_tokens, ThreadPool& pool)
    : pool_(pool),
      rope_(options),
      cos_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)),
      sin_(rows_buffer(max_tokens, rope_.pairs(), DType::f32)) {}

void StepAngles::begin_step(std::span<const TokenPlace> tokens) {
  pool_.parallel_for(
      std::ssize(tokens), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          rope_.angles(tokens[static_cast<std::size_t>(t)].position,
                       cos_.as<float>() + t * rope_.pairs(),
                       sin_.as<float>() + t * rope_.pairs());
        }
      });
}

void StepAngles::turn(float* head, std::int64_t token) const {
  rope_.turn(kernels_of(pool_),
             head,
             cos_.as<float>() + token * rope_.pairs(),
             sin_.as<float>() + token * rope_.pairs());
}

QueryBlocks::QueryBlocks(int max_tokens, int max_heads) {
  tokens_.reserve(static_cast<std::size_t>(max_tokens));
  heads_.reserve(static_cast<std::size_t>(max_heads));
}

void QueryBlocks::build(std::span<const TokenPlace> tokens,
                        const HeadRange& own,
                        int readers,
                        int threads,
                        std::int64_t most_tokens) {
  tokens_.clear();
  heads_.clear();
  // Two blocks a thread, so that one slow thread does not hold up the rest.
  const std::int64_t queries = std::ssize(tokens) * own.size();
  const std::int64_t limit =
      threads == 1 ? kAttendQueries
                   : std::clamp<std::int64_t>(queries / (2 * threads), 1, kAttendQueries);
  const int most_heads = static_cast<int>(std::min<std::int64_t>(readers, limit));
  for (int head = own.begin; head < own.end;) {
    const int end = std::min({own.end, head / readers * readers + readers, head + most_heads});
    heads_.push_back({head, end});
    head = end;
  }
  most_tokens = std::min(most_tokens, limit / most_heads);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (t > 0 && tokens[t].state == tokens[t - 1].state && tokens_.back().count < most_tokens)
      ++tokens_.back().count;
    else
      tokens_.push_back({static_cast<std::int64_t>(t), 1});
  }
}

QueryBlock QueryBlocks::block(std::int64_t tokens, std::int64_t heads) const {
  const TokenBlock& some = tokens_[static_cast<std::size_t>(tokens)];
  const HeadRange& of = heads_[static_cast<std::size_t>(heads)];
  return {
      .first_token = some.first, .tokens = some.count, .first_head = of.begin, .heads = of.size()};
}

std::int64_t attend_grain(std::int64_t multiplies) {
  return std::max<std::int64_t>(1, kAttendGrainWork / (multiplies * kAttendQueries));
}

AttendScratch::AttendScratch(std::int64_t value_dim, std::int64_t max_positions)
    : value_dim_(value_dim),
      stride_(max_positions + kAttendPadding),
      memory_(rows_buffer(kAttendQueries, value_dim + stride_, DType::f32)) {}

AttendArgs AttendScratch::with_scores(AttendArgs args) const {
  args.scores = out(kAttendQueries);
  args.score_stride = stride_;
  return args;
}

OutputProjection::OutputProjection(int max_tokens,
                                   int hidden,
                                   DType type,
                                   TensorGroup& group,
                                   ThreadPool& pool,
                                   const GemmScratch& gemm_scratch)
    : hidden_(hidden),
      type_(type),
      group_(group),
      pool_(pool),
      gemm_scratch_(gemm_scratch),
      projected_(rows_buffer(max_tokens, hidden, DType::f32)) {}

void OutputProjection::add(int layer,
                           const HeadRows& heads,
                           std::int64_t tokens,
                           std::span<const PackedMatrix> weights,
                           const std::vector<float>& bias,
                           const MutableRowsView& residual) const {
  const auto first_byte = [&](int member) {
    const GroupMember who{member, group_.tp()};
    const int first =
        member == who.tp ? heads.heads : head_share(heads.heads, heads.kv_heads, who).query.begin;
    return row_bytes(first * heads.head_dim, type_);
  };
  group_.gather_bytes(heads.rows, tokens, first_byte, {.name = "heads", .layer = layer});
  const MutableRowsView projected{projected_.data(), row_bytes(hidden_, DType::f32)};
  group_.multiply(gemm_scratch_,
                  {.in = {heads.rows.base, heads.rows.stride},
                   .rows = tokens,
                   .bias = bias.empty() ? nullptr : bias.data(),
                   .out = projected,
                   .out_type = DType::f32},
                  weights);
  const RowsView results{projected.base, projected.stride};
  add_to_residual(pool_, results, group_.own_columns(hidden_), residual, type_, tokens);
  group_.gather_columns(
      residual, tokens, hidden_, type_, {.name = "attention's results", .layer = layer});
}

}  // namespace ferry
