#include "ferry/model/mixers/attention.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

const float* or_null(const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); }

/// Elements from one head's query to the next one's.
std::int64_t query_stride_of(const ModelConfig& config) {
  return std::int64_t{config.head_dim} * (config.attention_gate ? 2 : 1);
}

/// A member's columns of the projections.
std::array<ColumnRange, 3> qkv_columns(const ModelConfig& config, HeadShare own) {
  const int each = config.attention_gate ? 2 : 1;
  own.query = {own.query.begin * each, own.query.end * each};
  return head_columns(own, config.heads * each, config.kv_heads, config.head_dim);
}

}  // namespace

AttentionScratch::AttentionScratch(const MixerContext& context)
    : config(context.config),
      type(context.type),
      kv_type(context.kv_type),
      max_tokens(context.max_tokens),
      heads(config.heads),
      kv_heads(config.kv_heads),
      head_dim(config.head_dim),
      heads_width(heads * head_dim),
      query_stride(query_stride_of(config)),
      queries_width(heads * query_stride),
      kv_width(kv_heads * head_dim),
      qkv_width(queries_width + 2 * kv_width),
      group(context.group),
      own(head_share(heads, kv_heads, group.self())),
      pool(context.pool),
      gemm_scratch(context.gemm_scratch),
      ones(static_cast<std::size_t>(config.head_dim), 1.0F),
      angles(config.rope, max_tokens, pool),
      blocks(max_tokens, heads),
      output(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      qkv(rows_buffer(max_tokens, qkv_width, DType::f32)),
      heads_out(rows_buffer(max_tokens, heads_width, type)) {
  for (int worker = 0; worker < pool.size(); ++worker)
    attend.emplace_back(head_dim, config.max_positions);
}

void AttentionScratch::begin_step(const MixerStep& step) {
  if (step.number == step_) return;
  check_room(step, max_tokens);
  tokens = step.tokens;
  angles.begin_step(tokens);
  blocks.build(tokens, own.query, heads / kv_heads, pool.size());
  step_ = step.number;
}

Attention::Attention(MixerContext& context, int layer, const AttentionWeights& weights)
    : scratch_(context.shared<AttentionScratch>()),
      layer_(layer),
      how_(context.config.layer_attention[static_cast<std::size_t>(layer)]),
      weights_(weights) {}

StateSpec Attention::state() const {
  return attention_kind().state(
      scratch_->config, layer_, scratch_->kv_type, scratch_->group.self());
}

void Attention::begin_step(const MixerStep& step) { scratch_->begin_step(step); }

void Attention::forward(const RowsView& normed, const MutableRowsView& residual) {
  const AttentionScratch& s = *scratch_;
  if (s.tokens.empty()) return;
  project_qkv(normed);
  s.pool.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) rotate_and_store(t);
      });
  s.pool.parallel_for(s.blocks.size(),
                      attend_grain(most_positions() * s.head_dim),
                      [&](std::int64_t begin, std::int64_t end, int worker) {
                        for (std::int64_t i = begin; i < end; ++i) attend(s.blocks.at(i), worker);
                      });
  s.output.add(layer_,
               {.rows = {s.heads_out.data(), row_bytes(s.heads_width, s.type)},
                .heads = s.heads,
                .kv_heads = s.kv_heads,
                .head_dim = s.head_dim},
               num_tokens(),
               weights_.output.strips,
               weights_.output_bias,
               residual);
}

/// Of any token of the step.
std::int64_t Attention::most_positions() const {
  std::int64_t most = 1;
  for (const TokenPlace& place : scratch_->tokens)
    most = std::max(most, place.position + 1 - how_.first(place.position));
  return most;
}

void Attention::project_qkv(const RowsView& normed) {
  const AttentionScratch& s = *scratch_;
  const MutableRowsView qkv{s.qkv.data(), row_bytes(s.qkv_width, DType::f32)};
  const GemmArgs product{.in = normed,
                         .rows = num_tokens(),
                         .bias = or_null(weights_.qkv_bias),
                         .out = qkv,
                         .out_type = DType::f32};
  if (s.config.qk_norm != QkNorm::whole) {
    const auto columns = qkv_columns(s.config, s.own);
    return parallel_gemm(s.pool, s.gemm_scratch, product, weights_.qkv.strips, columns);
  }
  // The norm of each head needs all heads.
  s.group.multiply(s.gemm_scratch, product, weights_.qkv.strips);
  s.group.gather_columns(
      qkv, num_tokens(), s.qkv_width, DType::f32, {.name = "queries and keys", .layer = layer_});
}

/// Normalises each piece of x that is as long as the weights; without weights nothing.
void Attention::norm(float* x, std::int64_t width, const std::vector<float>& weight) const {
  if (weight.empty()) return;
  const auto piece = static_cast<std::int64_t>(weight.size());
  for (std::int64_t i = 0; i < width; i += piece) {
    std::byte* row = bytes_of(x + i);
    kernels_of(scratch_->pool)
        .rms_norm(row, DType::f32, weight.data(), scratch_->config.rms_eps, row, piece);
  }
}

/// Of one token: this rank's heads, or where all heads are normalised together, all of them.
void Attention::norm_heads(float* query, float* key) const {
  const AttentionScratch& s = *scratch_;
  if (s.config.qk_norm == QkNorm::whole) {
    norm(query, s.heads_width, weights_.query_norm);
    norm(key, s.kv_width, weights_.key_norm);
    return;
  }
  norm_own(query, key, weights_.query_norm, weights_.key_norm);
}

/// Of one token, each of this rank's heads.
void Attention::norm_own(float* query,
                         float* key,
                         const std::vector<float>& query_norm,
                         const std::vector<float>& key_norm) const {
  const AttentionScratch& s = *scratch_;
  for (int head = s.own.query.begin; head < s.own.query.end; ++head)
    norm(query + head * s.query_stride, s.head_dim, query_norm);
  norm(key + s.own.kv.begin * s.head_dim, s.own.kv.size() * s.head_dim, key_norm);
}

/// Of one token, this rank's heads.
void Attention::turn_heads(float* query, float* key, std::int64_t token) const {
  const AttentionScratch& s = *scratch_;
  for (int head = s.own.query.begin; head < s.own.query.end; ++head)
    s.angles.turn(query + head * s.query_stride, token);
  for (int head = s.own.kv.begin; head < s.own.kv.end; ++head)
    s.angles.turn(key + head * s.head_dim, token);
  if (s.config.qk_norm == QkNorm::turned) norm_own(query, key, s.ones, s.ones);
}

void Attention::rotate_and_store(std::int64_t token) {
  const AttentionScratch& s = *scratch_;
  const TokenPlace& place = s.tokens[static_cast<std::size_t>(token)];
  float* query = s.qkv_row(token);
  float* key = query + s.queries_width;
  const float* value = key + s.kv_width;
  const bool norm_last = s.config.qk_norm == QkNorm::turned_head;
  if (!norm_last) norm_heads(query, key);
  if (how_.rope) turn_heads(query, key, token);
  if (norm_last) norm_heads(query, key);
  if (how_.growth.step > 0) {
    const float factor = how_.growth.factor(place.position);
    for (int head = s.own.query.begin; head < s.own.query.end; ++head) {
      float* own = query + head * s.query_stride;
      kernels_of(s.pool).scale(own, factor, own, s.head_dim);
    }
  }
  const auto store = [&](const float* head, int stream) {
    const StateRows rows = place.state->rows(layer_, stream);
    kernels_of(s.pool).encode(
        bytes_of(head), DType::f32, rows.row(place.position), s.kv_type, s.head_dim);
  };
  for (int head = s.own.kv.begin; head < s.own.kv.end; ++head) {
    const int stream = head - s.own.kv.begin;
    store(key + head * s.head_dim, stream);
    store(value + head * s.head_dim, s.own.kv.size() + stream);
  }
}

void Attention::attend(const QueryBlock& block, int worker) {
  const AttentionScratch& s = *scratch_;
  const std::vector<float>& sinks = weights_.sinks;
  const AttendScratch& scratch = s.attend[static_cast<std::size_t>(worker)];
  std::array<AttendQuery, kAttendQueries> queries;
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    const int head = block.head(q);
    const std::int32_t position = s.tokens[static_cast<std::size_t>(block.token(q))].position;
    queries[static_cast<std::size_t>(q)] = {
        .query = s.query(block.token(q), head),
        .begin = how_.first(position),
        .end = std::int64_t{position} + 1,
        .sink = sinks.empty() ? kNoSink : sinks[static_cast<std::size_t>(head)],
        .out = scratch.out(q)};
  }
  const SequenceState& state = *s.tokens[static_cast<std::size_t>(block.first_token)].state;
  const int stream = block.first_head / (s.heads / s.kv_heads) - s.own.kv.begin;
  kernels_of(s.pool).attend(scratch.with_scores(
      {.queries = queries.data(),
       .num_queries = block.queries(),
       .keys = paged(state.rows(layer_, stream)),
       .values = paged(state.rows(layer_, s.own.kv.size() + stream)),
       .page_shift = kPageShift,
       .kv_type = s.kv_type,
       .head_dim = s.head_dim,
       .value_dim = s.head_dim,
       .value_row = s.head_dim,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.head_dim)))}));
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    const std::int64_t column = block.head(q) * s.head_dim;
    if (s.config.attention_gate) gate(scratch.out(q), block.token(q), block.head(q));
    std::byte* out =
        s.heads_out.data() + row_bytes(block.token(q) * s.heads_width + column, s.type);
    kernels_of(s.pool).convert(bytes_of(scratch.out(q)), DType::f32, out, s.type, s.head_dim);
  }
}

/// Multiplies what a head gives by the sigmoid of its gate, which is used up.
void Attention::gate(float* out, std::int64_t token, int head) const {
  const AttentionScratch& s = *scratch_;
  float* gate = s.query(token, head) + s.head_dim;
  kernels_of(s.pool).sigmoid(gate, gate, s.head_dim);
  for (std::int64_t i = 0; i < s.head_dim; ++i) out[i] *= gate[i];
}

namespace {

class AttentionKind final : public MixerKind {
 public:
  std::string_view name() const override { return kAttention; }

  std::string_view unsupported(const ModelConfig& config, int) const override {
    if (config.latent.rank > 0) return "keys and values made of a latent (kv_lora_rank)";
    if (config.attention_gate && config.qk_norm == QkNorm::whole)
      return "an output gate beside norms of all heads together";
    return "";
  }

  std::unique_ptr<MixerWeights> read(const ModelConfig& config,
                                     int,
                                     const TensorNames& names,
                                     TensorTable& table) const override {
    const std::int64_t hidden = config.hidden;
    const std::int64_t results = std::int64_t{config.heads} * config.head_dim;
    const std::int64_t q = queries_width(config);
    const std::int64_t kv = kv_width(config);
    const bool whole = config.qk_norm == QkNorm::whole;  // the norm needs all heads
    const auto own = qkv_columns(config, head_share(config.heads, config.kv_heads, table.member()));
    auto w = std::make_unique<AttentionWeights>();
    table.matrix(w->qkv,
                 {{names.q_weight, q}, {names.k_weight, kv}, {names.v_weight, kv}},
                 hidden,
                 whole ? MatrixPacking{.shared_out = true} : MatrixPacking{.columns = own});
    table.matrix(w->output, {{names.o_weight, hidden}}, results, {.shared_out = true});
    if (config.attention_bias) {
      table.vector(w->qkv_bias,
                   {{names.q_bias, q}, {names.k_bias, kv}, {names.v_bias, kv}},
                   TensorRole::bias);
    }
    if (config.output_bias)
      table.vector(w->output_bias, {{names.o_bias, hidden}}, TensorRole::bias);
    if (config.sinks) table.vector(w->sinks, {{names.sinks, config.heads}}, TensorRole::bias);
    if (config.qk_norm_weights()) {
      read_norm(config, table, w->query_norm, {names.q_norm, whole ? q : config.head_dim});
      read_norm(config, table, w->key_norm, {names.k_norm, whole ? kv : config.head_dim});
    }
    return w;
  }

  /// The keys of each key-value head that this member keeps, then the values of each.
  StateSpec state(const ModelConfig& config,
                  int layer,
                  WireType kv_type,
                  const GroupMember& member) const override {
    const HeadShare own = head_share(config.heads, config.kv_heads, member);
    return {.streams = 2 * own.kv.size(),
            .row_bytes = wire_row_bytes(kv_type, config.head_dim),
            .span = config.layer_attention[static_cast<std::size_t>(layer)].span};
  }

  std::int64_t widest_input(const ModelConfig& config) const override {
    return std::max<std::int64_t>(config.hidden, queries_width(config));
  }

  std::int64_t widest_gathered(const ModelConfig& config) const override {
    return queries_width(config) + 2 * kv_width(config);
  }

  MixerWork work(const ModelConfig& config) const override {
    const double hidden = config.hidden;
    const auto queries = static_cast<double>(queries_width(config));
    const auto results = static_cast<double>(config.heads) * config.head_dim;
    const auto keys_and_values = static_cast<double>(2 * kv_width(config));
    return {hidden * (queries + keys_and_values) + results * hidden, 2 * results};
  }

  std::string describe(const ModelConfig& config) const override {
    return fmt::format("{} for keys and values", config.kv_heads);
  }

  std::unique_ptr<Mixer> make(MixerContext& context,
                              int layer,
                              const MixerWeights& weights) const override {
    return std::make_unique<Attention>(
        context, layer, dynamic_cast<const AttentionWeights&>(weights));
  }

 private:
  static std::int64_t queries_width(const ModelConfig& config) {
    return config.heads * query_stride_of(config);
  }

  static std::int64_t kv_width(const ModelConfig& config) {
    return std::int64_t{config.kv_heads} * config.head_dim;
  }
};

}  // namespace

const MixerKind& attention_kind() {
  static const AttentionKind kind;
  return kind;
}

}  // namespace ferry
