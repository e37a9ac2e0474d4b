#include "ferry/model/mixers/gated_delta_net.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/core/portable_math.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/mixers/delta_rates.h"

namespace ferry {

namespace {

constexpr float kLengthEps = 1e-6F;  // of the squared length of queries and keys

/// Columns of a projected row: of one key head, and of value heads from `head` on.
struct DeltaColumns {
  std::int64_t query = 0;
  std::int64_t key = 0;
  std::int64_t value = 0;
  std::int64_t gate = 0;
};

DeltaColumns columns_of(const DeltaConfig& delta, int key_head, int head) {
  if (!delta.by_key_head) {
    const std::int64_t value = 2 * delta.key_width() + std::int64_t{head} * delta.value_dim;
    return {.query = std::int64_t{key_head} * delta.key_dim,
            .key = delta.key_width() + std::int64_t{key_head} * delta.key_dim,
            .value = value,
            .gate = value + delta.value_width()};
  }
  const int readers = delta.value_heads / delta.key_heads;
  const std::int64_t values = std::int64_t{readers} * delta.value_dim;
  const std::int64_t first = key_head * 2 * (delta.key_dim + values);
  const std::int64_t value =
      first + 2 * delta.key_dim + std::int64_t{head - key_head * readers} * delta.value_dim;
  return {.query = first, .key = first + delta.key_dim, .value = value, .gate = value + values};
}

/// Columns of a token's rates for a value head: of its beta and of its decay.
std::array<std::int64_t, 2> rate_columns(const DeltaConfig& delta, int head) {
  if (!delta.by_key_head) return {head, delta.value_heads + head};
  const int readers = delta.value_heads / delta.key_heads;
  const int beta = head / readers * 2 * readers + head % readers;
  return {beta, beta + readers};
}

/// A member's columns of the projections.
std::array<ColumnRange, 4> own_columns(const DeltaConfig& delta, const GroupMember& who) {
  const HeadShare own = head_share(delta.value_heads, delta.key_heads, who);
  if (own.query.size() == 0) return {};
  if (delta.by_key_head) {
    const std::int64_t each = 2 * (delta.key_width() + delta.value_width()) / delta.key_heads;
    return {ColumnRange{own.kv.begin * each, own.kv.end * each}};
  }
  const auto columns = [](std::int64_t first, const HeadRange& heads, int width) {
    return ColumnRange{first + std::int64_t{heads.begin} * width,
                       first + std::int64_t{heads.end} * width};
  };
  return {columns(0, own.kv, delta.key_dim),
          columns(delta.key_width(), own.kv, delta.key_dim),
          columns(2 * delta.key_width(), own.query, delta.value_dim),
          columns(delta.channels(), own.query, delta.value_dim)};
}

/// x * sigmoid(x) in place; `scratch` has as many elements.
void silu(const Kernels& kernels, float* x, float* scratch, std::int64_t n) {
  kernels.sigmoid(x, scratch, n);
  for (std::int64_t i = 0; i < n; ++i) x[i] *= scratch[i];
}

std::vector<float> length_norm(int dim, double size) {
  return std::vector<float>(static_cast<std::size_t>(dim),
                            static_cast<float>(size / std::sqrt(static_cast<double>(dim))));
}

std::size_t float_bytes(std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); }

}  // namespace

DeltaShare::DeltaShare(const DeltaConfig& config, const GroupMember& member) {
  const HeadShare own = head_share(config.value_heads, config.key_heads, member);
  const int readers = config.value_heads / config.key_heads;
  for (int key_head = own.kv.begin; key_head < own.kv.end; ++key_head) {
    Group group{.key_head = key_head,
                .values = {std::max(own.query.begin, key_head * readers),
                           std::min(own.query.end, (key_head + 1) * readers)}};
    group.width = 2 * config.key_dim + std::int64_t{group.values.size()} * config.value_dim;
    group.inputs_at = floats;
    group.matrices_at = floats + (config.taps - 1) * group.width;
    floats =
        group.matrices_at + std::int64_t{group.values.size()} * config.key_dim * config.value_dim;
    groups.push_back(group);
  }
}

std::size_t DeltaShare::bytes() const { return float_bytes(floats); }

GatedDeltaNetScratch::GatedDeltaNetScratch(const MixerContext& context)
    : config(context.config),
      delta(config.delta),
      type(context.type),
      max_tokens(context.max_tokens),
      in_width(delta.channels() + delta.value_width()),
      group(context.group),
      share(delta, group.self()),
      pool(context.pool),
      gemm_scratch(context.gemm_scratch),
      output(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      query_norm(length_norm(delta.key_dim, 1 / std::sqrt(static_cast<double>(delta.key_dim)))),
      key_norm(length_norm(delta.key_dim, 1)),
      projected(rows_buffer(max_tokens, in_width, DType::f32)),
      rates(rows_buffer(max_tokens, 2 * delta.value_heads, DType::f32)),
      betas(rows_buffer(max_tokens, delta.value_heads, DType::f32)),
      decays(rows_buffer(max_tokens, delta.value_heads, DType::f32)),
      heads_out(rows_buffer(max_tokens, delta.value_width(), type)) {
  std::int64_t widest = 2 * delta.key_dim;
  for (const DeltaShare::Group& own : share.groups) widest = std::max(widest, own.width);
  for (int worker = 0; worker < pool.size(); ++worker)
    of_worker.push_back(rows_buffer(2, widest + delta.value_dim, DType::f32));
}

void GatedDeltaNetScratch::begin_step(const MixerStep& step) {
  if (step.number == step_) return;
  check_room(step, max_tokens);
  find_runs(step, runs);
  tokens = std::ssize(step.tokens);
  step_ = step.number;
}

/// Where one group of heads finds what it needs of a sequence.
struct GatedDeltaNet::Place {
  /// Queries, keys or values.
  struct Part {
    std::int64_t column = 0;   // of a projected row
    std::int64_t channel = 0;  // of the taps
    std::int64_t width = 0;
    std::int64_t at = 0;  // of a row of inputs
  };

  std::array<Part, 3> parts;
  std::int64_t gates = 0;             // column
  const float* old_inputs = nullptr;  // [taps - 1, width]
  const float* old_matrices = nullptr;
  float* inputs = nullptr;
  float* matrices = nullptr;
  std::int64_t width = 0;
  float* channels = nullptr;  // [width]: this thread's
  float* scratch = nullptr;   // [width]
  float* out = nullptr;       // [value_dim]
};

GatedDeltaNet::GatedDeltaNet(MixerContext& context, int layer, const GatedDeltaNetWeights& weights)
    : scratch_(context.shared<GatedDeltaNetScratch>()),
      layer_(layer),
      weights_(weights),
      normed_(rows_buffer(context.max_tokens, context.config.hidden, context.type)) {
  for (const float x : weights.log_rate) decay_rates_.push_back(exact_exp(x));
}

StateSpec GatedDeltaNet::state() const { return {.fixed_bytes = scratch_->share.bytes()}; }

void GatedDeltaNet::begin_step(const MixerStep& step) { scratch_->begin_step(step); }

void GatedDeltaNet::forward(const RowsView& normed, const MutableRowsView& residual) {
  const GatedDeltaNetScratch& s = *scratch_;
  if (s.tokens == 0) return;
  const std::ptrdiff_t bytes = row_bytes(s.config.hidden, s.type);
  s.pool.parallel_for(s.tokens, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      std::memcpy(normed_.data() + t * bytes, normed.row(t), static_cast<std::size_t>(bytes));
  });
  project(normed, s.tokens);
  const std::int64_t groups = std::ssize(s.share.groups);
  s.pool.parallel_for(
      std::ssize(s.runs) * groups, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
        for (std::int64_t i = begin; i < end; ++i)
          advance(s.runs[static_cast<std::size_t>(i / groups)],
                  s.share.groups[static_cast<std::size_t>(i % groups)],
                  true,
                  worker);
      });
  s.output.add(layer_,
               {.rows = {s.heads_out.data(), row_bytes(s.delta.value_width(), s.type)},
                .heads = s.delta.value_heads,
                .kv_heads = s.delta.key_heads,
                .head_dim = s.delta.value_dim},
               s.tokens,
               weights_.output.strips,
               {},
               residual);
}

void GatedDeltaNet::commit(std::span<const AcceptedTokens> sequences) {
  const GatedDeltaNetScratch& s = *scratch_;
  if (s.share.groups.empty()) return;
  const std::ptrdiff_t bytes = row_bytes(s.config.hidden, s.type);
  for (const AcceptedTokens& sequence : sequences) {
    if (sequence.accepted == 0 || sequence.accepted == sequence.tokens) continue;
    project({normed_.data() + sequence.first * bytes, bytes}, sequence.accepted);
    const Run run{.state = sequence.state, .first = 0, .tokens = sequence.accepted};
    s.pool.parallel_for(
        std::ssize(s.share.groups), 1, [&](std::int64_t begin, std::int64_t end, int worker) {
          for (std::int64_t i = begin; i < end; ++i)
            advance(run, s.share.groups[static_cast<std::size_t>(i)], false, worker);
        });
  }
}

void GatedDeltaNet::project(const RowsView& normed, std::int64_t tokens) {
  const GatedDeltaNetScratch& s = *scratch_;
  parallel_gemm(s.pool,
                s.gemm_scratch,
                {.in = normed,
                 .rows = tokens,
                 .out = {s.projected.data(), row_bytes(s.in_width, DType::f32)},
                 .out_type = DType::f32},
                weights_.in.strips,
                own_columns(s.delta, s.group.self()));
  parallel_gemm(s.pool,
                s.gemm_scratch,
                {.in = normed,
                 .rows = tokens,
                 .out = {s.rates.data(), row_bytes(2 * s.delta.value_heads, DType::f32)},
                 .out_type = DType::f32},
                weights_.rates.strips);
  s.pool.parallel_for(tokens, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) rates_of(t);
  });
}

/// Of every head of one token: how much it learns and how much it keeps.
void GatedDeltaNet::rates_of(std::int64_t token) {
  const GatedDeltaNetScratch& s = *scratch_;
  const int heads = s.delta.value_heads;
  const float* row = s.rates.as<float>() + token * 2 * heads;
  float* betas = s.betas.as<float>() + token * heads;
  float* decays = s.decays.as<float>() + token * heads;
  for (int head = 0; head < heads; ++head) {
    const auto [beta, decay] = rate_columns(s.delta, head);
    const auto h = static_cast<std::size_t>(head);
    betas[head] = row[beta];
    decays[head] = delta_decay(decay_rates_[h], double{row[decay]} + double{weights_.rate_bias[h]});
  }
  kernels_of(s.pool).sigmoid(betas, betas, heads);
}

/// The tokens of a sequence through one group of heads, one by one: from the copy of the state that
/// counts to the other one. `wanted`: the heads' results too.
void GatedDeltaNet::advance(const Run& run, const Group& group, bool wanted, int worker) {
  const GatedDeltaNetScratch& s = *scratch_;
  const DeltaConfig& delta = s.delta;
  const DeltaColumns columns = columns_of(delta, group.key_head, group.values.begin);
  const auto* old = reinterpret_cast<const float*>(run.state->fixed(layer_));
  auto* next = reinterpret_cast<float*>(run.state->next_fixed(layer_));
  float* own = s.of_worker[static_cast<std::size_t>(worker)].as<float>();
  const std::int64_t keys = std::int64_t{group.key_head} * delta.key_dim;
  const Place place{
      .parts = {{{columns.query, keys, delta.key_dim, 0},
                 {columns.key, delta.key_width() + keys, delta.key_dim, delta.key_dim},
                 {columns.value,
                  2 * delta.key_width() + std::int64_t{group.values.begin} * delta.value_dim,
                  std::int64_t{group.values.size()} * delta.value_dim,
                  std::int64_t{2} * delta.key_dim}}},
      .gates = columns.gate,
      .old_inputs = old + group.inputs_at,
      .old_matrices = old + group.matrices_at,
      .inputs = next + group.inputs_at,
      .matrices = next + group.matrices_at,
      .width = group.width,
      .channels = own,
      .scratch = own + group.width,
      .out = own + 2 * group.width};
  const std::int64_t matrix = std::int64_t{delta.key_dim} * delta.value_dim;
  for (std::int64_t i = 0; i < run.tokens; ++i) {
    const std::int64_t token = run.first + i;
    convolve(run, i, place);
    for (int v = 0; v < group.values.size(); ++v) {
      const int head = group.values.begin + v;
      const std::int64_t rate = token * delta.value_heads + head;
      kernels_of(s.pool).delta_rule(
          {.from = (i == 0 ? place.old_matrices : place.matrices) + v * matrix,
           .to = place.matrices + v * matrix,
           .key = place.channels + delta.key_dim,
           .query = place.channels,
           .value = place.channels + place.parts[2].at + std::int64_t{v} * delta.value_dim,
           .decay = s.decays.as<float>()[rate],
           .beta = s.betas.as<float>()[rate],
           .out = place.out,
           .key_dim = delta.key_dim,
           .value_dim = delta.value_dim});
      if (!wanted) continue;
      finish(
          place.out,
          s.projected.as<float>() + token * s.in_width + place.gates +
              std::int64_t{v} * delta.value_dim,
          s.heads_out.data() +
              row_bytes(token * delta.value_width() + std::int64_t{head} * delta.value_dim, s.type),
          place);
    }
  }
  keep_inputs(run, place);
}

/// What a part of the convolution reads for the run's token i, which may lie before the step.
const float* GatedDeltaNet::input(const Run& run,
                                  std::int64_t i,
                                  const Place& place,
                                  int part) const {
  const GatedDeltaNetScratch& s = *scratch_;
  const Place::Part& p = place.parts[static_cast<std::size_t>(part)];
  if (i < 0) return place.old_inputs + (s.delta.taps - 1 + i) * place.width + p.at;
  return s.projected.as<float>() + (run.first + i) * s.in_width + p.column;
}

/// The token's query, key and values: convolved, the first two of a fixed length.
void GatedDeltaNet::convolve(const Run& run, std::int64_t i, const Place& place) const {
  const GatedDeltaNetScratch& s = *scratch_;
  const Kernels& kernels = kernels_of(s.pool);
  const int taps = s.delta.taps;
  for (int part = 0; part < std::ssize(place.parts); ++part) {
    const Place::Part& p = place.parts[static_cast<std::size_t>(part)];
    float* sum = place.channels + p.at;
    std::fill_n(sum, p.width, 0.0F);
    for (int tap = 0; tap < taps; ++tap) {
      const float* in = input(run, i - (taps - 1) + tap, place, part);
      const float* weight = weights_.taps.data() + tap * s.delta.channels() + p.channel;
      for (std::int64_t c = 0; c < p.width; ++c) sum[c] += weight[c] * in[c];
    }
  }
  silu(kernels, place.channels, place.scratch, place.width);
  const int dim = s.delta.key_dim;
  const float eps = kLengthEps / static_cast<float>(dim);
  std::byte* query = bytes_of(place.channels);
  std::byte* key = bytes_of(place.channels + dim);
  kernels.rms_norm(query, DType::f32, s.query_norm.data(), eps, query, dim);
  kernels.rms_norm(key, DType::f32, s.key_norm.data(), eps, key, dim);
}

/// For the convolutions behind the run: its last tokens, and those before it where it is shorter.
void GatedDeltaNet::keep_inputs(const Run& run, const Place& place) const {
  const int kept = scratch_->delta.taps - 1;
  for (int k = 0; k < kept; ++k) {
    for (int part = 0; part < std::ssize(place.parts); ++part) {
      const Place::Part& p = place.parts[static_cast<std::size_t>(part)];
      std::copy_n(input(run, run.tokens - kept + k, place, part),
                  p.width,
                  place.inputs + k * place.width + p.at);
    }
  }
}

/// What a head gives: normed, times the gate.
void GatedDeltaNet::finish(float* out, const float* gate, std::byte* to, const Place& place) const {
  const GatedDeltaNetScratch& s = *scratch_;
  const Kernels& kernels = kernels_of(s.pool);
  const int dim = s.delta.value_dim;
  kernels.rms_norm(
      bytes_of(out), DType::f32, weights_.norm.data(), s.config.rms_eps, bytes_of(out), dim);
  kernels.sigmoid(gate, place.scratch, dim);
  for (int i = 0; i < dim; ++i) out[i] *= gate[i] * place.scratch[i];
  kernels.convert(bytes_of(out), DType::f32, to, s.type, dim);
}

namespace {

class GatedDeltaNetKind final : public MixerKind {
 public:
  std::string_view name() const override { return kGatedDeltaNet; }

  std::string_view unsupported(const ModelConfig& config, int) const override {
    return config.delta.key_heads <= 0 ? "a model without its sizes (linear_num_key_heads)" : "";
  }

  std::unique_ptr<MixerWeights> read(const ModelConfig& config,
                                     int,
                                     const TensorNames& names,
                                     TensorTable& table) const override {
    const DeltaConfig& delta = config.delta;
    const std::int64_t hidden = config.hidden;
    const std::int64_t values = delta.value_width();
    const int heads = delta.value_heads;
    const auto own = own_columns(delta, table.member());
    auto w = std::make_unique<GatedDeltaNetWeights>();
    if (delta.by_key_head) {
      table.matrix(w->in, {{names.delta_in, delta.channels() + values}}, hidden, {.columns = own});
      table.matrix(w->rates,
                   {{names.delta_rates, 2 * heads}},
                   hidden,
                   {.role = TensorRole::rates, .elements = true});
    } else {
      table.matrix(w->in,
                   {{names.delta_in, delta.channels()}, {names.delta_gate, values}},
                   hidden,
                   {.columns = own});
      table.matrix(w->rates,
                   {{names.delta_beta, heads}, {names.delta_decay, heads}},
                   hidden,
                   {.role = TensorRole::rates, .elements = true});
    }
    table.taps(w->taps, {names.delta_taps, delta.channels()}, delta.taps);
    by_tap(w->taps, delta.taps);
    table.vector(w->log_rate, {{names.delta_log_rate, heads}}, TensorRole::bias);
    table.vector(w->rate_bias, {{names.delta_rate_bias, heads}}, TensorRole::bias);
    table.vector(w->norm, {{names.delta_norm, delta.value_dim}}, TensorRole::norm);
    table.matrix(w->output, {{names.delta_out, hidden}}, values, {.shared_out = true});
    return w;
  }

  StateSpec state(const ModelConfig& config,
                  int,
                  WireType,
                  const GroupMember& member) const override {
    return {.fixed_bytes = DeltaShare(config.delta, member).bytes()};
  }

  std::int64_t widest_input(const ModelConfig& config) const override {
    return std::max<std::int64_t>(config.hidden, config.delta.value_width());
  }

  std::int64_t widest_gathered(const ModelConfig& config) const override {
    return config.delta.value_width();
  }

  MixerWork work(const ModelConfig& config) const override {
    const DeltaConfig& delta = config.delta;
    const auto in = static_cast<double>(delta.channels() + delta.value_width());
    const auto out = static_cast<double>(delta.value_width());
    return {.weights = config.hidden * (in + 2 * delta.value_heads + out)};
  }

  std::string describe(const ModelConfig& config) const override {
    return fmt::format("{} x {} heads of a gated delta net",
                       config.delta.key_heads,
                       config.delta.value_heads / config.delta.key_heads);
  }

  std::unique_ptr<Mixer> make(MixerContext& context,
                              int layer,
                              const MixerWeights& weights) const override {
    return std::make_unique<GatedDeltaNet>(
        context, layer, dynamic_cast<const GatedDeltaNetWeights&>(weights));
  }
};

}  // namespace

const MixerKind& gated_delta_net_kind() {
  static const GatedDeltaNetKind kind;
  return kind;
}

}  // namespace ferry
