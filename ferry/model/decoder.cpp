#include "ferry/model/decoder.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <variant>
#include <vector>

#include "ferry/compute/gated_ffn.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/residual.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/attention.h"
#include "ferry/model/latent_attention.h"
#include "ferry/model/sparse_layers.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time for work along rows

/// Rows of one buffer, reserved once.
class RowBuffer {
 public:
  RowBuffer(std::int64_t rows, std::int64_t width, DType type)
      : stride_(width * static_cast<std::ptrdiff_t>(dtype_bytes(type))),
        memory_(static_cast<std::size_t>(rows * stride_)) {}

  RowsView rows() const { return {memory_.data(), stride_}; }

  MutableRowsView mutable_rows() const { return {memory_.data(), stride_}; }

  float* floats() const { return memory_.as<float>(); }

 private:
  std::ptrdiff_t stride_;
  Buffer memory_;
};

std::int64_t widest_input(const ModelConfig& config) {
  const std::int64_t value_dim = config.latent.rank > 0 ? config.latent.value_dim : config.head_dim;
  return std::max<std::int64_t>({config.hidden,
                                 config.heads * value_dim,
                                 config.latent.query_rank,
                                 config.latent.rank,
                                 config.latent.plain_dim});
}

using AnyAttention = std::variant<Attention, LatentAttention>;

AnyAttention make_attention(const ModelConfig& config,
                            DType type,
                            int max_tokens,
                            TensorGroup& group,
                            ThreadPool& pool,
                            const GemmScratch& gemm_scratch) {
  if (config.latent.rank > 0) {
    return AnyAttention(
        std::in_place_type<LatentAttention>, config, type, max_tokens, group, pool, gemm_scratch);
  }
  return AnyAttention(
      std::in_place_type<Attention>, config, type, max_tokens, group, pool, gemm_scratch);
}

/// The widest rows that are gathered are f32 logits or those of attention's projections; a member's
/// columns are at most all of one. (Memory that no slice fills costs nothing.)
GroupGather::Options group_options(const ModelConfig& config, const DecoderOptions& options) {
  const std::int64_t heads = std::int64_t{config.heads} + 2 * config.kv_heads;
  const std::int64_t widest = std::max({heads * config.head_dim,
                                        std::int64_t{config.heads} * config.latent.value_dim,
                                        std::int64_t{config.hidden},
                                        std::int64_t{config.vocab},
                                        std::int64_t{config.dense_inter},
                                        std::int64_t{config.moe.shared_inter}});
  return {.members = options.tp,
          .max_row_bytes = static_cast<std::size_t>(widest) * dtype_bytes(DType::f32),
          .timeout = options.timeout};
}

}  // namespace

class Decoder::Impl {
 public:
  Impl(const ModelConfig& config,
       std::shared_ptr<const DenseWeights> dense,
       ExpertWeights experts,
       const DecoderOptions& options,
       Transport& transport,
       ThreadPool& pool);

  std::span<const float> forward(std::span<const SequenceStep> batch);

  SparseLayers& sparse_layers() { return sparse_layers_; }

  const ModelConfig& config() const { return config_; }

  int tp() const { return options_.tp; }

  ReplicaRule replica_rule() const { return options_.replica_rule; }

  DType activation_type() const { return type_; }

 private:
  void plan(std::span<const SequenceStep> batch);
  void embed(std::span<const SequenceStep> batch);
  void feed_forward(int layer, const std::vector<float>& norm_weight);
  void dense_ffn(int layer);
  void add_block_out(const ColumnRange& columns);
  std::span<const float> logits();

  /// normed_ = norm of the rows of the residual stream; row i is row `source[i]`, or i without one.
  void norm(std::span<const std::int64_t> source,
            const std::vector<float>& weight,
            std::int64_t n) {
    norm_to(normed_.mutable_rows(), source, weight, n);
  }

  void norm_to(const MutableRowsView& out,
               std::span<const std::int64_t> source,
               const std::vector<float>& weight,
               std::int64_t n);

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(places_.size()); }

  const ModelConfig config_;
  const DecoderOptions options_;
  const std::shared_ptr<const DenseWeights> dense_;
  const DType type_;
  ThreadPool& pool_;
  TensorGroup group_;

  // The tokens of the step.
  std::vector<TokenPlace> places_;
  std::vector<std::int64_t> wanted_;  // rows whose logits are wanted

  // Scratch for max_tokens tokens.
  GemmScratch gemm_scratch_;
  RowBuffer residual_;   // [tokens, H]
  RowBuffer normed_;     // [tokens, H]
  RowBuffer block_out_;  // f32 [tokens, H]
  RowBuffer logits_;     // f32 [wanted, vocab]
  AnyAttention attention_;
  GatedFfn dense_ffn_;  // of dense layers

  SparseLayers sparse_layers_;
};

Decoder::Impl::Impl(const ModelConfig& config,
                    std::shared_ptr<const DenseWeights> dense,
                    ExpertWeights experts,
                    const DecoderOptions& options,
                    Transport& transport,
                    ThreadPool& pool)
    : config_(config),
      options_(options),
      dense_(std::move(dense)),
      type_(dense_->dtype),
      pool_(pool),
      group_(group_options(config, options), transport, pool),
      gemm_scratch_(pool.size(), type_, widest_input(config)),
      residual_(options.max_tokens, config.hidden, type_),
      normed_(options.max_tokens, config.hidden, type_),
      block_out_(options.max_tokens, config.hidden, DType::f32),
      logits_(options.max_tokens, config.vocab, DType::f32),
      attention_(make_attention(config_, type_, options.max_tokens, group_, pool, gemm_scratch_)),
      dense_ffn_({.hidden = config.hidden,
                  .inter = config.dense_inter,
                  .gating = config.moe.gating,
                  .dtype = type_,
                  .max_rows = options.max_tokens},
                 group_,
                 pool),
      sparse_layers_(config_, *dense_, std::move(experts), options_, transport, group_) {
  const auto max_tokens = static_cast<std::size_t>(options.max_tokens);
  places_.reserve(max_tokens);
  wanted_.reserve(max_tokens);
  const GroupMember& member = dense_->member;
  FERRY_CHECK(member.members == 1 ||
                  (member.member == group_.member() && member.members == group_.members()),
              "weights of member {} of {} for member {} of {}",
              member.member,
              member.members,
              group_.member(),
              group_.members());
}

std::span<const float> Decoder::Impl::forward(std::span<const SequenceStep> batch) {
  plan(batch);
  embed(batch);
  std::visit([&](auto& attention) { attention.begin_step(places_); }, attention_);
  for (int layer = 0; layer < config_.layers; ++layer) {
    const DenseWeights::Layer& weights = dense_->layers[static_cast<std::size_t>(layer)];
    norm({}, weights.attention_norm, num_tokens());
    std::visit(
        [&](auto& attention) {
          attention.forward(layer, weights, normed_.rows(), residual_.mutable_rows());
        },
        attention_);
    feed_forward(layer, weights.ffn_norm);
  }
  sparse_layers_.check_nothing_lost();
  for (const SequenceStep& step : batch) step.cache->advance(static_cast<int>(step.tokens.size()));
  return logits();
}

void Decoder::Impl::plan(std::span<const SequenceStep> batch) {
  places_.clear();
  wanted_.clear();
  for (const SequenceStep& step : batch) {
    const auto n = static_cast<std::int64_t>(step.tokens.size());
    const int begin = step.cache->length();
    const int room = std::min(step.cache->capacity(), config_.max_positions) - begin;
    FERRY_CHECK(step.cache->type() == type_,
                "a cache of {}, activations are {}",
                dtype_name(step.cache->type()),
                dtype_name(type_));
    FERRY_CHECK(n <= room, "{} tokens for a sequence with room for {}", n, room);
    FERRY_CHECK(n <= options_.max_tokens - num_tokens(),
                "more than {} tokens in one step",
                options_.max_tokens);
    for (std::int64_t i = 0; i < n; ++i) {
      const bool wanted = step.logits == SequenceStep::Logits::all ||
                          (step.logits == SequenceStep::Logits::last && i == n - 1);
      if (wanted) wanted_.push_back(num_tokens());
      places_.push_back({step.cache, begin + static_cast<std::int32_t>(i)});
    }
  }
}

void Decoder::Impl::embed(std::span<const SequenceStep> batch) {
  const MutableRowsView residual = residual_.mutable_rows();
  std::int64_t row = 0;
  for (const SequenceStep& step : batch) {
    for (const std::int32_t token : step.tokens) {
      FERRY_CHECK(token >= 0 && token < config_.vocab,
                  "token {} of a vocabulary of {}",
                  token,
                  config_.vocab);
      std::memcpy(residual.row(row++),
                  dense_->embedding.data() + token * residual.stride,
                  static_cast<std::size_t>(residual.stride));
    }
  }
}

void Decoder::Impl::norm_to(const MutableRowsView& out,
                            std::span<const std::int64_t> source,
                            const std::vector<float>& weight,
                            std::int64_t n) {
  pool_.parallel_for(n, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = source.empty() ? i : source[static_cast<std::size_t>(i)];
      kernels().rms_norm(residual_.rows().row(row),
                         type_,
                         weight.data(),
                         config_.rms_eps,
                         out.row(i),
                         config_.hidden);
    }
  });
}

void Decoder::Impl::feed_forward(int layer, const std::vector<float>& norm_weight) {
  if (config_.sparse(layer)) {
    // An exchange of all ranks: also one without tokens takes part. Rows that travel as they are
    // are written where peers read them.
    const auto tokens = static_cast<int>(num_tokens());
    const MutableRowsView rows =
        sparse_layers_.input(layer, tokens).value_or(normed_.mutable_rows());
    norm_to(rows, {}, norm_weight, tokens);
    sparse_layers_.forward(layer, {rows.base, rows.stride}, tokens, block_out_.floats());
    add_block_out({0, config_.hidden});
  } else {
    norm({}, norm_weight, num_tokens());
    dense_ffn(layer);
  }
}

void Decoder::Impl::dense_ffn(int layer) {
  const GatedFfnWeights& weights = dense_->layers[static_cast<std::size_t>(layer)].ffn.view;
  const GatherPhase phase{.name = "dense layer", .layer = layer};
  dense_ffn_.run(normed_.rows(), num_tokens(), weights, block_out_.mutable_rows(), phase);
  add_block_out(group_.own_columns(config_.hidden));
  group_.gather_columns(residual_.mutable_rows(), num_tokens(), config_.hidden, type_, phase);
}

/// To the residual stream.
void Decoder::Impl::add_block_out(const ColumnRange& columns) {
  add_to_residual(pool_, block_out_.rows(), columns, residual_.mutable_rows(), type_, num_tokens());
}

std::span<const float> Decoder::Impl::logits() {
  const auto n = static_cast<std::int64_t>(wanted_.size());
  if (n == 0) return {};
  norm(wanted_, dense_->final_norm, n);
  group_.multiply(gemm_scratch_,
                  {.in = normed_.rows(),
                   .rows = n,
                   .weights = &dense_->head.view,
                   .out = logits_.mutable_rows(),
                   .out_type = DType::f32});
  group_.gather_columns(logits_.mutable_rows(), n, config_.vocab, DType::f32, {.name = "logits"});
  return {logits_.floats(), static_cast<std::size_t>(n * config_.vocab)};
}

Decoder::Decoder(const ModelConfig& config,
                 std::shared_ptr<const DenseWeights> dense,
                 ExpertWeights experts,
                 const DecoderOptions& options,
                 Transport& transport,
                 ThreadPool& pool)
    : impl_(std::make_unique<Impl>(
          config, std::move(dense), std::move(experts), options, transport, pool)) {}

Decoder::~Decoder() = default;

std::span<const float> Decoder::forward(std::span<const SequenceStep> batch) {
  return impl_->forward(batch);
}

void Decoder::count_rows(std::span<std::int32_t> slot_rows) {
  impl_->sparse_layers().count_rows(slot_rows);
}

const ExpertWeights& Decoder::experts() const { return impl_->sparse_layers().experts(); }

std::vector<std::byte*> Decoder::spare_blocks(std::size_t count) {
  return impl_->sparse_layers().spare_blocks(count);
}

Region& Decoder::share_blocks(Transport& transport) {
  return impl_->sparse_layers().share_blocks(transport);
}

void Decoder::place_layer(int layer,
                          const Placement& placement,
                          std::span<std::byte* const> blocks) {
  impl_->sparse_layers().place_layer(layer, placement, blocks);
}

bool Decoder::masks() const { return impl_->sparse_layers().masks(); }

void Decoder::mask(Rank rank) { impl_->sparse_layers().mask(rank); }

bool Decoder::is_masked(Rank rank) const { return impl_->sparse_layers().is_masked(rank); }

const ModelConfig& Decoder::config() const { return impl_->config(); }

int Decoder::tp() const { return impl_->tp(); }

ReplicaRule Decoder::replica_rule() const { return impl_->replica_rule(); }

DType Decoder::activation_type() const { return impl_->activation_type(); }

ExchangeStats Decoder::exchange_stats() const { return impl_->sparse_layers().exchange_stats(); }

std::chrono::nanoseconds Decoder::exchange_time() const {
  return impl_->sparse_layers().exchange_time();
}

}  // namespace ferry
