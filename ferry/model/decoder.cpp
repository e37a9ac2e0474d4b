#include "ferry/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "ferry/compute/gated_ffn.h"
#include "ferry/compute/parallel_gemm.h"
#include "ferry/compute/residual.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/draft_input.h"
#include "ferry/model/kv_type.h"
#include "ferry/model/mixers/mixer.h"

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

/// The most that `width` says of any layer's kind of mixer.
std::int64_t widest_of_mixers(const ModelConfig& config,
                              std::int64_t (MixerKind::*width)(const ModelConfig&) const) {
  std::int64_t widest = 0;
  for (int layer = 0; layer < config.all_layers(); ++layer)
    widest = std::max(widest, (mixer_of(config, layer).*width)(config));
  return widest;
}

std::int64_t widest_input(const ModelConfig& config) {
  const std::int64_t hidden = config.hidden;
  return std::max(config.draft_layers > 0 ? 2 * hidden : hidden,
                  widest_of_mixers(config, &MixerKind::widest_input));
}

std::vector<std::unique_ptr<Mixer>> make_mixers(MixerContext& context, const DenseWeights& dense) {
  std::vector<std::unique_ptr<Mixer>> mixers;
  for (int layer = 0; layer < context.config.all_layers(); ++layer) {
    const MixerWeights& weights = *dense.layers[static_cast<std::size_t>(layer)].mixer;
    mixers.push_back(mixer_of(context.config, layer).make(context, layer, weights));
  }
  return mixers;
}

StateLayout layout_of(const ModelConfig& config,
                      DType type,
                      const std::vector<std::unique_ptr<Mixer>>& mixers) {
  std::vector<StateSpec> specs;
  for (const auto& mixer : mixers) specs.push_back(mixer->state());
  if (config.draft_layers > 0) specs.push_back(hidden_state_spec(config, type));
  return StateLayout(specs);
}

/// The first of the greatest.
std::int32_t greatest(std::span<const float> row) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < row.size(); ++i)
    if (row[i] > row[best] || std::isnan(row[best])) best = i;
  return static_cast<std::int32_t>(best);
}

/// The widest rows that are gathered are f32 logits or those of a mixer's projections; a member's
/// columns are at most all of one. (Memory that no slice fills costs nothing.)
GroupGather::Options group_options(const ModelConfig& config, const DecoderOptions& options) {
  const std::int64_t widest = std::max({widest_of_mixers(config, &MixerKind::widest_gathered),
                                        std::int64_t{config.hidden},
                                        std::int64_t{config.vocab},
                                        std::int64_t{config.dense_inter},
                                        std::int64_t{config.moe.shared_inter}});
  return {.tp = options.tp,
          .max_row_bytes = static_cast<std::size_t>(widest) * dtype_bytes(DType::f32),
          .timeout = options.timeout};
}

}  // namespace

class Decoder::Impl {
  using Phase = StepClock::Phase;
  using Scope = StepClock::Scope;

 public:
  Impl(const ModelConfig& config,
       std::shared_ptr<const DenseWeights> dense,
       ExpertWeights experts,
       const DecoderOptions& options,
       Transport& transport,
       ThreadPool& pool);

  std::span<const float> forward(std::span<const SequenceStep> batch);
  void commit(std::span<const int> accepted);
  void commit();
  void draft(std::span<const DraftRun> runs, int passes);

  const StateLayout& state_layout() const { return layout_; }

  SparseLayers& sparse_layers() { return sparse_layers_; }

  const ModelConfig& config() const { return config_; }

  ThreadPool& pool() { return pool_; }

  StepClock& clock() { return clock_; }

  int tp() const { return options_.tp; }

  DType activation_type() const { return type_; }

  WireType kv_type() const { return mixer_context_.kv_type; }

 private:
  void plan(std::span<const SequenceStep> batch);
  void take_pending(std::span<const SequenceStep> batch);
  void commit_pending();
  void embed(std::span<const SequenceStep> batch);
  void run_layer(int layer);
  void feed_forward(int layer, const std::vector<float>& norm_weight);
  void dense_ffn(int layer);
  void add_block_out(const ColumnRange& columns);
  std::span<const float> logits();
  std::span<const float> head(std::int64_t rows);
  void follow();
  void plan_draft(std::span<const DraftRun> runs, std::size_t pass);
  void take_draft(std::span<const DraftRun> runs, std::size_t pass);

  /// Of the layer behind the last mixer: what the layer that drafts reads of positions.
  std::byte* hidden_row(const TokenPlace& place) const {
    return place.state->rows(config_.all_layers(), 0).row(place.position);
  }

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

  std::uint64_t steps_ = 0;
  // The tokens of the step.
  std::vector<std::int32_t> tokens_;
  std::vector<TokenPlace> places_;
  std::vector<std::int64_t> wanted_;      // rows whose logits are wanted
  std::vector<const std::byte*> hidden_;  // of the layer that drafts: rows of the tokens before
  // Of each sequence, none of which is accepted yet; empty when there is nothing to commit.
  std::vector<AcceptedTokens> pending_;

  // Scratch for max_tokens tokens.
  StepClock clock_;
  GemmScratch gemm_scratch_;
  RowBuffer residual_;   // [tokens, H]
  RowBuffer normed_;     // [tokens, H]
  RowBuffer block_out_;  // f32 [tokens, H]
  RowBuffer logits_;     // f32 [wanted, vocab]
  MixerContext mixer_context_;
  const std::vector<std::unique_ptr<Mixer>> mixers_;  // [layers]
  const StateLayout layout_;
  GatedFfn dense_ffn_;  // of dense layers
  std::optional<DraftInput> draft_input_;

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
      gemm_scratch_(pool, type_, widest_input(config)),
      residual_(options.max_tokens, config.hidden, type_),
      normed_(options.max_tokens, config.hidden, type_),
      block_out_(options.max_tokens, config.hidden, DType::f32),
      logits_(options.max_tokens, config.vocab, DType::f32),
      mixer_context_{.config = config_,
                     .type = type_,
                     .kv_type = options.kv_type.value_or(wire_type(type_)),
                     .max_tokens = options.max_tokens,
                     .group = group_,
                     .pool = pool,
                     .gemm_scratch = gemm_scratch_},
      mixers_(make_mixers(mixer_context_, *dense_)),
      layout_(layout_of(config_, type_, mixers_)),
      dense_ffn_({.hidden = config.hidden,
                  .inter = config.dense_inter,
                  .gating = config.moe.gating,
                  .dtype = type_,
                  .max_rows = options.max_tokens},
                 group_,
                 pool),
      sparse_layers_(config_, *dense_, std::move(experts), options_, {transport, group_}, &clock_) {
  check_kv_type(options.kv_type, config);
  const auto max_tokens = static_cast<std::size_t>(options.max_tokens);
  tokens_.reserve(max_tokens);
  places_.reserve(max_tokens);
  pending_.reserve(max_tokens);
  wanted_.reserve(max_tokens);
  hidden_.reserve(max_tokens);
  if (config.draft_layers > 0)
    draft_input_.emplace(config_, *dense_, options.max_tokens, group_, gemm_scratch_);
  const GroupMember& member = dense_->member;
  FERRY_CHECK(member.tp == 1 || (member.member == group_.member() && member.tp == group_.tp()),
              "weights of member {} of {} for member {} of {}",
              member.member,
              member.tp,
              group_.member(),
              group_.tp());
}

std::span<const float> Decoder::Impl::forward(std::span<const SequenceStep> batch) {
  plan(batch);
  embed(batch);
  for (const SequenceStep& step : batch) {
    step.state->let_go();
    step.state->reserve(static_cast<int>(step.tokens.size()));
  }
  ++steps_;
  for (const auto& mixer : mixers_) mixer->begin_step({.number = steps_, .tokens = places_});
  for (int layer = 0; layer < config_.layers; ++layer) run_layer(layer);
  const std::span<const float> rows = logits();
  if (draft_input_) follow();
  sparse_layers_.check_nothing_lost();
  take_pending(batch);
  return rows;
}

void Decoder::Impl::run_layer(int layer) {
  const DenseWeights::Layer& weights = dense_->layers[static_cast<std::size_t>(layer)];
  norm({}, weights.attention_norm, num_tokens());
  {
    const Scope attention(&clock_, Phase::attention);
    mixers_[static_cast<std::size_t>(layer)]->forward(normed_.rows(), residual_.mutable_rows());
  }
  feed_forward(layer, weights.ffn_norm);
}

/// The layer that drafts keeps up with the step's tokens: the row of a position is made of its
/// token and of the hidden state of the position before it. So it depends on the tokens up to its
/// own alone, as the other layers' rows do, and pages that stay for others are theirs too. Position
/// 0 has no such state, and nobody sees its row.
void Decoder::Impl::follow() {
  {
    const Scope norms(&clock_, Phase::norms);
    pool_.parallel_for(num_tokens(), kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i)
        kernels_of(pool_).rms_norm(residual_.rows().row(i),
                                   type_,
                                   dense_->final_norm.data(),
                                   config_.rms_eps,
                                   hidden_row(places_[static_cast<std::size_t>(i)]),
                                   config_.hidden);
    });
  }
  hidden_.clear();
  for (const TokenPlace& place : places_) {
    hidden_.push_back(place.position == 0 ? nullptr
                                          : hidden_row({place.state, place.position - 1}));
  }
  draft_input_->make(tokens_, hidden_, residual_.mutable_rows(), block_out_.floats());
  run_layer(config_.layers);
}

void Decoder::Impl::draft(std::span<const DraftRun> runs, int passes) {
  FERRY_CHECK(draft_input_ && pending_.empty() && std::ssize(runs) <= options_.max_tokens,
              "drafts for {} sequences, of {} layers, with {} steps to commit",
              runs.size(),
              config_.draft_layers,
              pending_.size());
  for (const DraftRun& run : runs) {
    FERRY_CHECK(std::ssize(run.draft) <= passes && run.state->length() > 0 &&
                    run.state->length() + std::ssize(run.draft) <= config_.max_positions,
                "a draft of {} tokens in {} passes, behind {} of {} positions",
                run.draft.size(),
                passes,
                run.state->length(),
                config_.max_positions);
    run.state->reserve(static_cast<int>(run.draft.size()));
  }
  for (int pass = 0; pass < passes; ++pass) {
    plan_draft(runs, static_cast<std::size_t>(pass));
    draft_input_->make(tokens_, hidden_, residual_.mutable_rows(), block_out_.floats());
    ++steps_;
    mixers_.back()->begin_step({.number = steps_, .tokens = places_});
    run_layer(config_.layers);
    take_draft(runs, static_cast<std::size_t>(pass));
  }
  for (const DraftRun& run : runs) run.state->commit(0);
  sparse_layers_.check_nothing_lost();
}

/// The newest token of each draft that goes on, and the hidden state behind which it stands: the
/// model's for the first one, then what the layer has made of the token before it.
void Decoder::Impl::plan_draft(std::span<const DraftRun> runs, std::size_t pass) {
  places_.clear();
  tokens_.clear();
  hidden_.clear();
  std::int64_t before = 0;  // rows of the last pass
  for (const DraftRun& run : runs) {
    const bool ran = pass > 0 && run.draft.size() >= pass;
    const std::int64_t row = ran ? before++ : 0;
    if (run.draft.size() <= pass) continue;
    const int length = run.state->length();
    places_.push_back({run.state, length + static_cast<std::int32_t>(pass)});
    tokens_.push_back(pass == 0 ? run.token : run.draft[pass - 1]);
    hidden_.push_back(pass == 0 ? hidden_row({run.state, length - 1}) : normed_.rows().row(row));
  }
}

void Decoder::Impl::take_draft(std::span<const DraftRun> runs, std::size_t pass) {
  if (num_tokens() == 0) return;
  norm({}, dense_->draft.final_norm, num_tokens());
  const std::span<const float> logits = head(num_tokens());
  const auto vocab = static_cast<std::size_t>(config_.vocab);
  pool_.parallel_for(num_tokens(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      tokens_[i] = greatest(logits.subspan(i * vocab, vocab));
  });
  std::size_t row = 0;
  for (const DraftRun& run : runs)
    if (run.draft.size() > pass) run.draft[pass] = tokens_[row++];
}

void Decoder::Impl::take_pending(std::span<const SequenceStep> batch) {
  std::int64_t first = 0;
  for (const SequenceStep& step : batch) {
    const auto n = static_cast<int>(step.tokens.size());
    pending_.push_back({.state = step.state, .first = first, .tokens = n});
    first += n;
  }
}

void Decoder::Impl::commit() {
  for (AcceptedTokens& sequence : pending_) sequence.accepted = sequence.tokens;
  commit_pending();
}

void Decoder::Impl::commit_pending() {
  for (const auto& mixer : mixers_) mixer->commit(pending_);
  for (const AcceptedTokens& sequence : pending_) sequence.state->commit(sequence.accepted);
  pending_.clear();
}

void Decoder::Impl::commit(std::span<const int> accepted) {
  FERRY_CHECK(accepted.size() == pending_.size(),
              "{} sequences committed of {} that have run",
              accepted.size(),
              pending_.size());
  for (std::size_t i = 0; i < accepted.size(); ++i) {
    FERRY_CHECK(accepted[i] >= 0 && accepted[i] <= pending_[i].tokens,
                "{} tokens committed of {} that have run",
                accepted[i],
                pending_[i].tokens);
    pending_[i].accepted = accepted[i];
  }
  commit_pending();
}

void Decoder::Impl::plan(std::span<const SequenceStep> batch) {
  places_.clear();
  wanted_.clear();
  pending_.clear();
  for (const SequenceStep& step : batch) {
    const auto n = static_cast<std::int64_t>(step.tokens.size());
    const int begin = step.state->length();
    const int room = std::min(step.state->capacity(), config_.max_positions) - begin;
    FERRY_CHECK(step.state->layout() == layout_,
                "the state of another model, or of other activations than {}",
                dtype_name(type_));
    FERRY_CHECK(n <= room, "{} tokens for a sequence with room for {}", n, room);
    FERRY_CHECK(n <= options_.max_tokens - num_tokens(),
                "more than {} tokens in one step",
                options_.max_tokens);
    for (std::int64_t i = 0; i < n; ++i) {
      const bool wanted = step.logits == SequenceStep::Logits::all ||
                          (step.logits == SequenceStep::Logits::last && i == n - 1);
      if (wanted) wanted_.push_back(num_tokens());
      places_.push_back({step.state, begin + static_cast<std::int32_t>(i)});
    }
  }
}

void Decoder::Impl::embed(std::span<const SequenceStep> batch) {
  tokens_.clear();
  for (const SequenceStep& step : batch) {
    for (const std::int32_t token : step.tokens) {
      FERRY_CHECK(token >= 0 && token < config_.vocab,
                  "token {} of a vocabulary of {}",
                  token,
                  config_.vocab);
      tokens_.push_back(token);
    }
  }
  const MutableRowsView residual = residual_.mutable_rows();
  pool_.parallel_for(num_tokens(), kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* scratch = block_out_.floats() + row * config_.hidden;  // which nothing uses yet
      dense_->embedding.read(tokens_[static_cast<std::size_t>(row)], residual.row(row), scratch);
    }
  });
}

void Decoder::Impl::norm_to(const MutableRowsView& out,
                            std::span<const std::int64_t> source,
                            const std::vector<float>& weight,
                            std::int64_t n) {
  const Scope norms(&clock_, Phase::norms);
  pool_.parallel_for(n, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = source.empty() ? i : source[static_cast<std::size_t>(i)];
      kernels_of(pool_).rms_norm(residual_.rows().row(row),
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
  const Scope dense_layers(&clock_, Phase::dense_layers);
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
  return head(n);
}

/// Logits of the first `n` rows of normed_.
std::span<const float> Decoder::Impl::head(std::int64_t n) {
  const Scope head(&clock_, Phase::head);
  group_.multiply(
      gemm_scratch_,
      {.in = normed_.rows(), .rows = n, .out = logits_.mutable_rows(), .out_type = DType::f32},
      dense_->head.strips);
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

void Decoder::commit(std::span<const int> accepted) { impl_->commit(accepted); }

void Decoder::commit() { impl_->commit(); }

void Decoder::draft(std::span<const DraftRun> runs, int passes) { impl_->draft(runs, passes); }

const StateLayout& Decoder::state_layout() const { return impl_->state_layout(); }

SparseLayers& Decoder::sparse_layers() { return impl_->sparse_layers(); }

const SparseLayers& Decoder::sparse_layers() const { return impl_->sparse_layers(); }

const ModelConfig& Decoder::config() const { return impl_->config(); }

StepClock& Decoder::clock() { return impl_->clock(); }

ThreadPool& Decoder::pool() { return impl_->pool(); }

int Decoder::tp() const { return impl_->tp(); }

DType Decoder::activation_type() const { return impl_->activation_type(); }

WireType Decoder::kv_type() const { return impl_->kv_type(); }

}  // namespace ferry
