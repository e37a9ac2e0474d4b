#include "ferry/model/mixers/short_conv.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "ferry/kernels/kernels.h"
#include "ferry/model/packer.h"

namespace ferry {

namespace {

/// Channels are dealt out to members like heads, where these divide them.
int pieces_of(const ModelConfig& config) {
  return config.hidden % config.heads == 0 ? config.heads : 1;
}

ColumnRange own_channels(const ModelConfig& config, const GroupMember& member) {
  const int pieces = pieces_of(config);
  const std::int64_t each = config.hidden / pieces;
  const HeadRange own = head_share(pieces, pieces, member).query;
  return {own.begin * each, own.end * each};
}

/// A member's columns of the projections, which are none where it has no channels.
std::array<ColumnRange, 3> own_columns(const ModelConfig& config, const GroupMember& member) {
  const ColumnRange own = own_channels(config, member);
  if (own.size() == 0) return {};
  const auto columns = [&](std::int64_t part) {
    return ColumnRange{part * config.hidden + own.begin, part * config.hidden + own.end};
  };
  return {columns(0), columns(1), columns(2)};
}

std::int64_t kept_tokens(const ModelConfig& config) { return config.conv_taps - 1; }

}  // namespace

ShortConvScratch::ShortConvScratch(const MixerContext& context)
    : config(context.config),
      type(context.type),
      max_tokens(context.max_tokens),
      hidden(config.hidden),
      group(context.group),
      heads(pieces_of(config)),
      own(own_channels(config, group.self())),
      pool(context.pool),
      gemm_scratch(context.gemm_scratch),
      output(max_tokens, config.hidden, type, group, pool, gemm_scratch),
      projected(rows_buffer(max_tokens, 3 * hidden, DType::f32)),
      out(rows_buffer(max_tokens, hidden, type)) {
  for (int worker = 0; worker < pool.size(); ++worker)
    sums.push_back(rows_buffer(1, own.size(), DType::f32));
}

void ShortConvScratch::begin_step(const MixerStep& step) {
  if (step.number == step_) return;
  check_room(step, max_tokens);
  find_runs(step, runs);
  tokens = std::ssize(step.tokens);
  step_ = step.number;
}

ShortConv::ShortConv(MixerContext& context, int layer, const ShortConvWeights& weights)
    : scratch_(context.shared<ShortConvScratch>()),
      layer_(layer),
      weights_(weights),
      inputs_(rows_buffer(context.max_tokens, scratch_->own.size(), DType::f32)) {}

StateSpec ShortConv::state() const {
  // It keeps no keys and values, whatever their type.
  return short_conv_kind().state(
      scratch_->config, layer_, wire_type(scratch_->type), scratch_->group.self());
}

void ShortConv::begin_step(const MixerStep& step) { scratch_->begin_step(step); }

void ShortConv::forward(const RowsView& normed, const MutableRowsView& residual) {
  const ShortConvScratch& s = *scratch_;
  if (s.tokens == 0) return;
  if (s.own.size() > 0) {
    parallel_gemm(s.pool,
                  s.gemm_scratch,
                  {.in = normed,
                   .rows = s.tokens,
                   .out = {s.projected.data(), row_bytes(3 * s.hidden, DType::f32)},
                   .out_type = DType::f32},
                  weights_.in.strips,
                  own_columns(s.config, s.group.self()));
    s.pool.parallel_for(
        s.tokens, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t t = begin; t < end; ++t) gate(t);
        });
    for (const Run& run : s.runs) {
      s.pool.parallel_for(
          run.tokens, kAttentionRowGrain, [&](std::int64_t begin, std::int64_t end, int worker) {
            float* sums = s.sums[static_cast<std::size_t>(worker)].as<float>();
            for (std::int64_t i = begin; i < end; ++i) convolve(run, i, sums);
          });
      keep(run, run.tokens);
    }
  }
  s.output.add(layer_,
               {.rows = {s.out.data(), row_bytes(s.hidden, s.type)},
                .heads = s.heads,
                .kv_heads = s.heads,
                .head_dim = s.hidden / s.heads},
               s.tokens,
               weights_.output.strips,
               {},
               residual);
}

void ShortConv::commit(std::span<const AcceptedTokens> sequences) {
  if (scratch_->own.size() == 0) return;
  for (const AcceptedTokens& sequence : sequences) {
    if (sequence.accepted == 0 || sequence.accepted == sequence.tokens) continue;
    keep({.state = sequence.state, .first = sequence.first, .tokens = sequence.tokens},
         sequence.accepted);
  }
}

/// What of a token is convolved.
void ShortConv::gate(std::int64_t token) {
  const ShortConvScratch& s = *scratch_;
  const float* before = s.projected.as<float>() + token * 3 * s.hidden + s.own.begin;
  const float* x = before + 2 * s.hidden;
  float* to = inputs_.as<float>() + token * s.own.size();
  for (std::int64_t c = 0; c < s.own.size(); ++c) to[c] = before[c] * x[c];
}

/// Of the run's token i, which may lie before the step.
const float* ShortConv::input(const Run& run, std::int64_t i) const {
  const ShortConvScratch& s = *scratch_;
  if (i >= 0) return inputs_.as<float>() + (run.first + i) * s.own.size();
  const auto* kept = reinterpret_cast<const float*>(run.state->fixed(layer_));
  return kept + (kept_tokens(s.config) + i) * s.own.size();
}

void ShortConv::convolve(const Run& run, std::int64_t i, float* sums) {
  const ShortConvScratch& s = *scratch_;
  const std::int64_t taps = s.config.conv_taps;
  std::fill_n(sums, s.own.size(), 0.0F);
  for (std::int64_t tap = 0; tap < taps; ++tap) {
    const float* in = input(run, i - (taps - 1) + tap);
    const float* weight = weights_.taps.data() + tap * s.hidden + s.own.begin;
    for (std::int64_t c = 0; c < s.own.size(); ++c) sums[c] += weight[c] * in[c];
  }
  const std::int64_t token = run.first + i;
  const float* behind = s.projected.as<float>() + token * 3 * s.hidden + s.hidden + s.own.begin;
  for (std::int64_t c = 0; c < s.own.size(); ++c) sums[c] *= behind[c];
  kernels_of(s.pool).convert(bytes_of(sums),
                             DType::f32,
                             s.out.data() + row_bytes(token * s.hidden + s.own.begin, s.type),
                             s.type,
                             s.own.size());
}

/// For who comes behind the run's first `tokens`: the last of these, and those before the step
/// where they are fewer.
void ShortConv::keep(const Run& run, std::int64_t tokens) {
  const ShortConvScratch& s = *scratch_;
  auto* to = reinterpret_cast<float*>(run.state->next_fixed(layer_));
  const std::int64_t kept = kept_tokens(s.config);
  for (std::int64_t k = 0; k < kept; ++k)
    std::copy_n(input(run, tokens - kept + k), s.own.size(), to + k * s.own.size());
}

namespace {

class ShortConvKind final : public MixerKind {
 public:
  std::string_view name() const override { return kShortConv; }

  std::string_view unsupported(const ModelConfig& config, int) const override {
    return config.conv_taps <= 0 ? "a model without its size (conv_L_cache)" : "";
  }

  std::unique_ptr<MixerWeights> read(const ModelConfig& config,
                                     int,
                                     const TensorNames& names,
                                     TensorTable& table) const override {
    const std::int64_t hidden = config.hidden;
    const auto own = own_columns(config, table.member());
    auto w = std::make_unique<ShortConvWeights>();
    table.matrix(w->in, {{names.conv_in, 3 * hidden}}, hidden, {.columns = own});
    table.taps(w->taps, {names.conv_taps, hidden}, config.conv_taps);
    by_tap(w->taps, config.conv_taps);
    table.matrix(w->output, {{names.conv_out, hidden}}, hidden, {.shared_out = true});
    return w;
  }

  StateSpec state(const ModelConfig& config,
                  int,
                  WireType,
                  const GroupMember& member) const override {
    const std::int64_t floats = kept_tokens(config) * own_channels(config, member).size();
    return {.fixed_bytes = static_cast<std::size_t>(floats) * sizeof(float)};
  }

  std::int64_t widest_input(const ModelConfig& config) const override { return config.hidden; }

  std::int64_t widest_gathered(const ModelConfig& config) const override { return config.hidden; }

  MixerWork work(const ModelConfig& config) const override {
    const double hidden = config.hidden;
    return {.weights = 4 * hidden * hidden + config.conv_taps * hidden};
  }

  std::string describe(const ModelConfig& config) const override {
    return fmt::format("convolutions over {} tokens", config.conv_taps);
  }

  std::unique_ptr<Mixer> make(MixerContext& context,
                              int layer,
                              const MixerWeights& weights) const override {
    return std::make_unique<ShortConv>(
        context, layer, dynamic_cast<const ShortConvWeights&>(weights));
  }
};

}  // namespace

const MixerKind& short_conv_kind() {
  static const ShortConvKind kind;
  return kind;
}

}  // namespace ferry
