// The caller's own experts behind moe_forward. Here they only scale, so that every sum is exact.
#include "ferry/moe_forward.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/launch.h"
#include "support/allocation_count.h"
#include "support/ranks.h"
#include "typed_rows.h"

namespace ferry {
namespace {

constexpr int kHidden = 16;
constexpr int kExperts = 5;
constexpr int kTopk = 3;

/// Tokens of one rank with small whole numbers in them, ids with some of none, weights 1, 1/2, 1/4.
struct Tokens {
  explicit Tokens(int tokens, int seed = 0) : count(tokens) {
    for (int i = 0; i < tokens * kHidden; ++i)
      hidden.push_back(static_cast<float>((i * 7 + seed) % 8));
    for (int i = 0; i < tokens * kTopk; ++i) {
      ids.push_back((i * 5 + seed) % (kExperts + 1) - 1);  // -1 .. 4
      weights.push_back(1.0F / static_cast<float>(1 << (i % kTopk)));
    }
  }

  /// Expert e multiplies by e + 1.
  std::vector<float> expected() const {
    std::vector<float> out(hidden.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t t = i / kHidden;
      for (std::size_t k = t * kTopk; k < (t + 1) * kTopk; ++k) {
        if (ids[k] >= 0) out[i] += weights[k] * hidden[i] * static_cast<float>(ids[k] + 1);
      }
    }
    return out;
  }

  TopK topk() const {
    return {.ids = {ids.data(), IndexView::Type::i32, rows_of(ids, kTopk).stride},
            .weights = rows_of(weights, kTopk)};
  }

  MoeTokens to(std::vector<float>& out) const {
    return {.hidden = rows_of(hidden, kHidden), .tokens = count, .out = into(out, kHidden)};
  }

  int count;
  std::vector<float> hidden;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

/// f32 rows times what `factor` says of the local slot.
template <class Factor>
void scale_rows(const ExpertRows& rows, Factor factor) {
  for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
    for (std::int64_t i = 0; i < rows.counts[slot]; ++i) {
      const auto* in = reinterpret_cast<const float*>(rows.in.row(rows.offsets[slot] + i));
      auto* out = reinterpret_cast<float*>(rows.out.row(rows.offsets[slot] + i));
      for (int h = 0; h < rows.hidden; ++h) out[h] = in[h] * factor(static_cast<int>(slot));
    }
  }
}

auto scaling_experts(const Placement& placement, Rank rank) {
  return [&placement, first = rank * placement.slots_per_rank()](const ExpertRows& rows) {
    scale_rows(rows,
               [&](int slot) { return static_cast<float>(placement.expert_of(first + slot) + 1); });
  };
}

MoeAllToAll::Options scaling_options(int max_tokens = 8) {
  return {
      .router = {.experts = kExperts, .topk = kTopk}, .hidden = kHidden, .max_tokens = max_tokens};
}

/// Runs `body(a2a, placement, rank)` on thread ranks.
template <class Body>
void on_thread_ranks(int ranks, const MoeAllToAll::Options& options, Body body) {
  on_ranks({.ranks = ranks}, [&](Transport& transport) {
    ThreadPool pool(1);
    MoeAllToAll a2a(options, transport, pool);
    body(a2a, Placement::identity(kExperts, ranks, options.redundant), transport.rank());
  });
}

TEST(MoeForward, TakesIdsOfAnyTypeAndStride) {
  on_thread_ranks(2, scaling_options(), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const Tokens tokens(6, rank);
    const auto check = [&]<class T>(T, IndexView::Type type) {
      constexpr int kWidth = kTopk + 2;  // something else lies between the rows
      std::vector<T> ids(product(tokens.count, kWidth), T{77});
      for (std::size_t i = 0; i < tokens.ids.size(); ++i)
        ids[i / kTopk * kWidth + i % kTopk] = static_cast<T>(tokens.ids[i]);
      std::vector<float> out(tokens.hidden.size(), 9);
      moe_forward_from_topk(a2a,
                            tokens.to(out),
                            {.ids = {ids.data(), type, rows_of(ids, kWidth).stride},
                             .weights = rows_of(tokens.weights, kTopk)},
                            scaling_experts(p, rank));
      EXPECT_EQ(out, tokens.expected());
    };
    check(std::int32_t{}, IndexView::Type::i32);
    check(std::uint32_t{}, IndexView::Type::u32);
    check(std::int64_t{}, IndexView::Type::i64);
  });
}

TEST(MoeForward, ReadsAndWritesRowsWithStridesInBf16) {
  on_thread_ranks(2, scaling_options(), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const Tokens tokens(5, rank);
    constexpr int kWidth = kHidden + 8;
    std::vector<std::uint16_t> hidden(product(tokens.count, kWidth), 0x7FC0);  // NaN between rows
    std::vector<std::uint16_t> out(hidden.size(), 0x1234);
    const RowsView rows = rows_of(hidden, kWidth);
    const MutableRowsView out_rows{reinterpret_cast<std::byte*>(out.data()), rows.stride};
    for (int t = 0; t < tokens.count; ++t) {
      kernels().convert(rows_of(tokens.hidden, kHidden).row(t),
                        DType::f32,
                        reinterpret_cast<std::byte*>(hidden.data() + product(t, kWidth)),
                        DType::bf16,
                        kHidden);
    }
    moe_forward_from_topk(a2a,
                          {.hidden = rows,
                           .type = DType::bf16,
                           .tokens = tokens.count,
                           .out = out_rows,
                           .out_type = DType::bf16},
                          tokens.topk(),
                          scaling_experts(p, rank));
    const std::vector<float> expected = tokens.expected();
    for (int t = 0; t < tokens.count; ++t) {
      std::vector<std::uint16_t> wanted(kWidth, 0x1234);
      kernels().convert(rows_of(expected, kHidden).row(t),
                        DType::f32,
                        reinterpret_cast<std::byte*>(wanted.data()),
                        DType::bf16,
                        kHidden);
      EXPECT_EQ(std::memcmp(out_rows.row(t), wanted.data(), wanted.size() * sizeof wanted[0]), 0);
    }
  });
}

TEST(MoeForward, RunsUnequalChunksAndRanksWithoutTokens) {
  on_thread_ranks(3, scaling_options(4), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    for (const int round : {0, 1, 2}) {
      const Tokens tokens((rank + round) % 3 * 9, rank);  // 0, 9, 18: 1, 3 and 5 exchanges
      std::vector<float> out(tokens.hidden.size());
      moe_forward_from_topk(a2a, tokens.to(out), tokens.topk(), scaling_experts(p, rank));
      EXPECT_EQ(out, tokens.expected());
    }
    EXPECT_EQ(a2a.dispatcher().stats().exchanges, 15U);
  });
}

TEST(MoeForward, AccumulatesAndWorksInPlace) {
  on_thread_ranks(2, scaling_options(4), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const Tokens tokens(10, rank);
    std::vector<float> out = tokens.hidden;  // as a residual stream would
    MoeTokens call = tokens.to(out);
    call.hidden = rows_of(out, kHidden);
    call.accumulate = true;
    moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(p, rank));
    std::vector<float> expected = tokens.expected();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += tokens.hidden[i];
    EXPECT_EQ(out, expected);
  });
}

TEST(MoeForward, TakesSlotsOfACallerThatBalancesItself) {
  MoeAllToAll::Options options = scaling_options();
  options.redundant = 3;  // 8 slots: 0 1 2 3 | 4 0 1 2
  on_thread_ranks(2, options, [](MoeAllToAll& a2a, const Placement&, Rank rank) {
    const std::vector<std::int64_t> slots = {5, 0, -1, 7, 4, 3};
    const std::vector<float> weights = {1, 2, 4, 1, 2, 4};
    const std::vector<float> hidden(2 * kHidden, 1);
    std::vector<float> out(hidden.size());
    moe_forward_from_topk(
        a2a,
        {.hidden = rows_of(hidden, kHidden), .tokens = 2, .out = into(out, kHidden)},
        {.ids = {slots.data(), IndexView::Type::i64, rows_of(slots, kTopk).stride},
         .weights = rows_of(weights, kTopk),
         .kind = TopK::Ids::physical},
        [&](const ExpertRows& rows) {
          scale_rows(rows, [&](int slot) { return static_cast<float>(rank * 4 + slot); });
        });
    EXPECT_EQ(out[0], 5.0F);
    EXPECT_EQ(out[kHidden], 7.0F + 2 * 4.0F + 4 * 3.0F);
  });
}

TEST(MoeForward, LeavesNoGapsBetweenSlotsAndLetsThePhasesBeRunByHand) {
  MoeAllToAll::Options options = scaling_options(4);
  options.exchange.format = DispatchFormat::ragged;
  options.row_alignment = 1;
  on_thread_ranks(2, options, [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const auto check_offsets = [](const ExpertRows& rows) {
      std::int64_t end = 0;
      for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
        EXPECT_EQ(rows.offsets[slot], end);
        end += rows.counts[slot];
      }
    };
    const Tokens tokens(4, rank);
    std::vector<float> out(tokens.hidden.size());
    moe_forward_from_topk(a2a, tokens.to(out), tokens.topk(), [&](const ExpertRows& rows) {
      check_offsets(rows);
      scaling_experts(p, rank)(rows);
    });
    EXPECT_EQ(out, tokens.expected());

    std::vector<SlotId> slots(tokens.ids.size());
    p.place(tokens.ids, kTopk, slots);
    Dispatcher& lane = a2a.dispatcher();
    lane.dispatch_send({.rows = rows_of(tokens.hidden, kHidden),
                        .tokens = tokens.count,
                        .slots = slots,
                        .weights = tokens.weights});
    const ExpertRows rows = lane.dispatch_recv();
    check_offsets(rows);
    scaling_experts(p, rank)(rows);
    lane.combine_send();
    std::vector<float> by_hand(out.size());
    lane.combine_recv({.weights = tokens.weights, .rows = into(by_hand, kHidden)});
    EXPECT_EQ(by_hand, out);
  });
}

TEST(MoeForward, FollowsThePlacementOfTheCall) {
  on_thread_ranks(2, scaling_options(), [](MoeAllToAll& a2a, const Placement&, Rank rank) {
    const Placement moved({4, 3, -1, 2, 1, 0}, kExperts, 2);
    const Tokens tokens(7, rank);
    std::vector<float> out(tokens.hidden.size());
    MoeTokens call = tokens.to(out);
    call.placement = &moved;
    moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(moved, rank));
    EXPECT_EQ(out, tokens.expected());
  });
}

TEST(MoeForward, BiasesTheChoiceOfBf16Logits) {
  on_thread_ranks(2, scaling_options(), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const std::vector<std::uint16_t> logits(kExperts);  // zeros: every score is 1/5
    const std::vector<float> bias = {0, 1, 0, 1, 1};    // experts 1, 3, 4
    const std::vector<float> hidden(kHidden, 5);
    std::vector<float> out(hidden.size());
    moe_forward(a2a,
                {.hidden = rows_of(hidden, kHidden), .tokens = 1, .out = into(out, kHidden)},
                {.rows = rows_of(logits, kExperts), .type = DType::bf16, .selection_bias = bias},
                scaling_experts(p, rank));
    for (const float x : out) EXPECT_NEAR(x, 2 + 4 + 5, 1e-5);
  });
}

void count_rows(const ExpertRows& rows, void* context) {
  scale_rows(rows, [](int) { return 2.0F; });
  for (const std::int32_t count : rows.counts) *static_cast<int*>(context) += count;
}

TEST(MoeForward, CallsAPlainFunctionWithItsContext) {
  on_thread_ranks(1, scaling_options(), [](MoeAllToAll& a2a, const Placement&, Rank) {
    const Tokens tokens(4);
    std::vector<float> out(tokens.hidden.size());
    int rows = 0;
    moe_forward_from_topk(a2a, tokens.to(out), tokens.topk(), {count_rows, &rows});
    // A token that names an expert twice sends one row.
    EXPECT_EQ(rows, 10);
  });
}

TEST(MoeForward, AllocatesNothingInACall) {
  for (const MoeA2ABackend backend : all_backends()) {
    if (backend == MoeA2ABackend::automatic) continue;
    for (const WireType wire : {WireType::f32, WireType::int8_block}) {
      SCOPED_TRACE(fmt::format("{} {}", backend_name(backend), wire_type_name(wire)));
      MoeAllToAll::Options options = scaling_options(4);
      options.exchange = exchange_options(backend);
      if (wire != WireType::f32) options.exchange.format = DispatchFormat::ragged;
      options.dispatch_wire = options.combine_wire = wire;
      on_thread_ranks(2, options, [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
        const Tokens tokens(10, rank);
        std::vector<float> out(tokens.hidden.size());
        for (int round = 0; round < 3; ++round) {
          const testing::AllocationCount allocations;
          moe_forward_from_topk(a2a, tokens.to(out), tokens.topk(), scaling_experts(p, rank));
          EXPECT_EQ(allocations.so_far(), 0);
        }
      });
    }
  }
}

TEST(MoeForward, TakesRowsThatAreEncodedAlready) {
  MoeAllToAll::Options options = scaling_options(4);
  options.dispatch_wire = WireType::int8;
  const Tokens tokens(10);
  std::vector<float> encoded_by_us(tokens.hidden.size());
  std::vector<float> encoded_before(tokens.hidden.size());
  std::vector<std::byte> wire(10 * wire_row_bytes(WireType::int8, kHidden));
  const auto stride = static_cast<std::ptrdiff_t>(wire_row_bytes(WireType::int8, kHidden));
  for (int t = 0; t < 10; ++t) {
    kernels().encode(reinterpret_cast<const std::byte*>(tokens.hidden.data() + t * kHidden),
                     DType::f32,
                     wire.data() + t * stride,
                     WireType::int8,
                     kHidden);
  }
  on_thread_ranks(1, options, [&](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    moe_forward_from_topk(a2a, tokens.to(encoded_by_us), tokens.topk(), scaling_experts(p, rank));
    MoeTokens call = tokens.to(encoded_before);
    call.hidden = {wire.data(), stride};
    call.encoded = true;
    moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(p, rank));
  });
  EXPECT_EQ(encoded_by_us, encoded_before);
}

TEST(MoeForward, RefusesABackendThatTheExpertsCannotRead) {
  MoeAllToAll::Options options = scaling_options();
  options.exchange = exchange_options(MoeA2ABackend::alltoallv);
  options.experts = {.name = "my kernel", .ragged = false};
  run_ranks({.ranks = 1}, [&](Transport& transport) {
    ThreadPool pool(1);
    EXPECT_THROW(MoeAllToAll(options, transport, pool), ConfigError);
    return 0;
  });
}

TEST(MoeForward, ReportsTokensWhoseExpertsAreGone) {
  MoeAllToAll::Options options = scaling_options(4);
  options.exchange = exchange_options(MoeA2ABackend::mooncake);
  run_ranks({.ranks = 2}, [&](Transport& transport) {
    const auto ready = transport.allocate_region(0, 1);
    ThreadPool pool(1);
    MoeAllToAll a2a(options, transport, pool);
    const Placement placement = Placement::identity(kExperts, 2);
    const Tokens tokens(10, transport.rank());
    std::vector<float> out(tokens.hidden.size());
    const auto call = [&] {
      moe_forward_from_topk(
          a2a, tokens.to(out), tokens.topk(), scaling_experts(placement, transport.rank()));
    };
    call();
    EXPECT_TRUE(a2a.lost_tokens().empty());
    // Who gives up while the other still reads takes its results along.
    others_are_ready(transport, *ready, 1, 0);
    if (transport.rank() == 1) {
      transport.abort("enough");
      return 0;
    }
    call();
    // Experts 3 and 4 were on rank 1; more tokens than an exchange takes, so indices span chunks.
    std::vector<int> expected;
    for (int t = 0; t < 10; ++t) {
      const auto ids = std::span(tokens.ids).subspan(static_cast<std::size_t>(t * kTopk), kTopk);
      if (std::any_of(ids.begin(), ids.end(), [](int id) { return id >= 3; }))
        expected.push_back(t);
    }
    EXPECT_EQ(std::vector<int>(a2a.lost_tokens().begin(), a2a.lost_tokens().end()), expected);
    return 0;
  });
}

TEST(MoeForward, ReturnsAfterTheTimeoutOfTheCallOrAtOnceWithoutARankKnownToBeGone) {
  MoeAllToAll::Options options = scaling_options();
  options.exchange = exchange_options(MoeA2ABackend::mooncake);
  on_thread_ranks(3, options, [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    if (rank == 2) return;  // never calls
    if (rank == 1) a2a.mask(2);
    const Tokens tokens(8, rank);
    std::vector<float> out(tokens.hidden.size());
    MoeTokens call = tokens.to(out);
    call.timeout = rank == 0 ? std::chrono::seconds(1) : std::chrono::seconds(20);
    moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(p, rank));
    EXPECT_TRUE(a2a.dispatcher().is_masked(2));
    std::vector<int> lost;  // expert 4 is on rank 2
    for (int t = 0; t < 8; ++t) {
      const auto ids = std::span(tokens.ids).subspan(static_cast<std::size_t>(t * kTopk), kTopk);
      if (std::count(ids.begin(), ids.end(), 4) > 0) lost.push_back(t);
    }
    EXPECT_EQ(std::vector<int>(a2a.lost_tokens().begin(), a2a.lost_tokens().end()), lost);
  });
}

TEST(MoeForward, NamesIdsThatDoNotExist) {
  on_thread_ranks(1, scaling_options(), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    Tokens tokens(2);
    tokens.ids[4] = kExperts;
    std::vector<float> out(tokens.hidden.size());
    try {
      moe_forward_from_topk(a2a, tokens.to(out), tokens.topk(), scaling_experts(p, rank));
      ADD_FAILURE() << "went through";
    } catch (const ConfigError& e) {
      EXPECT_STREQ(e.what(), "token 1: choice 1 is expert 5, outside 0..4; use -1 for none");
    }
  });
}

TEST(MoeForward, RefusesAPlacementOfAnotherShape) {
  on_thread_ranks(1, scaling_options(), [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const Placement other = Placement::identity(kExperts, 1, 1);
    const Tokens tokens(1);
    std::vector<float> out(tokens.hidden.size());
    MoeTokens call = tokens.to(out);
    call.placement = &other;
    EXPECT_THROW(moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(p, rank)),
                 BrokenContract);
  });
}

TEST(MoeForward, RefusesAReplicaChoiceThatDiffersBetweenRanksThatHoldTheSameTokens) {
  MoeAllToAll::Options options = scaling_options();
  options.tp = 2;
  on_thread_ranks(2, options, [](MoeAllToAll& a2a, const Placement& p, Rank rank) {
    const Placement own = p.choosing({.source = rank});
    const Tokens tokens(1);
    std::vector<float> out(tokens.hidden.size());
    MoeTokens call = tokens.to(out);
    call.placement = &own;
    EXPECT_THROW(moe_forward_from_topk(a2a, call, tokens.topk(), scaling_experts(p, rank)),
                 ConfigError);
  });
}

TEST(MoeForward, KnowsItsMemoryBeforehand) {
  const MoeAllToAll::Options small = scaling_options(8);
  MoeAllToAll::Options large = small;
  large.max_tokens = 64;
  EXPECT_GT(MoeAllToAll::mem_size(small, 2, {.load_store = true}), 8U * kHidden * sizeof(float));
  EXPECT_GT(MoeAllToAll::mem_size(large, 2, {.load_store = true}),
            MoeAllToAll::mem_size(small, 2, {.load_store = true}));
  EXPECT_GT(MoeAllToAll::mem_size(large, 2, {.load_store = false}),
            MoeAllToAll::mem_size(large, 2, {.load_store = true}));
}

}  // namespace
}  // namespace ferry
