// Experts on a device: what they compute against its definition, whole layers over ranks as bytes,
// and what is refused. Run by the emulator; on a device where there is one.
#include "ferry/moe/gpu_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "moe/gpu_layer.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using testing::EmulatedQueue;
using testing::GpuEmulator;
using testing::Layer;
using testing::LayerShape;
using testing::times;
using testing::wire_line;

using Bytes = std::vector<std::byte>;

constexpr Gating kClamped{.kind = Gating::Kind::clamped, .alpha = 1.702F, .limit = 1.5F};

std::vector<std::uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<std::uint32_t> bits;
  for (const float x : values) bits.push_back(std::bit_cast<std::uint32_t>(x));
  return bits;
}

/// Rows of bf16 or of the wire fp8, one behind the other, each with a weight that is none of the
/// others'.
struct Rows {
  WireType type = WireType::bf16;
  int hidden = 0;
  std::size_t row_bytes = 0;
  Bytes bytes;
  std::vector<float> weights;  // empty: none

  Rows(WireType t, std::size_t count, int h, bool weighed = false)
      : type(t), hidden(h), row_bytes(wire_row_bytes(t, h)) {
    std::mt19937 engine(3);
    std::normal_distribution<float> normal;
    std::vector<float> row(times(h, 1));
    for (std::size_t i = 0; i < count; ++i) {
      for (float& x : row) x = normal(engine);
      Bytes encoded(row_bytes);
      kernels().encode(
          reinterpret_cast<const std::byte*>(row.data()), DType::f32, encoded.data(), type, hidden);
      bytes.insert(bytes.end(), encoded.begin(), encoded.end());
      if (weighed) weights.push_back(0.25F + static_cast<float>(i) / 7.0F);
    }
  }

  std::size_t count() const { return bytes.size() / row_bytes; }

  testing::Line line(std::size_t i) const {
    return wire_line(std::span(bytes).subspan(i * row_bytes, row_bytes), type, hidden);
  }

  float weight(std::size_t i) const { return weights.empty() ? 1.0F : weights[i]; }

  /// The last of them alone.
  Rows last() const {
    Rows one = *this;
    one.bytes.erase(one.bytes.begin(), one.bytes.end() - static_cast<std::ptrdiff_t>(row_bytes));
    if (!weights.empty()) one.weights = {weights.back()};
    return one;
  }
};

template <class T>
std::unique_ptr<GpuMemory> upload(GpuQueue& queue, const std::vector<T>& from) {
  return ferry::upload<T>(queue, from);
}

/// Results of rows that lie in groups, with two rows that nobody has between them.
std::vector<float> results_of(const Layer& layer,
                              const std::vector<std::int32_t>& counts,
                              const Rows& rows,
                              GpuQueue& queue) {
  const std::size_t width = times(layer.shape.hidden, 1);
  Rows with_gaps = rows;
  with_gaps.bytes.clear();
  with_gaps.weights.clear();
  std::vector<std::int64_t> offsets;
  std::size_t taken = 0;
  for (const std::int32_t count : counts) {
    offsets.push_back(static_cast<std::int64_t>(with_gaps.count()));
    for (std::int32_t i = 0; i < count; ++i, ++taken) {
      const auto from = rows.bytes.begin() + static_cast<std::ptrdiff_t>(taken * rows.row_bytes);
      with_gaps.bytes.insert(
          with_gaps.bytes.end(), from, from + static_cast<std::ptrdiff_t>(rows.row_bytes));
      with_gaps.weights.push_back(rows.weight(taken));
    }
    with_gaps.bytes.resize(with_gaps.bytes.size() + 2 * rows.row_bytes, std::byte{0xff});
    with_gaps.weights.resize(with_gaps.weights.size() + 2, NAN);
  }
  const auto in = upload(queue, with_gaps.bytes);
  const auto weights = upload(queue, with_gaps.weights);
  const auto out = upload(queue, std::vector<float>(with_gaps.count() * width, -7.0F));
  const auto device_counts = upload(queue, counts);
  const auto device_offsets = upload(queue, offsets);
  GpuExperts experts(
      layer.options(layer.shape.experts, static_cast<std::int64_t>(with_gaps.count())),
      layer.weights(0, layer.shape.experts),
      queue);
  ExpertRows of_experts{.format = DispatchFormat::ragged,
                        .place = queue.place(),
                        .counts = {device_counts->as<const std::int32_t>(), counts.size()},
                        .offsets = {device_offsets->as<const std::int64_t>(), counts.size()},
                        .in = {in->data(), static_cast<std::ptrdiff_t>(rows.row_bytes)},
                        .in_type = rows.type,
                        .out = {out->data(), 4 * std::ptrdiff_t{layer.shape.hidden}},
                        .out_type = DType::f32,
                        .hidden = layer.shape.hidden};
  if (!rows.weights.empty())
    of_experts.weights = {weights->as<const float>(), with_gaps.weights.size()};
  experts.run(of_experts);
  const std::vector<float> all = download(queue, out->as<const float>(), with_gaps.count() * width);
  std::vector<float> results;
  for (std::size_t g = 0; g < counts.size(); ++g) {
    const auto first =
        all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(offsets[g]) * width);
    const auto last = first + static_cast<std::ptrdiff_t>(times(counts[g], 1) * width);
    results.insert(results.end(), first, last);
    EXPECT_TRUE(std::all_of(
        last, last + static_cast<std::ptrdiff_t>(2 * width), [](float x) { return x == -7.0F; }))
        << "rows behind group " << g;
  }
  return results;
}

std::size_t sum_of(const std::vector<std::int32_t>& counts) {
  std::size_t rows = 0;
  for (const std::int32_t count : counts) rows += static_cast<std::size_t>(count);
  return rows;
}

/// `exact`: the order of sums is known.
void expect_definition(GpuQueue& queue,
                       const Layer& layer,
                       const std::vector<std::int32_t>& counts,
                       const Rows& rows,
                       bool exact) {
  const std::size_t width = times(layer.shape.hidden, 1);
  const std::vector<float> got = results_of(layer, counts, rows, queue);
  ASSERT_EQ(got.size(), rows.count() * width);
  std::size_t row = 0;
  for (std::size_t group = 0; group < counts.size(); ++group) {
    for (std::int32_t i = 0; i < counts[group]; ++i, ++row) {
      const std::vector<float> expected =
          layer.result(static_cast<int>(group), rows.line(row), rows.weight(row));
      const auto own = got.begin() + static_cast<std::ptrdiff_t>(row * width);
      const std::vector<float> of_row(own, own + static_cast<std::ptrdiff_t>(width));
      if (exact) {
        ASSERT_EQ(bits_of(of_row), bits_of(expected)) << "row " << row;
        continue;
      }
      float greatest = 0;
      for (const float x : expected) greatest = std::max(greatest, std::fabs(x));
      for (std::size_t h = 0; h < width; ++h)
        ASSERT_LE(std::fabs(of_row[h] - expected[h]), 0.01F * greatest)
            << "row " << row << " column " << h;
    }
  }
}

struct Case {
  std::string name;
  LayerShape shape;
  WireType rows = WireType::bf16;
  bool weighed = false;
  std::vector<std::int32_t> counts;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

/// Depths that end in half a step and blocks of scales that are not whole; columns beyond a tile
/// and beyond a block; groups without rows, with one, with few, with more than few, with more than
/// a tile.
std::vector<Case> cases() {
  constexpr WeightType kFp8 = WeightType::fp8;
  const LayerShape small{.experts = 4, .hidden = 48, .inter = 80};
  const LayerShape codes{.experts = 3, .hidden = 144, .inter = 80, .type = kFp8};
  const LayerShape wide{.experts = 2, .hidden = 48, .inter = 272, .type = kFp8};
  LayerShape oss = small;
  oss.biased = true;
  oss.gating = kClamped;
  LayerShape oss_codes = codes;
  oss_codes.biased = true;
  oss_codes.gating = kClamped;
  return {
      {"Bf16", small, WireType::bf16, false, {0, 1, 70, 5}},
      {"Bf16RowsFp8", {.experts = 2, .hidden = 176, .inter = 16}, WireType::fp8, false, {17, 1}},
      {"Fp8", codes, WireType::bf16, false, {1, 0, 37}},
      {"Fp8RowsFp8", codes, WireType::fp8, false, {20, 0, 1}},
      {"Fp8ManyColumns", wide, WireType::bf16, false, {2, 1}},
      {"Clamped", oss, WireType::bf16, false, {3, 0, 18, 0}},
      {"ClampedFp8Weighed", oss_codes, WireType::fp8, true, {2, 17, 0}},
      {"Weighed", small, WireType::bf16, true, {0, 17, 0, 2}},
      {"Least", {.experts = 2}, WireType::bf16, false, {3, 0}},
      {"NoRows", {.experts = 1, .type = kFp8}, WireType::fp8, false, {0}}};
}

class GpuExpertsOf : public ::testing::TestWithParam<Case> {};

TEST_P(GpuExpertsOf, GiveTheBytesOfTheirDefinition) {
  const Case& c = GetParam();
  const Layer layer(c.shape);
  const Rows rows(c.rows, sum_of(c.counts), c.shape.hidden, c.weighed);
  for (const int blocks : {1, 3}) {
    if (slow_run() && (blocks == 1 || c.shape.hidden > 48)) continue;
    GpuEmulator device({.seed = static_cast<std::uint64_t>(blocks)});
    EmulatedQueue queue(device, blocks);
    expect_definition(queue, layer, c.counts, rows, true);
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, GpuExpertsOf, ::testing::ValuesIn(cases()), [](const auto& of) {
  return of.param.name;
});

TEST(GpuExperts, ARowsBitsDependOnItAndItsExpertAlone) {
  if (slow_run()) GTEST_SKIP() << "the emulator finds races itself";
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    const Layer layer({.experts = 2, .hidden = 48, .inter = 32, .type = type});
    const Rows rows(WireType::bf16, 67, 48);
    GpuEmulator device;
    EmulatedQueue queue(device, 2);
    std::vector<std::uint32_t> together = bits_of(results_of(layer, {0, 67}, rows, queue));
    together.erase(together.begin(), together.end() - 48);
    // As one of few rows in a tile, and with so many beside it that they fill one.
    EXPECT_EQ(bits_of(results_of(layer, {0, 1}, rows.last(), queue)), together);
  }
}

TEST(GpuExperts, ANanOfARowStaysInItsRow) {
  const Layer layer({.experts = 1, .hidden = 144, .inter = 16, .type = WeightType::fp8});
  Rows rows(WireType::fp8, 3, 144);
  rows.bytes[rows.row_bytes + 130] = std::byte{0xff};  // a code with an ordinary scale
  const float nan = NAN;
  std::memcpy(rows.bytes.data() + 2 * rows.row_bytes + 144, &nan, sizeof nan);  // a scale
  GpuEmulator device;
  EmulatedQueue queue(device, 1);
  const std::vector<float> got = results_of(layer, {3}, rows, queue);
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(std::isnan(got[i]), i >= 144) << "row " << i / 144 << " column " << i % 144;
}

// --- Layers over ranks -------------------------------------------------------------------------

constexpr int kTokens = 6, kTopk = 2, kLayerExperts = 4;

using MakeQueue = std::function<std::unique_ptr<GpuQueue>(int ranks)>;

std::vector<SlotId> routing() { return {0, 3, 1, 2, 3, 0, 2, -1, 1, 0, -1, -1}; }

std::vector<float> weights_of_tokens() {
  return {0.5F, 0.5F, 0.75F, 0.25F, 1, 0.125F, 0.3F, 0, 0.6F, 0.4F, 0, 0};
}

/// How rows come to experts.
struct Way {
  DispatchFormat format = DispatchFormat::ragged;
  WireType wire = WireType::bf16;
  bool by_graph = false;
};

/// What the tokens become, spread over so many ranks.
std::vector<float> layer_over(const Layer& layer,
                              const Rows& tokens,
                              int ranks,
                              const MakeQueue& make_queue,
                              const Way& way = {}) {
  const int hidden = layer.shape.hidden;
  std::vector<float> all(times(kTokens, hidden));
  on_ranks({.ranks = ranks}, [&](Transport& transport) {
    const std::unique_ptr<GpuQueue> queue = make_queue(ranks);
    const int slots = kLayerExperts / ranks;
    const int first = kTokens * transport.rank() / ranks;
    const int own = kTokens * (transport.rank() + 1) / ranks - first;
    const auto piece = [&](const auto& of, int width) {
      const auto begin = of.begin() + std::ptrdiff_t{first} * width;
      return std::vector(begin, begin + std::ptrdiff_t{own} * width);
    };
    DispatcherOptions options{.exchange = exchange_options(MoeA2ABackend::pplx),
                              .slots_per_rank = slots,
                              .hidden = hidden,
                              .topk = kTopk,
                              .max_tokens = kTokens,
                              .dispatch_wire = way.wire,
                              .combine_wire = WireType::f32};
    options.expert_type = way.wire;
    options.exchange.format = way.format;
    options.exchange.fixed_format = true;
    const auto rows = upload(*queue, piece(tokens.bytes, 2 * hidden));
    const auto ids = upload(*queue, piece(routing(), kTopk));
    const auto weights = upload(*queue, piece(weights_of_tokens(), kTopk));
    const auto count = upload(*queue, std::vector<int>{own});
    const auto out = upload(*queue, std::vector<float>(times(own, hidden)));
    GpuExchange exchange(options, transport, *queue);
    GpuExperts experts(layer.options(slots, exchange.expert_rows()),
                       layer.weights(transport.rank() * slots, slots),
                       *queue);
    const auto run_layer = [&] {
      exchange.dispatch_send({.rows = {rows->data(), 2 * std::ptrdiff_t{hidden}},
                              .type = DType::bf16,
                              .count = own,
                              .tokens = count->as<const int>(),
                              .slots = ids->as<const SlotId>()});
      experts.run(exchange.dispatch_recv());
      exchange.combine_send();
      exchange.combine_recv({.weights = weights->as<const float>(),
                             .rows = {out->data(), 4 * std::ptrdiff_t{hidden}}});
    };
    if (way.by_graph) {
      const std::unique_ptr<GpuGraph> graph = queue->capture(run_layer);
      FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
      for (const int held : {own / 2, own}) {
        queue->copy(count->data(), &held, sizeof held);
        graph->launch();
        exchange.synchronise();
      }
    } else {
      run_layer();
      run_layer();
    }
    exchange.synchronise();
    const std::vector<float> sums = download(*queue, out->as<const float>(), times(own, hidden));
    std::copy(sums.begin(), sums.end(), all.begin() + std::ptrdiff_t{first} * hidden);
    exchange.leave();
  });
  return all;
}

/// A token's row as experts read it.
testing::Line delivered(const Rows& tokens, std::size_t token, WireType wire) {
  if (wire == WireType::bf16) return tokens.line(token);
  Bytes encoded(wire_row_bytes(wire, tokens.hidden));
  kernels().encode(tokens.bytes.data() + token * tokens.row_bytes,
                   DType::bf16,
                   encoded.data(),
                   wire,
                   tokens.hidden);
  return wire_line(encoded, wire, tokens.hidden);
}

std::vector<float> expected_layer(const Layer& layer, const Rows& tokens, WireType wire) {
  const std::size_t width = times(layer.shape.hidden, 1);
  std::vector<float> all(times(kTokens, 1) * width);
  for (std::size_t entry = 0; entry < times(kTokens, kTopk); ++entry) {
    const SlotId expert = routing()[entry];
    if (expert < 0) continue;
    const std::size_t token = entry / kTopk;
    const std::vector<float> one = layer.result(expert, delivered(tokens, token, wire));
    for (std::size_t h = 0; h < width; ++h)
      all[token * width + h] = std::fma(weights_of_tokens()[entry], one[h], all[token * width + h]);
  }
  return all;
}

TEST(GpuLayer, IsTheSameBytesForAnyNumberOfRanks) {
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    const bool fp8 = type == WeightType::fp8;
    if (slow_run() && !fp8) continue;
    const Layer layer({.experts = kLayerExperts, .hidden = 48, .inter = 16, .type = type});
    const WireType wire = fp8 ? WireType::fp8 : WireType::bf16;
    const Rows tokens(WireType::bf16, kTokens, 48);
    const std::vector<float> expected = expected_layer(layer, tokens, wire);
    for (const int ranks : {1, 2, 4}) {
      if (slow_run() && ranks != 2) continue;
      GpuEmulator device({.seed = static_cast<std::uint64_t>(ranks)});
      const MakeQueue make_queue = [&](int) { return std::make_unique<EmulatedQueue>(device, 2); };
      for (const DispatchFormat format : {DispatchFormat::ragged, DispatchFormat::row_pointers}) {
        if (slow_run() && format == DispatchFormat::ragged) continue;
        EXPECT_EQ(layer_over(layer, tokens, ranks, make_queue, {format, wire}), expected)
            << ranks << " ranks, " << format_name(format) << ", " << wire_type_name(wire);
      }
      if (slow_run()) continue;
      EXPECT_EQ(layer_over(layer, tokens, ranks, make_queue, {.wire = wire, .by_graph = true}),
                expected)
          << ranks << " ranks, as a graph, " << wire_type_name(wire);
    }
  }
}

TEST(GpuExperts, RefuseByNameWhatTheyCannotDo) {
  const Layer layer({.experts = 2});
  GpuEmulator device;
  EmulatedQueue queue(device, 1);
  const auto refusal = [&](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  };
  const auto refuses = [&](const std::function<void()>& call, const std::string& words) {
    const std::string said = refusal(call);
    EXPECT_NE(said.find(words), std::string::npos) << said;
  };
  const GpuExpertWeights weights = layer.weights(0, 2);
  GpuExpertsOptions options = layer.options(2, 8);
  options.inter = 24;
  refuses([&] { GpuExperts(options, weights, queue); }, "multiples of 16");
  refuses([&] { GpuExperts(layer.options(5000, 8), weights, queue); }, "shared memory");
  GpuExpertWeights other = weights;
  other.type = WeightType::int8;
  refuses([&] { GpuExperts(layer.options(2, 8), other, queue); }, "bf16 or fp8, not int8");
  Layer codes({.experts = 2, .type = WeightType::fp8});
  codes.w2.numbers[16 * 16 + 3 * 16 + 5] = std::byte{0xff};
  refuses([&] { GpuExperts(layer.options(2, 8), codes.weights(0, 2), queue); },
          "w2 of expert 1, row 3, holds a NaN");
  GpuExperts experts(layer.options(2, 8), weights, queue);
  refuses([&] { experts.run({.in_type = WireType::int8, .hidden = 16}); }, "bf16 or fp8, not int8");
  EXPECT_THROW(experts.run({.in_type = WireType::bf16, .hidden = 32}), BrokenContract);
  other = weights;
  const std::vector<float> too_few(16);
  other.b2 = too_few;
  EXPECT_THROW(GpuExperts(layer.options(2, 8), other, queue), BrokenContract);
  other = weights;
  other.w13 = weights.w2;
  EXPECT_THROW(GpuExperts(layer.options(2, 8), other, queue), BrokenContract);
}

// --- On a device: skipped where there is none; tools/gpu_check.sh runs it ------------------------

TEST(GpuDeviceExperts, GiveTheProductsOfTheirDefinition) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  const std::unique_ptr<GpuQueue> queue = make_cuda_queue(0, 1);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Rows rows(c.rows, sum_of(c.counts), c.shape.hidden, c.weighed);
    expect_definition(*queue, Layer(c.shape), c.counts, rows, false);
  }
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    const Layer layer({.experts = 3, .hidden = 512, .inter = 256, .type = type});
    expect_definition(*queue, layer, {300, 0, 65}, Rows(WireType::bf16, 365, 512), false);
  }
}

// The bytes of a row do not depend on which shape of tile it is in, on a device either.
TEST(GpuDeviceExperts, ARowsBitsDependOnItAndItsExpertAlone) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  const std::unique_ptr<GpuQueue> queue = make_cuda_queue(0, 1);
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    const Layer layer({.experts = 1, .hidden = 512, .inter = 256, .type = type});
    const Rows rows(WireType::fp8, 365, 512);
    std::vector<std::uint32_t> together = bits_of(results_of(layer, {365}, rows, *queue));
    together.erase(together.begin(), together.end() - 512);
    EXPECT_EQ(bits_of(results_of(layer, {1}, rows.last(), *queue)), together);
  }
}

TEST(GpuDeviceExperts, LayersAreTheSameBytesForAnyNumberOfRanks) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  const Rows tokens(WireType::bf16, kTokens, 256);
  const MakeQueue make_queue = [](int ranks) { return make_cuda_queue(0, ranks); };
  for (const WeightType type : {WeightType::bf16, WeightType::fp8}) {
    const Layer layer({.experts = kLayerExperts, .hidden = 256, .inter = 128, .type = type});
    const WireType wire = type == WeightType::fp8 ? WireType::fp8 : WireType::bf16;
    const std::vector<float> one = layer_over(layer, tokens, 1, make_queue, {.wire = wire});
    EXPECT_EQ(layer_over(layer, tokens, 2, make_queue, {.wire = wire}), one);
    EXPECT_EQ(layer_over(layer, tokens, 4, make_queue, {.wire = wire}), one);
    EXPECT_EQ(layer_over(layer, tokens, 4, make_queue, {DispatchFormat::row_pointers, wire}), one);
    EXPECT_EQ(layer_over(layer, tokens, 4, make_queue, {.wire = wire, .by_graph = true}), one);
  }
}

}  // namespace
}  // namespace ferry
