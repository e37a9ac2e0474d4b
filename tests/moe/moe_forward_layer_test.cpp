// The caller's own experts behind moe_forward: the bytes of MoeLayer where they are the same
// experts.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "ferry/moe/moe_layer.h"
#include "ferry/moe_forward.h"
#include "packed_moe.h"
#include "support/ranks.h"
#include "typed_rows.h"

namespace ferry {
namespace {

using testing::random_rows;
using testing::RankWeights;
using testing::ReferenceMoe;

struct Way {
  std::string name;
  int ranks = 1;
  int max_tokens = 32;
  int redundant = 0;
  DType dtype = DType::f32;
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  std::string transport = "inproc";
  bool row_weights = false;
};

void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

class MoeForwardWays : public ::testing::TestWithParam<Way> {};

/// One rank: MoeLayer and both forms of moe_forward over the same rows.
void compare_with_layer(const Way& way, Transport& transport) {
  ReferenceMoe moe = ReferenceMoe::random(40, 24, 7, 3, 0, 5);
  moe.renormalize = true;
  const int tokens = transport.rank() == 1 ? 0 : 11 + transport.rank();
  const Placement placement = Placement::identity(moe.experts, way.ranks, way.redundant);
  RankWeights weights(moe, placement, transport.rank(), way.dtype);
  ThreadPool pool(2);

  const std::vector<float> rows =
      random_rows(tokens, moe.hidden, 6U + static_cast<unsigned>(transport.rank()));
  std::vector<std::byte> hidden(rows.size() * dtype_bytes(way.dtype));
  const auto elements = static_cast<std::int64_t>(rows.size());
  kernels().convert(bytes_of(rows), DType::f32, hidden.data(), way.dtype, elements);
  const RowsView hidden_rows{hidden.data(),
                             static_cast<std::ptrdiff_t>(dtype_bytes(way.dtype)) * moe.hidden};

  const RouterOptions router{
      .experts = moe.experts, .topk = moe.topk, .renormalize = moe.renormalize};
  MoeContext context({.router = router,
                      .dispatcher = {.exchange = exchange_options(way.backend),
                                     .slots_per_rank = placement.slots_per_rank(),
                                     .hidden = moe.hidden,
                                     .topk = moe.topk,
                                     .max_tokens = way.max_tokens,
                                     .dispatch_wire = wire_type(way.dtype),
                                     .expert_type = wire_type(way.dtype),
                                     .combine_wire = wire_type(way.dtype),
                                     .row_weights = way.row_weights},
                      .inter = moe.inter,
                      .dtype = way.dtype},
                     transport,
                     pool);
  MoeLayer layer(context, placement, weights.weights, 0);
  std::vector<float> expected(rows.size());
  layer.forward(hidden_rows, tokens, expected.data());

  MoeAllToAll a2a({.router = router,
                   .redundant = way.redundant,
                   .exchange = exchange_options(way.backend),
                   .hidden = moe.hidden,
                   .max_tokens = way.max_tokens,
                   .dispatch_wire = wire_type(way.dtype),
                   .expert_type = wire_type(way.dtype),
                   .combine_wire = wire_type(way.dtype),
                   .row_weights = way.row_weights},
                  transport,
                  pool);
  Experts experts({.hidden = moe.hidden,
                   .inter = moe.inter,
                   .dtype = way.dtype,
                   .max_rows = 64,
                   .row_weights = way.row_weights},
                  pool);
  const auto kernel = [&](const ExpertRows& work) { experts.run(work, weights.weights.local); };

  // The router reads the rows as the layer does, in f32 after rounding to the model's type.
  std::vector<float> read(rows.size());
  kernels().convert(
      hidden.data(), way.dtype, reinterpret_cast<std::byte*>(read.data()), DType::f32, elements);
  std::vector<float> logits(product(tokens, moe.experts));
  parallel_gemm(pool,
                GemmScratch(pool, DType::f32, moe.hidden),
                {.in = rows_of(read, moe.hidden),
                 .rows = tokens,
                 .weights = &weights.weights.router,
                 .out = into(logits, moe.experts)});
  std::vector<float> out(rows.size());
  const MoeTokens call{
      .hidden = hidden_rows, .type = way.dtype, .tokens = tokens, .out = into(out, moe.hidden)};
  moe_forward(a2a, call, {.rows = rows_of(logits, moe.experts)}, kernel);
  EXPECT_EQ(out, expected);

  std::vector<ExpertId> ids(product(tokens, moe.topk));
  std::vector<float> topk_weights(ids.size());
  route(router, logits, ids, topk_weights);
  std::fill(out.begin(), out.end(), -1.0F);
  moe_forward_from_topk(a2a,
                        call,
                        {.ids = {ids.data(), IndexView::Type::i32, rows_of(ids, moe.topk).stride},
                         .weights = rows_of(topk_weights, moe.topk)},
                        kernel);
  EXPECT_EQ(out, expected);
}

TEST_P(MoeForwardWays, GivesTheBytesOfMoeLayer) {
  on_ranks({.kind = {GetParam().transport}, .ranks = GetParam().ranks},
           [](Transport& transport) { compare_with_layer(GetParam(), transport); });
}

INSTANTIATE_TEST_SUITE_P(
    Moe,
    MoeForwardWays,
    ::testing::Values(
        Way{.name = "OneRank"},
        Way{.name = "TwoRanksInChunks", .ranks = 2, .max_tokens = 4},
        Way{.name = "Bf16Replicas", .ranks = 3, .redundant = 4, .dtype = DType::bf16},
        Way{.name = "Alltoallv", .ranks = 2, .backend = MoeA2ABackend::alltoallv},
        Way{.name = "Mooncake", .ranks = 3, .backend = MoeA2ABackend::mooncake},
        Way{.name = "Fused", .ranks = 3, .max_tokens = 6, .backend = MoeA2ABackend::ascend_fuseep},
        Way{.name = "RowWeights", .ranks = 3, .dtype = DType::bf16, .row_weights = true},
        Way{.name = "RowWeightsSummedPerRank",
            .ranks = 2,
            .max_tokens = 5,
            .backend = MoeA2ABackend::none,
            .row_weights = true},
        Way{.name = "NoneInChunks", .ranks = 2, .max_tokens = 5, .backend = MoeA2ABackend::none},
        Way{.name = "Shm", .ranks = 2, .max_tokens = 7, .dtype = DType::bf16, .transport = "shm"}),
    [](const auto& way) { return way.param.name; });

}  // namespace
}  // namespace ferry
