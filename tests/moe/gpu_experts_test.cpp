// Experts on a device: what they compute against its definition, whole layers over ranks as bytes,
// and what is refused. Run by the emulator; on a device where there is one.
#include "ferry/moe/gpu_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/exchange/gpu/gpu_exchange.h"
#include "support/emulated_queue.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

using gpu::bf16_to_f32;
using gpu::f32_to_bf16;
using testing::EmulatedQueue;
using testing::GpuEmulator;

using Bf16s = std::vector<std::uint16_t>;

std::size_t times(int a, int b) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

/// Small numbers with few bits, so that sums keep some.
Bf16s random_bf16(std::size_t n, unsigned seed, float scale) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Bf16s out(n);
  for (std::uint16_t& x : out) x = f32_to_bf16(normal(engine) * scale);
  return out;
}

struct Layer {
  int experts, hidden, inter;
  Bf16s w13, w2;

  Layer(int e, int h, int i)
      : experts(e),
        hidden(h),
        inter(i),
        w13(random_bf16(times(e, 2 * i) * static_cast<std::size_t>(h), 1, 0.3F)),
        w2(random_bf16(times(e, h) * static_cast<std::size_t>(i), 2, 0.3F)) {}

  GpuExpertsOptions options(int slots, std::int64_t rows) const {
    return {.slots = slots, .hidden = hidden, .inter = inter, .max_rows = rows};
  }

  std::span<const std::uint16_t> w13_of(int first, int count) const {
    const std::size_t one = times(2 * inter, hidden);
    return std::span(w13).subspan(one * static_cast<std::size_t>(first),
                                  one * static_cast<std::size_t>(count));
  }

  std::span<const std::uint16_t> w2_of(int first, int count) const {
    const std::size_t one = times(inter, hidden);
    return std::span(w2).subspan(one * static_cast<std::size_t>(first),
                                 one * static_cast<std::size_t>(count));
  }

  /// The definition, in the emulator's order of sums: that of the depth, fused.
  std::vector<float> result(int expert, std::span<const std::uint16_t> row) const {
    const auto product =
        [](std::span<const std::uint16_t> matrix, std::span<const std::uint16_t> x, std::size_t r) {
          float sum = 0;
          for (std::size_t k = 0; k < x.size(); ++k)
            sum = std::fma(bf16_to_f32(x[k]), bf16_to_f32(matrix[r * x.size() + k]), sum);
          return sum;
        };
    const auto up_at = static_cast<std::size_t>(inter);
    Bf16s inner;
    for (std::size_t i = 0; i < up_at; ++i) {
      const float gate = product(w13_of(expert, 1), row, i);
      inner.push_back(
          f32_to_bf16(gate / (1.0F + expf(-gate)) * product(w13_of(expert, 1), row, up_at + i)));
    }
    std::vector<float> out;
    for (std::size_t h = 0; h < static_cast<std::size_t>(hidden); ++h)
      out.push_back(product(w2_of(expert, 1), inner, h));
    return out;
  }
};

template <class T>
std::unique_ptr<GpuMemory> upload(GpuQueue& queue, const std::vector<T>& from) {
  return ferry::upload<T>(queue, from);
}

/// Results of rows [.., hidden] that lie in groups, with two rows that nobody has between them.
std::vector<float> results_of(const Layer& layer,
                              const std::vector<std::int32_t>& counts,
                              const Bf16s& rows,
                              GpuQueue& queue) {
  const auto width = static_cast<std::size_t>(layer.hidden);
  Bf16s with_gaps;
  std::vector<std::int64_t> offsets;
  std::size_t taken = 0;
  for (const std::int32_t count : counts) {
    offsets.push_back(static_cast<std::int64_t>(with_gaps.size() / width));
    const auto from = rows.begin() + static_cast<std::ptrdiff_t>(taken * width);
    with_gaps.insert(with_gaps.end(),
                     from,
                     from + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(count) * width));
    with_gaps.resize(with_gaps.size() + 2 * width, 0x7fc0);
    taken += static_cast<std::size_t>(count);
  }
  const auto places = static_cast<std::int64_t>(with_gaps.size() / width);
  const auto in = upload(queue, with_gaps);
  const auto out = upload(queue, std::vector<float>(with_gaps.size(), -7.0F));
  const auto device_counts = upload(queue, counts);
  const auto device_offsets = upload(queue, offsets);
  GpuExperts experts(layer.options(layer.experts, places), layer.w13, layer.w2, queue);
  experts.run({.format = DispatchFormat::ragged,
               .place = queue.place(),
               .counts = {device_counts->as<const std::int32_t>(), counts.size()},
               .offsets = {device_offsets->as<const std::int64_t>(), counts.size()},
               .in = {in->data(), 2 * std::ptrdiff_t{layer.hidden}},
               .in_type = WireType::bf16,
               .out = {out->data(), 4 * std::ptrdiff_t{layer.hidden}},
               .out_type = DType::f32,
               .hidden = layer.hidden});
  const std::vector<float> all = download(queue, out->as<const float>(), with_gaps.size());
  std::vector<float> results;
  for (std::size_t g = 0; g < counts.size(); ++g) {
    const auto first =
        all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(offsets[g]) * width);
    const auto last =
        first + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(counts[g]) * width);
    results.insert(results.end(), first, last);
    EXPECT_TRUE(std::all_of(
        last, last + static_cast<std::ptrdiff_t>(2 * width), [](float x) { return x == -7.0F; }))
        << "rows behind group " << g;
  }
  return results;
}

/// `exact`: the order of sums is known.
void expect_definition(GpuQueue& queue,
                       const Layer& layer,
                       const std::vector<std::int32_t>& counts,
                       bool exact) {
  const auto width = static_cast<std::size_t>(layer.hidden);
  std::size_t rows = 0;
  for (const std::int32_t count : counts) rows += static_cast<std::size_t>(count);
  const Bf16s in = random_bf16(rows * width, 3, 1);
  const std::vector<float> got = results_of(layer, counts, in, queue);
  ASSERT_EQ(got.size(), in.size());
  std::size_t row = 0;
  for (std::size_t group = 0; group < counts.size(); ++group) {
    for (std::int32_t i = 0; i < counts[group]; ++i, ++row) {
      const auto own = std::span(in).subspan(row * width, width);
      const std::vector<float> expected = layer.result(static_cast<int>(group), own);
      float greatest = 0;
      for (const float x : expected) greatest = std::max(greatest, std::fabs(x));
      for (std::size_t h = 0; h < width; ++h) {
        const float difference = std::fabs(got[row * width + h] - expected[h]);
        ASSERT_LE(difference, exact ? 0.0F : 0.01F * greatest) << "row " << row << " column " << h;
      }
    }
  }
}

TEST(GpuExperts, GiveTheProductsOfTheirDefinition) {
  // A depth that ends in half a step; columns beyond a tile; groups without rows, with one, with
  // more than a tile.
  const Layer layer(4, 48, 80);
  for (const int blocks : {1, 3}) {
    GpuEmulator device({.seed = static_cast<std::uint64_t>(blocks)});
    EmulatedQueue queue(device, blocks);
    if (!slow_run()) expect_definition(queue, layer, {0, 1, 70, 5}, true);
  }
  GpuEmulator device;
  EmulatedQueue queue(device, 2);
  expect_definition(queue, Layer(1, 16, 16), {0}, true);
  expect_definition(queue, Layer(2, 16, 16), {3, 0}, true);
}

TEST(GpuExperts, ARowsBitsDependOnItAndItsExpertAlone) {
  if (slow_run()) GTEST_SKIP() << "the emulator finds races itself";
  const Layer layer(2, 48, 32);
  const Bf16s rows = random_bf16(times(67, 48), 5, 1);
  const auto count = static_cast<std::int32_t>(rows.size() / 48);
  GpuEmulator device;
  EmulatedQueue queue(device, 2);
  const std::vector<float> together = results_of(layer, {0, count}, rows, queue);
  const Bf16s last(rows.end() - 48, rows.end());
  const std::vector<float> alone = results_of(layer, {0, 1}, last, queue);
  EXPECT_EQ(alone, std::vector<float>(together.end() - 48, together.end()));
}

// --- Layers over ranks -------------------------------------------------------------------------

constexpr int kTokens = 6, kTopk = 2, kLayerExperts = 4;

using MakeQueue = std::function<std::unique_ptr<GpuQueue>(int ranks)>;

std::vector<SlotId> routing() { return {0, 3, 1, 2, 3, 0, 2, -1, 1, 0, -1, -1}; }

std::vector<float> weights_of_tokens() {
  return {0.5F, 0.5F, 0.75F, 0.25F, 1, 0.125F, 0.3F, 0, 0.6F, 0.4F, 0, 0};
}

/// What the tokens become, spread over so many ranks.
std::vector<float> layer_over(const Layer& layer,
                              const Bf16s& tokens,
                              int ranks,
                              const MakeQueue& make_queue,
                              DispatchFormat format = DispatchFormat::ragged,
                              bool by_graph = false) {
  std::vector<float> all(tokens.size());
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
                              .hidden = layer.hidden,
                              .topk = kTopk,
                              .max_tokens = kTokens,
                              .dispatch_wire = WireType::bf16,
                              .combine_wire = WireType::f32};
    options.expert_type = WireType::bf16;
    options.exchange.format = format;
    options.exchange.fixed_format = true;
    const auto rows = upload(*queue, piece(tokens, layer.hidden));
    const auto ids = upload(*queue, piece(routing(), kTopk));
    const auto weights = upload(*queue, piece(weights_of_tokens(), kTopk));
    const auto count = upload(*queue, std::vector<int>{own});
    const auto out = upload(*queue, std::vector<float>(times(own, layer.hidden)));
    GpuExchange exchange(options, transport, *queue);
    GpuExperts experts(layer.options(slots, exchange.expert_rows()),
                       layer.w13_of(transport.rank() * slots, slots),
                       layer.w2_of(transport.rank() * slots, slots),
                       *queue);
    const auto run_layer = [&] {
      exchange.dispatch_send({.rows = {rows->data(), 2 * std::ptrdiff_t{layer.hidden}},
                              .type = DType::bf16,
                              .tokens = count->as<const int>(),
                              .slots = ids->as<const SlotId>()});
      experts.run(exchange.dispatch_recv());
      exchange.combine_send();
      exchange.combine_recv({.weights = weights->as<const float>(),
                             .rows = {out->data(), 4 * std::ptrdiff_t{layer.hidden}}});
    };
    if (by_graph) {
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
    const std::vector<float> sums =
        download(*queue, out->as<const float>(), times(own, layer.hidden));
    std::copy(sums.begin(), sums.end(), all.begin() + std::ptrdiff_t{first} * layer.hidden);
    exchange.leave();
  });
  return all;
}

std::vector<float> expected_layer(const Layer& layer, const Bf16s& tokens) {
  const auto width = static_cast<std::size_t>(layer.hidden);
  std::vector<float> all(tokens.size());
  for (std::size_t entry = 0; entry < times(kTokens, kTopk); ++entry) {
    const SlotId expert = routing()[entry];
    if (expert < 0) continue;
    const std::size_t token = entry / kTopk;
    const std::vector<float> one =
        layer.result(expert, std::span(tokens).subspan(token * width, width));
    for (std::size_t h = 0; h < width; ++h)
      all[token * width + h] = std::fma(weights_of_tokens()[entry], one[h], all[token * width + h]);
  }
  return all;
}

TEST(GpuLayer, IsTheSameBytesForAnyNumberOfRanks) {
  const int hidden = slow_run() ? 16 : 48;
  const Layer layer(kLayerExperts, hidden, hidden == 16 ? 16 : 32);
  const Bf16s tokens = random_bf16(times(kTokens, hidden), 7, 1);
  const std::vector<float> expected = expected_layer(layer, tokens);
  for (const int ranks : {1, 2, 4}) {
    if (slow_run() && ranks != 2) continue;
    GpuEmulator device({.seed = static_cast<std::uint64_t>(ranks)});
    const MakeQueue make_queue = [&](int) { return std::make_unique<EmulatedQueue>(device, 2); };
    for (const DispatchFormat format : {DispatchFormat::ragged, DispatchFormat::row_pointers}) {
      if (slow_run() && format == DispatchFormat::ragged) continue;
      EXPECT_EQ(layer_over(layer, tokens, ranks, make_queue, format), expected)
          << ranks << " ranks, " << format_name(format);
    }
    if (slow_run()) continue;
    EXPECT_EQ(layer_over(layer, tokens, ranks, make_queue, DispatchFormat::ragged, true), expected)
        << ranks << " ranks, as a graph";
  }
}

TEST(GpuExperts, RefuseByNameWhatTheyCannotDo) {
  const Layer layer(2, 16, 16);
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
  GpuExpertsOptions options = layer.options(2, 8);
  options.inter = 24;
  EXPECT_NE(
      refusal([&] { GpuExperts(options, layer.w13, layer.w2, queue); }).find("multiples of 16"),
      std::string::npos);
  options = layer.options(5000, 8);
  EXPECT_NE(refusal([&] {
              GpuExperts(
                  options, Bf16s(times(5000, 2 * 16 * 16)), Bf16s(times(5000, 16 * 16)), queue);
            }).find("shared memory"),
            std::string::npos);
  GpuExperts experts(layer.options(2, 8), layer.w13, layer.w2, queue);
  EXPECT_NE(refusal([&] { experts.run({.in_type = WireType::fp8, .hidden = 16}); }).find("fp8"),
            std::string::npos);
  EXPECT_THROW(experts.run({.in_type = WireType::bf16, .hidden = 32}), BrokenContract);
  EXPECT_THROW(GpuExperts(layer.options(2, 8), layer.w2, layer.w2, queue), BrokenContract);
}

// --- On a device: skipped where there is none; tools/gpu_check.sh runs it ------------------------

TEST(GpuDeviceExperts, GiveTheProductsOfTheirDefinition) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  const std::unique_ptr<GpuQueue> queue = make_cuda_queue(0, 1);
  expect_definition(*queue, Layer(4, 48, 80), {0, 1, 70, 5}, false);
  expect_definition(*queue, Layer(3, 512, 256), {300, 0, 65}, false);
}

TEST(GpuDeviceExperts, LayersAreTheSameBytesForAnyNumberOfRanks) {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) GTEST_SKIP() << devices.why_none;
  const Layer layer(kLayerExperts, 256, 128);
  const Bf16s tokens = random_bf16(times(kTokens, 256), 7, 1);
  const MakeQueue make_queue = [](int ranks) { return make_cuda_queue(0, ranks); };
  const std::vector<float> one = layer_over(layer, tokens, 1, make_queue);
  EXPECT_EQ(layer_over(layer, tokens, 2, make_queue), one);
  EXPECT_EQ(layer_over(layer, tokens, 4, make_queue), one);
  EXPECT_EQ(layer_over(layer, tokens, 4, make_queue, DispatchFormat::row_pointers), one);
  EXPECT_EQ(layer_over(layer, tokens, 4, make_queue, DispatchFormat::ragged, true), one);
}

}  // namespace
}  // namespace ferry
