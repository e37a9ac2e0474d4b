#include "ferry/model/mixers/latent_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/packer.h"

namespace ferry {

namespace {

/// DeepSeek magnifies queries and keys alike where yarn stretches the positions.
float score_scale(const ModelConfig& config) {
  const RopeOptions& rope = config.rope;
  const double mscale =
      rope.mscale_all_dim == 0 ? 1.0 : yarn_mscale(rope.factor, rope.mscale_all_dim);
  return static_cast<float>(mscale * mscale / std::sqrt(static_cast<double>(config.head_dim)));
}

std::int64_t queries_width(const ModelConfig& config) {
  return std::int64_t{config.heads} * config.head_dim;
}

std::int64_t values_width(const ModelConfig& config) {
  return std::int64_t{config.heads} * config.latent.value_dim;
}

/// Elements kept of a position.
std::int64_t row_width(const ModelConfig& config) { return config.latent.rank + config.rope.dim; }

bool has_indexer(const ModelConfig& config, int layer) {
  return config.latent.indexer.topk > 0 &&
         !config.layer_attention[static_cast<std::size_t>(layer)].shares_choice;
}

/// The most positions that a query attends over.
std::int64_t most_positions(const ModelConfig& config) {
  const int topk = config.latent.indexer.topk;
  return topk > 0 ? std::min(topk, config.max_positions) : config.max_positions;
}

/// What is made of the hidden state in front of the latent.
std::int64_t from_down_width(const ModelConfig& config) {
  return config.latent.query_rank > 0 ? config.latent.query_rank : queries_width(config);
}

HeadRange own_heads(const ModelConfig& config, const GroupMember& who) {
  return head_share(config.heads, config.heads, who).query;
}

/// The columns of `down` that a member computes. What latents and compressed queries are made of is
/// needed by every member.
std::array<ColumnRange, 2> down_columns(const ModelConfig& config, const HeadRange& own) {
  const std::int64_t head_dim = config.head_dim;
  const std::int64_t queries = from_down_width(config);
  const ColumnRange own_queries = config.latent.query_rank > 0
                                      ? ColumnRange{0, queries}
                                      : ColumnRange{own.begin * head_dim, own.end * head_dim};
  return {own_queries, ColumnRange{queries, queries + row_width(config)}};
}

/// Likewise of `query_up`.
std::array<ColumnRange, 1> query_columns(const ModelConfig& config, const HeadRange& own) {
  const std::int64_t head_dim = config.head_dim;
  return {ColumnRange{own.begin * head_dim, own.end * head_dim}};
}

}  // namespace

LatentAttentionScratch::LatentAttentionScratch(const MixerContext& context)
    : config(context.config),
      latent(config.latent),
      type(context.type),
      kv_type(context.kv_type),
      max_tokens(context.max_tokens),
      group(context.group),
      heads(config.heads),
      own(own_heads(config, group.self())),
      rope(config.rope.dim),
      rank(latent.rank),
      row(row_width(config)),
      kept_bytes(static_cast<std::ptrdiff_t>(wire_row_bytes(kv_type, row))),
      head_dim(config.head_dim),
      from_down(from_down_width(config)),
      scale(score_scale(config)),
      pool(context.pool),
      gemm_scratch(context.gemm_scratch),
      angles(config.rope, max_tokens, pool),
      blocks(kTokensAtOnce, config.heads),
      output(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      down(rows_buffer(max_tokens, from_down + row, DType::f32)),
      compressed(rows_buffer(max_tokens, latent.query_rank, type)),
      projected(rows_buffer(max_tokens, latent.query_rank > 0 ? heads * head_dim : 0, DType::f32)),
      heads_out(rows_buffer(max_tokens, heads * latent.value_dim, type)) {
  const std::int64_t at_once = std::min<std::int64_t>(max_tokens, kTokensAtOnce);
  plain = rows_buffer(at_once, heads * latent.plain_dim, type);
  queries = rows_buffer(at_once, heads * row, DType::f32);
  attended = rows_buffer(at_once, heads * rank, type);
  const std::int64_t positions = most_positions(config);
  for (int worker = 0; worker < pool.size(); ++worker) {
    attend.emplace_back(rank, positions);
    if (positions < config.max_positions)
      chosen_rows.emplace_back(static_cast<std::size_t>(positions * kept_bytes));
  }
}

void LatentAttentionScratch::begin_step(const MixerStep& step) {
  if (step.number == step_) return;
  check_room(step, max_tokens);
  tokens = step.tokens;
  angles.begin_step(tokens);
  step_ = step.number;
}

LatentAttention::LatentAttention(MixerContext& context,
                                 int layer,
                                 const LatentAttentionWeights& weights)
    : scratch_(context.shared<LatentAttentionScratch>()),
      indexer_(scratch_->latent.indexer.topk > 0 ? context.shared<Indexer>() : nullptr),
      layer_(layer),
      weights_(weights) {}

StateSpec LatentAttention::state() const {
  return latent_attention_kind().state(
      scratch_->config, layer_, scratch_->kv_type, scratch_->group.self());
}

void LatentAttention::begin_step(const MixerStep& step) {
  scratch_->begin_step(step);
  if (indexer_) indexer_->begin_step(step);
}

void LatentAttention::forward(const RowsView& normed, const MutableRowsView& residual) {
  constexpr std::int64_t kAtOnce = LatentAttentionScratch::kTokensAtOnce;
  const LatentAttentionScratch& s = *scratch_;
  if (s.tokens.empty()) return;
  project_down(normed);
  store_latents();
  project_queries();
  if (has_indexer(s.config, layer_)) {
    indexer_->run(layer_,
                  weights_.indexer,
                  {.normed = normed,
                   .compressed = {s.compressed.data(), row_bytes(s.latent.query_rank, s.type)},
                   .kept_at = s.kept_bytes});
  }
  for (std::int64_t first = 0; first < num_tokens(); first += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, num_tokens() - first);
    make_queries(first, count);
    attend(first, count);
    make_values(first, count);
  }
  const auto heads = static_cast<int>(s.heads);
  const std::vector<float> no_bias;
  s.output.add(layer_,
               {.rows = {s.heads_out.data(), row_bytes(values_width(s.config), s.type)},
                .heads = heads,
                .kv_heads = heads,
                .head_dim = s.latent.value_dim},
               num_tokens(),
               weights_.output.strips,
               no_bias,
               residual);
}

/// All that is made of the hidden state at once: of queries this rank's, but compressed ones whole.
void LatentAttention::project_down(const RowsView& normed) {
  const LatentAttentionScratch& s = *scratch_;
  parallel_gemm(s.pool,
                s.gemm_scratch,
                {.in = normed,
                 .rows = num_tokens(),
                 .out = {s.down.data(), row_bytes(s.from_down + s.row, DType::f32)},
                 .out_type = DType::f32},
                weights_.down.strips,
                down_columns(s.config, s.own));
}

void LatentAttention::store_latents() {
  const LatentAttentionScratch& s = *scratch_;
  const Kernels& k = kernels_of(s.pool);
  s.pool.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          const TokenPlace& place = s.tokens[static_cast<std::size_t>(t)];
          float* latent = s.down.as<float>() + t * (s.from_down + s.row) + s.from_down;
          k.rms_norm(bytes_of(latent),
                     DType::f32,
                     weights_.latent_norm.data(),
                     s.latent.rms_eps,
                     bytes_of(latent),
                     s.rank);
          s.angles.turn(latent + s.rank, t);
          std::byte* cached = place.state->rows(layer_, 0).row(place.position);
          k.encode(bytes_of(latent), DType::f32, cached, s.kv_type, s.row);
        }
      });
}

/// From compressed queries to those of this rank's heads, where they are compressed.
void LatentAttention::project_queries() {
  const LatentAttentionScratch& s = *scratch_;
  const std::int64_t width = s.latent.query_rank;
  if (width == 0) return;
  const Kernels& k = kernels_of(s.pool);
  s.pool.parallel_for(
      num_tokens(), kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          float* query = s.down.as<float>() + t * (s.from_down + s.row);
          k.rms_norm(bytes_of(query),
                     DType::f32,
                     weights_.query_norm.data(),
                     s.latent.rms_eps,
                     bytes_of(query),
                     width);
          k.convert(bytes_of(query),
                    DType::f32,
                    s.compressed.data() + row_bytes(t * width, s.type),
                    s.type,
                    width);
        }
      });
  parallel_gemm(s.pool,
                s.gemm_scratch,
                {.in = {s.compressed.data(), row_bytes(width, s.type)},
                 .rows = num_tokens(),
                 .out = {s.projected.data(), row_bytes(s.heads * s.head_dim, DType::f32)},
                 .out_type = DType::f32},
                weights_.query_up.strips,
                query_columns(s.config, s.own));
}

/// s.queries of some tokens: what does not turn through the head's key matrix, what turns behind
/// it.
void LatentAttention::make_queries(std::int64_t first, std::int64_t count) {
  const LatentAttentionScratch& s = *scratch_;
  const bool compressed = s.latent.query_rank > 0;
  const std::int64_t plain = s.latent.plain_dim;
  const QueryGrowth& growth = s.config.layer_attention[static_cast<std::size_t>(layer_)].growth;
  s.pool.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* heads = compressed ? s.projected.as<float>() + (first + t) * s.heads * s.head_dim
                                : s.down.as<float>() + (first + t) * (s.from_down + s.row);
      if (growth.step > 0) {
        float* own = heads + s.own.begin * s.head_dim;
        const std::int32_t position = s.tokens[static_cast<std::size_t>(first + t)].position;
        kernels_of(s.pool).scale(own, growth.factor(position), own, s.own.size() * s.head_dim);
      }
      for (std::int64_t h = s.own.begin; h < s.own.end; ++h) {
        const std::int64_t head = t * s.heads + h;
        kernels_of(s.pool).convert(bytes_of(heads + h * s.head_dim),
                                   DType::f32,
                                   s.plain.data() + row_bytes(head * plain, s.type),
                                   s.type,
                                   plain);
        float* turned = s.queries.as<float>() + head * s.row + s.rank;
        std::copy_n(heads + h * s.head_dim + plain, s.rope, turned);
        s.angles.turn(turned, first + t);
      }
    }
  });
  each_head(weights_.head_keys.views,
            count,
            {s.plain.data(), row_bytes(s.heads * plain, s.type)},
            {s.queries.data(), row_bytes(s.heads * s.row, DType::f32)},
            row_bytes(s.row, DType::f32),
            DType::f32);
}

void LatentAttention::attend(std::int64_t first, std::int64_t count) {
  LatentAttentionScratch& s = *scratch_;
  const bool choose = any_chooses(first, count);
  std::int64_t last = 0;
  for (std::int64_t t = first; t < first + count; ++t)
    last = std::max<std::int64_t>(last, s.tokens[static_cast<std::size_t>(t)].position);
  last = std::min(last, most_positions(s.config) - 1);
  s.blocks.build(s.tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
                 s.own,
                 static_cast<int>(s.heads),
                 s.pool.size(),
                 choose ? 1 : kAttendQueries);
  s.pool.parallel_for(s.blocks.size(),
                      attend_grain((last + 1) * s.row),
                      [&](std::int64_t begin, std::int64_t end, int worker) {
                        if (choose) return attend_to_chosen(first, begin, end, worker);
                        for (std::int64_t i = begin; i < end; ++i) {
                          const QueryBlock block = s.blocks.at(i);
                          attend(first, block, all_rows(first + block.first_token), worker);
                        }
                      });
}

bool LatentAttention::any_chooses(std::int64_t first, std::int64_t count) const {
  if (!indexer_) return false;
  for (std::int64_t t = first; t < first + count; ++t)
    if (!indexer_->chosen(t).empty()) return true;
  return false;
}

LatentAttention::SeenRows LatentAttention::all_rows(std::int64_t token) const {
  const TokenPlace& place = scratch_->tokens[static_cast<std::size_t>(token)];
  return {.rows = paged(place.state->rows(layer_, 0)), .page_shift = kPageShift};
}

/// Blocks [begin, end) of one token each. Rows are copied once for all of a token's blocks that
/// follow each other here.
void LatentAttention::attend_to_chosen(std::int64_t first,
                                       std::int64_t begin,
                                       std::int64_t end,
                                       int worker) {
  const LatentAttentionScratch& s = *scratch_;
  const std::ptrdiff_t bytes = s.kept_bytes;
  std::int64_t copied = -1;
  const std::byte* page = nullptr;
  for (std::int64_t i = begin; i < end; ++i) {
    const QueryBlock block = s.blocks.at_by_token(i);
    const std::int64_t token = first + block.first_token;
    const std::span<const std::int32_t> chosen = indexer_->chosen(token);
    if (chosen.empty()) {
      attend(first, block, all_rows(token), worker);
      continue;
    }
    if (copied != token) {
      std::byte* to = s.chosen_rows[static_cast<std::size_t>(worker)].data();
      page = to;
      const TokenPlace& place = s.tokens[static_cast<std::size_t>(token)];
      const StateRows rows = place.state->rows(layer_, 0);
      for (const std::int32_t position : chosen) {
        std::memcpy(to, rows.row(position), static_cast<std::size_t>(bytes));
        to += bytes;
      }
      copied = token;
    }
    attend(first, block, {.rows = {&page, 0, bytes}, .end = std::ssize(chosen)}, worker);
  }
}

/// A block of the tokens from `first` on, with which s.queries and s.attended begin.
void LatentAttention::attend(std::int64_t first,
                             const QueryBlock& block,
                             const SeenRows& seen,
                             int worker) {
  const LatentAttentionScratch& s = *scratch_;
  const LayerAttention& how = s.config.layer_attention[static_cast<std::size_t>(layer_)];
  const auto position_of = [&](std::int64_t q) -> std::int64_t {
    return s.tokens[static_cast<std::size_t>(first + block.token(q))].position;
  };
  const auto row_of = [&](std::int64_t q) { return block.token(q) * s.heads + block.head(q); };
  const AttendScratch& scratch = s.attend[static_cast<std::size_t>(worker)];
  std::array<AttendQuery, kAttendQueries> queries;
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    queries[static_cast<std::size_t>(q)] = {.query = s.queries.as<float>() + row_of(q) * s.row,
                                            .begin = seen.end > 0 ? 0 : how.first(position_of(q)),
                                            .end = seen.end > 0 ? seen.end : position_of(q) + 1,
                                            .out = scratch.out(q)};
  }
  kernels_of(s.pool).attend(scratch.with_scores({.queries = queries.data(),
                                                 .num_queries = block.queries(),
                                                 .keys = seen.rows,
                                                 .values = seen.rows,
                                                 .page_shift = seen.page_shift,
                                                 .kv_type = s.kv_type,
                                                 .head_dim = s.row,
                                                 .value_dim = s.rank,
                                                 .value_row = s.row,
                                                 .scale = s.scale}));
  for (std::int64_t q = 0; q < block.queries(); ++q) {
    std::byte* out = s.attended.data() + row_bytes(row_of(q) * s.rank, s.type);
    kernels_of(s.pool).convert(bytes_of(scratch.out(q)), DType::f32, out, s.type, s.rank);
  }
}

void LatentAttention::make_values(std::int64_t first, std::int64_t count) {
  const LatentAttentionScratch& s = *scratch_;
  const std::ptrdiff_t out_row = row_bytes(s.heads * s.latent.value_dim, s.type);
  each_head(weights_.head_values.views,
            count,
            {s.attended.data(), row_bytes(s.heads * s.rank, s.type)},
            {s.heads_out.data() + first * out_row, out_row},
            row_bytes(s.latent.value_dim, s.type),
            s.type);
}

void LatentAttention::each_head(std::span<const PackedMatrix> matrices,
                                std::int64_t rows,
                                const RowsView& in,
                                const MutableRowsView& out,
                                std::ptrdiff_t out_step,
                                DType out_type) {
  const LatentAttentionScratch& s = *scratch_;
  s.pool.parallel_for(s.own.size(), 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t h = s.own.begin + begin; h < s.own.begin + end; ++h) {
      const PackedMatrix& matrix = matrices[static_cast<std::size_t>(h)];
      kernels_of(s.pool).gemm({.in = {in.base + h * row_bytes(matrix.k, s.type), in.stride},
                               .rows = rows,
                               .weights = &matrix,
                               .last_panel = matrix.panels(),
                               .out = {out.base + h * out_step, out.stride},
                               .out_type = out_type,
                               .scratch = s.gemm_scratch.of(worker)});
    }
  });
}

namespace {

class LatentAttentionKind final : public MixerKind {
 public:
  std::string_view name() const override { return kLatentAttention; }

  std::string_view unsupported(const ModelConfig& config, int layer) const override {
    const LayerAttention& how = config.layer_attention[static_cast<std::size_t>(layer)];
    if (config.latent.rank <= 0) return "a model without a latent (kv_lora_rank)";
    if (how.span.kind != AttentionSpan::Kind::full)
      return "windows and blocks of positions (layer_types, sliding_window)";
    if (!how.rope) return "layers whose keys do not turn (no_rope_layers)";
    if (config.latent.indexer.topk > 0 && config.latent.query_rank <= 0)
      return "an indexer without compressed queries (q_lora_rank)";
    if (config.sinks) return "sinks";
    if (config.attention_gate) return "an output gate";
    if (config.attention_bias || config.output_bias) return "biases (attention_bias)";
    if (config.qk_norm != QkNorm::none) return "norms of queries and keys (use_qk_norm)";
    return "";
  }

  std::unique_ptr<MixerWeights> read(const ModelConfig& config,
                                     int layer,
                                     const TensorNames& names,
                                     TensorTable& table) const override {
    const LatentConfig& latent = config.latent;
    const HeadRange own = own_heads(config, table.member());
    const auto down_own = down_columns(config, own);
    const auto up_own = query_columns(config, own);
    const std::int64_t q = queries_width(config);
    auto w = std::make_unique<LatentAttentionWeights>();
    const TensorRows queries = latent.query_rank > 0
                                   ? TensorRows{names.query_down, latent.query_rank}
                                   : TensorRows{names.q_weight, q};
    table.matrix(w->down,
                 {queries, {names.latent_down, row_width(config)}},
                 config.hidden,
                 {.columns = down_own});
    if (latent.query_rank > 0) {
      table.vector(w->query_norm, {{names.query_down_norm, latent.query_rank}}, TensorRole::norm);
      table.matrix(w->query_up, {{names.query_up, q}}, latent.query_rank, {.columns = up_own});
    }
    table.vector(w->latent_norm, {{names.latent_norm, latent.rank}}, TensorRole::norm);
    table.own_way(
        {names.latent_up, std::int64_t{config.heads} * (latent.plain_dim + latent.value_dim)},
        latent.rank,
        [&](const StoredMatrix& up, Packer& packer) { pack_heads(up, config, own, packer, *w); });
    table.matrix(
        w->output, {{names.o_weight, config.hidden}}, values_width(config), {.shared_out = true});
    if (has_indexer(config, layer)) read_indexer(config, names, table, w->indexer);
    return w;
  }

  /// The row of which all heads' keys and values are made, and behind it the indexer's key, on
  /// every member.
  StateSpec state(const ModelConfig& config,
                  int layer,
                  WireType kv_type,
                  const GroupMember&) const override {
    const std::int64_t index = has_indexer(config, layer) ? config.latent.indexer.dim : 0;
    return {.streams = 1,
            .row_bytes = wire_row_bytes(kv_type, row_width(config)) +
                         static_cast<std::size_t>(row_bytes(index, index_key_type(kv_type))),
            .span = config.layer_attention[static_cast<std::size_t>(layer)].span};
  }

  std::int64_t widest_input(const ModelConfig& config) const override {
    const LatentConfig& latent = config.latent;
    return std::max<std::int64_t>(
        {config.hidden, values_width(config), latent.query_rank, latent.rank, latent.plain_dim});
  }

  std::int64_t widest_gathered(const ModelConfig& config) const override {
    return values_width(config);
  }

  MixerWork work(const ModelConfig& config) const override {
    const double hidden = config.hidden;
    const auto queries = static_cast<double>(queries_width(config));
    const auto row = static_cast<double>(row_width(config));
    const LatentConfig& latent = config.latent;
    const double up =
        static_cast<double>(config.heads) * latent.rank * (latent.plain_dim + latent.value_dim);
    const double make_queries =
        latent.query_rank > 0 ? (hidden + queries) * latent.query_rank : hidden * queries;
    const double out = static_cast<double>(values_width(config)) * hidden;
    const IndexerConfig& index = latent.indexer;
    const double index_queries = static_cast<double>(index.heads) * index.dim;
    const double choose = hidden * (index.dim + index.heads) + index_queries * latent.query_rank;
    return {make_queries + hidden * row + up + out + choose,
            config.heads * (row + latent.rank) + index_queries};
  }

  std::string describe(const ModelConfig& config) const override {
    const int topk = config.latent.indexer.topk;
    return fmt::format(
        "keys and values of a latent of {}{}",
        config.latent.rank,
        topk > 0 ? fmt::format(" at the {} positions that an indexer chooses", topk) : "");
  }

  std::unique_ptr<Mixer> make(MixerContext& context,
                              int layer,
                              const MixerWeights& weights) const override {
    return std::make_unique<LatentAttention>(
        context, layer, dynamic_cast<const LatentAttentionWeights&>(weights));
  }

 private:
  /// `up` has, head by head, rows of plain_dim keys, then value_dim values. Those of keys lie the
  /// other way round than there, as queries meet them.
  static void pack_heads(const StoredMatrix& up,
                         const ModelConfig& config,
                         const HeadRange& own,
                         Packer& packer,
                         LatentAttentionWeights& to) {
    const std::int64_t plain = config.latent.plain_dim;
    const std::int64_t value = config.latent.value_dim;
    const std::int64_t rank = config.latent.rank;
    to.head_keys = packer.head_matrices(config.heads, plain, rank);
    to.head_values = packer.head_matrices(config.heads, rank, value);
    packer.pool().parallel_for(own.size(), 1, [&](std::int64_t begin, std::int64_t end, int) {
      std::vector<float> rows(static_cast<std::size_t>((plain + value) * rank));
      std::vector<float> turned(static_cast<std::size_t>(plain * rank));
      for (std::int64_t h = own.begin + begin; h < own.begin + end; ++h) {
        up.read_rows(h * (plain + value), plain + value, DType::f32, bytes_of(rows.data()));
        for (std::int64_t i = 0; i < plain; ++i)
          for (std::int64_t j = 0; j < rank; ++j)
            turned[static_cast<std::size_t>(j * plain + i)] =
                rows[static_cast<std::size_t>(i * rank + j)];
        Packer::pack_f32(turned.data(), to.head_keys.views[static_cast<std::size_t>(h)]);
        Packer::pack_f32(rows.data() + plain * rank,
                         to.head_values.views[static_cast<std::size_t>(h)]);
      }
    });
  }
};

}  // namespace

const MixerKind& latent_attention_kind() {
  static const LatentAttentionKind kind;
  return kind;
}

}  // namespace ferry
