#include "ferry/compute/tensor_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ferry/compute/gated_ffn.h"
#include "support/ranks.h"

namespace ferry {
namespace {

struct Packed {
  Buffer memory;
  PackedMatrix view;
};

std::vector<float> random_floats(std::mt19937& gen, std::int64_t n) {
  std::normal_distribution<float> distribution(0.0F, 1.0F);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& x : values) x = distribution(gen);
  return values;
}

const std::byte* bytes_of(const std::vector<float>& x) {
  return reinterpret_cast<const std::byte*>(x.data());
}

std::byte* bytes_of(std::vector<float>& x) { return reinterpret_cast<std::byte*>(x.data()); }

/// A random matrix [k, n] in f32. Gated: n / 2 columns each of gate and up, whose panels alternate.
Packed random_matrix(std::mt19937& gen, std::int64_t k, std::int64_t n, bool gated = false) {
  Packed m;
  m.view = {.type = WeightType::f32, .k = k, .n = n};
  const auto panels = gated ? m.view.gated_panels() : m.view.panels();
  m.memory = Buffer(static_cast<std::size_t>(panels) * m.view.panel_bytes());
  m.view.data = m.memory.data();
  for (int half = 0; half < (gated ? 2 : 1); ++half) {
    const std::int64_t columns = gated ? n / 2 : n;
    const std::vector<float> source = random_floats(gen, columns * k);
    pack_matrix({.type = WeightType::f32,
                 .source = bytes_of(source),
                 .source_type = DType::f32,
                 .k = k,
                 .n = columns,
                 .out = m.memory.data() + static_cast<std::size_t>(half) * m.view.panel_bytes(),
                 .panel_step = gated ? 2 : 1});
  }
  return m;
}

std::ptrdiff_t stride_of(std::int64_t width) {
  return width * static_cast<std::ptrdiff_t>(sizeof(float));
}

TEST(TensorGroup, DealsOutColumnsByPanels) {
  on_ranks({.ranks = 3}, [](Transport& transport) {
    ThreadPool pool(1);
    const TensorGroup group({.tp = 3, .max_row_bytes = 64}, transport, pool);
    ASSERT_EQ(group.tp(), 3);
    for (const std::int64_t n : {1, 16, 31, 40, 48, 100, 4096}) {
      const ColumnRange own = group.own_columns(n);
      EXPECT_TRUE(own.begin % kPanelColumns == 0 || own.begin == n) << n;
      EXPECT_TRUE(own.end % kPanelColumns == 0 || own.end == n) << n;
      EXPECT_LE(own.size(), (n / kPanelColumns / 3 + 1) * kPanelColumns) << n;
      if (group.member() == 0) {
        EXPECT_EQ(own.begin, 0);
      }
      if (group.member() == 2) {
        EXPECT_EQ(own.end, n);
      }
    }
  });
  ThreadPool pool(1);
  const TensorGroup alone(pool);
  EXPECT_EQ(alone.own_columns(37).size(), 37);
}

/// A block's columns that this rank did not compute hold what they held, and after the gather all
/// are those of one rank alone, bit for bit.
TEST(TensorGroup, FeedForwardBlockGivesTheBytesOfOneRankAlone) {
  for (const std::string transport_name : {"inproc", "shm"}) {
    for (const int tp : {1, 2, 3, 4}) {
      const RankKind kind{.transport = transport_name, .faulty = tp == 3};
      on_ranks({.kind = kind, .ranks = 4 - 4 % tp}, [&](Transport& transport) {
        ThreadPool pool(1 + tp % 2);
        TensorGroup alone(pool);
        TensorGroup group({.tp = tp, .max_row_bytes = 1024}, transport, pool);
        std::mt19937 gen(5U + static_cast<unsigned>(transport.rank() / tp));
        for (const auto& [hidden, inter] : {std::pair{40, 24}, {72, 100}, {17, 5}, {64, 64}}) {
          const Packed gate_up = random_matrix(gen, hidden, 2 * inter, /*gated=*/true);
          const Packed down = random_matrix(gen, inter, hidden);
          const GatedFfnWeights weights{gate_up.view, down.view};
          const GatedFfn::Options options{.hidden = hidden, .inter = inter, .max_rows = 9};
          GatedFfn whole(options, alone, pool);
          GatedFfn shared(options, group, pool);
          for (const std::int64_t rows : {9, 0, 1}) {
            const std::vector<float> in = random_floats(gen, rows * hidden);
            const RowsView in_rows{bytes_of(in), stride_of(hidden)};
            std::vector<float> expected(in.size());
            std::vector<float> out(in.size(), -7.0F);
            whole.run(in_rows, rows, weights, {bytes_of(expected), stride_of(hidden)}, {"whole"});
            const MutableRowsView out_rows{bytes_of(out), stride_of(hidden)};
            shared.run(in_rows, rows, weights, out_rows, {"shared"});
            const ColumnRange own = group.own_columns(hidden);
            for (std::int64_t i = 0; i < rows * hidden; ++i) {
              const bool mine = i % hidden >= own.begin && i % hidden < own.end;
              const auto at = static_cast<std::size_t>(i);
              ASSERT_EQ(out[at], mine ? expected[at] : -7.0F) << i % hidden;
            }
            group.gather_columns(out_rows, rows, hidden, DType::f32, {"out"});
            ASSERT_TRUE(std::ranges::equal(std::as_bytes(std::span(out)),
                                           std::as_bytes(std::span(expected))));
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace ferry
