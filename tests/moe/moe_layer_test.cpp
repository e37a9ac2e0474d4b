// The whole layer against the dense double-precision oracle, and against itself: the same bytes
// over ranks, threads, transports, batches and chunks.
#include "ferry/moe/moe_layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "ferry/launch.h"
#include "ferry/transport/track.h"
#include "packed_moe.h"
#include "support/faulty_transport.h"
#include "support/ranks.h"
#include "support/reference_moe.h"

namespace ferry {
namespace {

using testing::random_rows;
using testing::RankWeights;
using testing::ReferenceMoe;

struct Way {
  int ranks = 1;
  int threads = 1;
  int max_tokens = 64;
  int redundant = 0;
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  bool two_batch_overlap = false;
  int tp = 1;
  int slices = 1;                       // of every expert
  std::vector<float> router_bias = {};  // [E]
  bool network = false;                 // rows are pushed, and overtake each other
};

Gating gating_of(const ReferenceMoe& moe) {
  if (moe.limit == 0) return {};
  return {.kind = Gating::Kind::clamped,
          .alpha = static_cast<float>(moe.alpha),
          .limit = static_cast<float>(moe.limit)};
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return std::ranges::equal(std::as_bytes(std::span(a)), std::as_bytes(std::span(b)));
}

/// Rows [tokens, H] in f32, dealt to the groups in turn; the outputs put together again, the same
/// from all members. Only inproc can hand the results back.
std::vector<float> forward(const ReferenceMoe& moe,
                           const std::vector<float>& rows,
                           DType dtype,
                           const Way& run) {
  const int tokens = static_cast<int>(rows.size()) / moe.hidden;
  const auto width = static_cast<std::size_t>(moe.hidden);
  std::vector<std::vector<float>> outs(static_cast<std::size_t>(run.tp),
                                       std::vector<float>(rows.size()));
  run_ranks({.ranks = run.ranks}, [&](Transport& started) {
    std::optional<FaultyTransport> network;
    if (run.network) {
      network.emplace(
          started,
          Faults{.max_delay = std::chrono::microseconds(50), .reorder = true, .network = true});
    }
    Transport& transport = network ? *network : started;
    ThreadPool pool(run.threads);
    TensorGroup group({.tp = run.tp}, transport, pool);
    TensorGroup slices({.tp = run.slices}, transport, pool);
    TrackTransport track(transport, run.slices);
    const Placement placement = Placement::identity(moe.experts, track.size(), run.redundant);
    RankWeights weights(moe, placement, track.rank(), dtype, slices.self());
    weights.weights.router_bias = run.router_bias;
    MoeContext context(
        {.router = {.experts = moe.experts, .topk = moe.topk, .renormalize = moe.renormalize},
         .dispatcher = {.exchange = exchange_options(run.backend),
                        .slots_per_rank = placement.slots_per_rank(),
                        .hidden = moe.hidden,
                        .result_columns = static_cast<int>(slices.own_columns(moe.hidden).size()),
                        .topk = moe.topk,
                        .max_tokens = run.max_tokens,
                        .tp = run.tp / run.slices,
                        .dispatch_wire = wire_type(dtype),
                        .expert_type = wire_type(dtype),
                        .combine_wire = wire_type(dtype),
                        .row_weights = moe.weigh_rows},
         .two_batch_overlap = run.two_batch_overlap,
         .inter = moe.inter,
         .gating = gating_of(moe),
         .shared_inter = moe.shared_inter,
         .dtype = dtype,
         .group = &group,
         .slices = &slices},
        track,
        pool);
    MoeLayer layer(context, placement, weights.weights, 0);

    std::vector<float>& out = outs[static_cast<std::size_t>(group.member())];
    const auto element = dtype_bytes(dtype);
    std::vector<std::byte> mine;
    std::vector<int> of_token;
    for (int t = transport.rank() / run.tp; t < tokens; t += run.ranks / run.tp) {
      of_token.push_back(t);
      mine.resize(of_token.size() * width * element);
      kernels().convert(
          reinterpret_cast<const std::byte*>(rows.data() + static_cast<std::size_t>(t) * width),
          DType::f32,
          mine.data() + (of_token.size() - 1) * width * element,
          dtype,
          moe.hidden);
    }
    std::vector<float> result(of_token.size() * width);
    layer.forward({mine.data(), static_cast<std::ptrdiff_t>(width * element)},
                  static_cast<int>(of_token.size()),
                  result.data());
    for (std::size_t i = 0; i < of_token.size(); ++i) {
      std::memcpy(out.data() + static_cast<std::size_t>(of_token[i]) * width,
                  result.data() + i * width,
                  width * sizeof(float));
    }
    return 0;
  });
  for (const auto& out : outs) EXPECT_TRUE(same_bytes(out, outs[0]));
  return outs[0];
}

double worst_error(const ReferenceMoe& moe,
                   const std::vector<float>& rows,
                   const std::vector<float>& out) {
  double worst = 0;
  const auto width = static_cast<std::size_t>(moe.hidden);
  for (std::size_t t = 0; t * width < rows.size(); ++t) {
    const std::vector<double> expected = moe.forward(rows.data() + t * width);
    for (std::size_t h = 0; h < width; ++h)
      worst = std::max(worst, std::abs(expected[h] - static_cast<double>(out[t * width + h])));
  }
  return worst;
}

TEST(MoeLayer, AgreesWithTheDenseOracleInF32) {
  for (const auto& [renormalize, weigh_rows] :
       {std::pair(false, false), std::pair(true, false), std::pair(true, true)}) {
    ReferenceMoe moe = ReferenceMoe::random(40, 24, 7, 3, 20, 1);
    moe.renormalize = renormalize;
    moe.weigh_rows = weigh_rows;
    const std::vector<float> rows = random_rows(33, moe.hidden, 2);
    for (const MoeA2ABackend backend : {MoeA2ABackend::pplx, MoeA2ABackend::none}) {
      const auto out = forward(moe, rows, DType::f32, {.ranks = 2, .backend = backend});
      EXPECT_LT(worst_error(moe, rows, out), 1e-5);
    }
  }
}

/// Of the shared expert as well as of the routed ones.
TEST(MoeLayer, GatesAllExpertsAsTheFamilySays) {
  ReferenceMoe moe = ReferenceMoe::random(40, 24, 7, 3, 20, 1);
  const std::vector<float> rows = random_rows(9, moe.hidden, 2);
  moe.limit = 0.75;
  moe.alpha = 1.5;
  const auto out = forward(moe, rows, DType::f32, {.ranks = 2});
  EXPECT_LT(worst_error(moe, rows, out), 1e-5);
}

/// Rows that are written where peers read them, and rows that are copied there.
TEST(MoeLayer, GivesTheSameBytesFromItsInput) {
  const ReferenceMoe moe = ReferenceMoe::random(40, 24, 7, 3, 20, 1);
  constexpr int kTokens = 6;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    on_ranks({.ranks = 3}, [&](Transport& transport) {
      ThreadPool pool(2);
      const Placement placement = Placement::identity(moe.experts, 3, 0);
      RankWeights weights(moe, placement, transport.rank(), dtype);
      MoeContext::Options options{.router = {.experts = moe.experts, .topk = moe.topk},
                                  .dispatcher = {.slots_per_rank = placement.slots_per_rank(),
                                                 .hidden = moe.hidden,
                                                 .topk = moe.topk,
                                                 .max_tokens = kTokens,
                                                 .dispatch_wire = wire_type(dtype),
                                                 .expert_type = wire_type(dtype)},
                                  .inter = moe.inter,
                                  .shared_inter = moe.shared_inter,
                                  .dtype = dtype};
      MoeContext context(options, transport, pool);
      MoeLayer layer(context, placement, weights.weights, 0);
      options.two_batch_overlap = true;
      MoeContext two_lanes(options, transport, pool);
      EXPECT_FALSE(MoeLayer(two_lanes, placement, weights.weights, 0).input(kTokens));
      EXPECT_FALSE(layer.input(kTokens + 1)) << "more than one exchange";

      const std::optional<MutableRowsView> input = layer.input(kTokens);
      ASSERT_TRUE(input.has_value());
      const std::vector<float> rows =
          random_rows(kTokens, moe.hidden, 3U + static_cast<unsigned>(transport.rank()));
      std::vector<std::byte> mine(static_cast<std::size_t>(kTokens * input->stride));
      for (int round = 0; round < 3; ++round) {
        const int tokens = kTokens - round * transport.rank();
        kernels().convert(reinterpret_cast<const std::byte*>(rows.data()),
                          DType::f32,
                          mine.data(),
                          dtype,
                          std::int64_t{kTokens} * moe.hidden);
        std::vector<float> expected(rows.size());
        layer.forward({mine.data(), input->stride}, tokens, expected.data());
        std::memcpy(input->base, mine.data(), static_cast<std::size_t>(tokens * input->stride));
        std::vector<float> out(rows.size());
        layer.forward({input->base, input->stride}, tokens, out.data());
        EXPECT_EQ(out, expected);
      }
    });
  }
}

TEST(MoeContext, RefusesSlicesThatTheExchangeDoesNotKnow) {
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    ThreadPool pool(1);
    TensorGroup group({.tp = 2}, transport, pool);
    TrackTransport track(transport, 2);
    const auto context_of = [&](int result_columns, int tp) {
      MoeContext({.router = {.experts = 3, .topk = 2},
                  .dispatcher = {.slots_per_rank = 3,
                                 .hidden = 40,
                                 .result_columns = result_columns,
                                 .topk = 2,
                                 .max_tokens = 8,
                                 .tp = tp},
                  .inter = 24,
                  .group = &group,
                  .slices = &group},
                 track,
                 pool);
    };
    const int own = transport.rank() == 0 ? 16 : 24;  // of 3 panels, the last one of 8
    EXPECT_NO_THROW(context_of(own, 1));
    EXPECT_THROW(context_of(0, 1), BrokenContract);
    EXPECT_THROW(context_of(8, 1), BrokenContract);
    EXPECT_THROW(context_of(own, 2), Error);  // a track of one rank
  });
}

/// What a Dispatcher counts, all lanes together: nothing is dropped on the way up.
TEST(MoeContext, AddsUpWhatItsLanesCount) {
  const ReferenceMoe moe = ReferenceMoe::random(16, 8, 4, 4, 0, 1);
  constexpr int kTokens = 6;
  on_ranks({.ranks = 2, .faults = Faults{.network = true}}, [&](Transport& transport) {
    ThreadPool pool(1);
    const Placement placement = Placement::identity(moe.experts, 2, 0);
    RankWeights weights(moe, placement, transport.rank(), DType::f32);
    MoeContext context({.router = {.experts = moe.experts, .topk = moe.topk},
                        .dispatcher = {.slots_per_rank = placement.slots_per_rank(),
                                       .hidden = moe.hidden,
                                       .topk = moe.topk,
                                       .max_tokens = kTokens},
                        .two_batch_overlap = true,
                        .inter = moe.inter},
                       transport,
                       pool);
    MoeLayer layer(context, placement, weights.weights, 0);
    const std::vector<float> rows = random_rows(kTokens, moe.hidden, 2);
    const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * moe.hidden;
    std::vector<float> out(rows.size());
    layer.forward({reinterpret_cast<const std::byte*>(rows.data()), stride}, kTokens, out.data());
    // Every token goes to all four experts, two of them on the other rank, a host of its own: it
    // travels once, and two results come back.
    const auto row = static_cast<std::uint64_t>(stride);
    const ExchangeStats stats = context.exchange_stats();
    EXPECT_EQ(stats.exchanges, 2U);
    EXPECT_EQ(stats.bytes_logical, 2 * 4 * kTokens * row);
    EXPECT_EQ(stats.bytes_network, (1 + 2) * kTokens * row);
    EXPECT_EQ(stats.bytes_wire, stats.bytes_network);
  });
}

TEST(MoeLayer, StaysNearTheOracleInBf16) {
  const ReferenceMoe moe = ReferenceMoe::random(72, 48, 6, 2, 32, 3);
  const std::vector<float> rows = random_rows(20, moe.hidden, 4);
  EXPECT_LT(worst_error(moe, rows, forward(moe, rows, DType::bf16, {.ranks = 3})), 0.05);
}

/// Every way to run it must give the bytes of the plainest one.
void expect_the_same_bytes(const ReferenceMoe& moe) {
  const std::vector<float> rows = random_rows(45, moe.hidden, 6);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::vector<float> expected = forward(moe, rows, dtype, {});
    for (const Way& run :
         {Way{.ranks = 1, .threads = 2},
          Way{.ranks = 2},
          Way{.ranks = 3, .threads = 2},
          Way{.ranks = 4},
          Way{.ranks = 7},
          Way{.ranks = 2, .max_tokens = 4},
          Way{.ranks = 3, .redundant = 5},
          Way{.ranks = 2, .backend = MoeA2ABackend::alltoallv},
          Way{.ranks = 3, .backend = MoeA2ABackend::deepep},
          Way{.ranks = 3, .backend = MoeA2ABackend::mooncake},
          Way{.ranks = 4, .backend = MoeA2ABackend::ascend_fuseep},
          Way{.ranks = 1, .two_batch_overlap = true},
          Way{.ranks = 3, .max_tokens = 5, .two_batch_overlap = true},
          Way{.ranks = 2, .backend = MoeA2ABackend::ascend_fuseep, .two_batch_overlap = true}}) {
      EXPECT_EQ(
          std::memcmp(
              expected.data(), forward(moe, rows, dtype, run).data(), rows.size() * sizeof(float)),
          0)
          << run.ranks << " ranks, " << run.threads << " threads, " << run.max_tokens
          << " max tokens, " << run.redundant << " redundant, " << dtype_name(dtype);
    }
  }
}

TEST(MoeLayer, GivesTheSameBytesForEveryWayToRunIt) {
  expect_the_same_bytes(ReferenceMoe::random(72, 40, 9, 4, 24, 5));
}

/// Of 5 panels of results and 3 of what gate and up make: 2, 3 and 4 slices divide neither.
void expect_the_same_bytes_in_slices(const ReferenceMoe& moe,
                                     const std::vector<float>& rows,
                                     const std::vector<float>& router_bias = {}) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::vector<float> expected = forward(moe, rows, dtype, {.router_bias = router_bias});
    for (Way run : {Way{.ranks = 2, .tp = 2, .slices = 2},
                    Way{.ranks = 3, .threads = 2, .tp = 3, .slices = 3},
                    Way{.ranks = 4, .tp = 2, .slices = 2},
                    Way{.ranks = 4, .max_tokens = 4, .tp = 4, .slices = 2},
                    Way{.ranks = 4, .tp = 4, .slices = 4},
                    Way{.ranks = 4, .redundant = 5, .tp = 4, .slices = 2},
                    Way{.ranks = 4, .two_batch_overlap = true, .tp = 2, .slices = 2},
                    Way{.ranks = 4, .backend = MoeA2ABackend::alltoallv, .tp = 2, .slices = 2},
                    Way{.ranks = 4, .backend = MoeA2ABackend::ascend_fuseep, .tp = 4, .slices = 2},
                    Way{.ranks = 6, .backend = MoeA2ABackend::deepep, .tp = 2, .slices = 2},
                    Way{.ranks = 4, .tp = 2, .slices = 2, .network = true},
                    Way{.ranks = 4,
                    .backend = MoeA2ABackend::ascend_fuseep,
                    .tp = 4,
                    .slices = 2,
                    .network = true}}) {
      run.router_bias = router_bias;
      EXPECT_TRUE(same_bytes(forward(moe, rows, dtype, run), expected))
          << run.slices << " slices, groups of " << run.tp << ", " << run.ranks << " ranks, "
          << backend_name(run.backend) << ", " << run.redundant << " redundant, "
          << dtype_name(dtype) << (run.network ? ", over a network" : "");
    }
  }
}

TEST(MoeLayer, GivesTheSameBytesWithExpertsInSlices) {
  ReferenceMoe moe = ReferenceMoe::random(72, 40, 9, 4, 24, 5);
  const std::vector<float> rows = random_rows(45, moe.hidden, 6);
  expect_the_same_bytes_in_slices(moe, rows);
  expect_the_same_bytes_in_slices(moe, {rows.begin(), rows.begin() + moe.hidden});  // one token
  expect_the_same_bytes_in_slices(moe, {});
  moe.weigh_rows = true;
  expect_the_same_bytes_in_slices(moe, rows);
}

TEST(MoeLayer, GivesTheSameBytesWithSlicesOfOneExpertThatTakesAll) {
  const ReferenceMoe moe = ReferenceMoe::random(72, 20, 7, 1, 0, 5);
  std::vector<float> bias(7, -1000.0F);
  bias[4] = 1000.0F;
  expect_the_same_bytes_in_slices(moe, random_rows(45, moe.hidden, 6), bias);
}

/// More rows than the experts compute, and a gather carries, at a time.
TEST(MoeLayer, GivesTheSameBytesWithExpertsInSlicesInTurns) {
  const ReferenceMoe moe = ReferenceMoe::random(40, 700, 3, 2, 0, 5);
  const std::vector<float> rows = random_rows(2100, moe.hidden, 6);
  const auto expected = forward(moe, rows, DType::f32, {.max_tokens = 2100});
  const auto out =
      forward(moe, rows, DType::f32, {.ranks = 2, .max_tokens = 2100, .tp = 2, .slices = 2});
  EXPECT_TRUE(same_bytes(out, expected));
}

TEST(MoeLayer, GivesTheSameBytesForEveryWayWhereRowsAreWeighted) {
  ReferenceMoe moe = ReferenceMoe::random(72, 40, 9, 4, 24, 5);
  moe.weigh_rows = true;
  expect_the_same_bytes(moe);
}

TEST(MoeLayer, GivesARowTheSameBytesAloneAndAmongOthers) {
  const ReferenceMoe moe = ReferenceMoe::random(40, 24, 5, 2, 0, 7);
  const std::vector<float> rows = random_rows(37, moe.hidden, 8);
  const std::vector<float> together = forward(moe, rows, DType::bf16, {.ranks = 2});
  const auto width = static_cast<std::size_t>(moe.hidden);
  for (const std::size_t t : {0U, 17U, 36U}) {
    const std::vector<float> alone_rows(
        rows.begin() + static_cast<std::ptrdiff_t>(t * width),
        rows.begin() + static_cast<std::ptrdiff_t>((t + 1) * width));
    const std::vector<float> alone = forward(moe, alone_rows, DType::bf16, {.ranks = 1});
    EXPECT_EQ(std::memcmp(alone.data(), together.data() + t * width, width * sizeof(float)), 0);
  }
}

TEST(MoeLayer, RunsWithNoTokensAnywhere) {
  const ReferenceMoe moe = ReferenceMoe::random(16, 16, 4, 2, 16, 9);
  EXPECT_TRUE(forward(moe, {}, DType::f32, {.ranks = 3}).empty());
}

TEST(MoeLayer, PreReducingBackendIsStableAtAFixedNumberOfRanks) {
  const ReferenceMoe moe = ReferenceMoe::random(40, 24, 8, 4, 0, 10);
  const std::vector<float> rows = random_rows(21, moe.hidden, 11);
  const Way run{.ranks = 3, .backend = MoeA2ABackend::none};
  const auto first = forward(moe, rows, DType::bf16, run);
  EXPECT_EQ(
      std::memcmp(
          first.data(), forward(moe, rows, DType::bf16, run).data(), first.size() * sizeof(float)),
      0);
  EXPECT_LT(worst_error(moe, rows, first), 0.05);
}

}  // namespace
}  // namespace ferry
