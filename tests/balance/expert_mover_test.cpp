// Every byte where the map says, through random placements, small budgets and interrupting plans.
#include "ferry/balance/expert_mover.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "ferry/core/error.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr std::size_t kBlockBytes = 1000;

using Maps = std::vector<std::vector<ExpertId>>;

/// A byte that says layer, expert and place.
std::byte content(int layer, ExpertId expert, std::size_t i) {
  const auto word = static_cast<std::uint32_t>(layer * 1000003 + expert * 7919) +
                    static_cast<std::uint32_t>(i) * 2654435761U;
  return static_cast<std::byte>(word >> 13 ^ word);
}

struct Shape {
  int layers = 3;
  int experts = 6;
  int ranks = 3;
  int slots_per_rank = 3;

  int slots() const { return ranks * slots_per_rank; }
};

/// Every expert somewhere, the other slots at random or empty; an expert may lie twice on a rank.
Maps random_maps(const Shape& shape, std::mt19937& random) {
  Maps maps;
  for (int layer = 0; layer < shape.layers; ++layer) {
    std::vector<ExpertId> map(static_cast<std::size_t>(shape.slots()));
    std::iota(map.begin(), map.end(), 0);
    for (auto slot = map.begin() + shape.experts; slot != map.end(); ++slot)
      *slot = static_cast<ExpertId>(random() % static_cast<unsigned>(shape.experts + 1)) - 1;
    std::shuffle(map.begin(), map.end(), random);
    maps.push_back(std::move(map));
  }
  return maps;
}

/// Whose memory blocks lie in, and on how many NUMA nodes it pretends to be.
struct Memory {
  bool shared = false;
  int nodes = 1;
};

/// One rank: its memory and its mover.
class Holder {
 public:
  Holder(const Shape& shape,
         const Maps& maps,
         MoverOptions options,
         Transport& transport,
         const Memory& memory = {})
      : shape_(shape), rank_(transport.rank()) {
    ExpertHolding holding;
    const auto local_slots = static_cast<std::size_t>(shape.slots_per_rank);
    if (memory.shared) {
      const auto blocks = static_cast<std::size_t>(shape.layers + 1) * local_slots;
      region_ = transport.allocate_region(blocks * kBlockBytes, 0);
      next_block_ = region_->local().data();
      holding.memory = region_.get();
      options.numa_node = rank_ % memory.nodes;
    }
    for (int layer = 0; layer < shape.layers; ++layer) {
      holding.placements.emplace_back(
          maps[static_cast<std::size_t>(layer)], shape.experts, shape.ranks);
      ExpertBlocks& blocks = holding.blocks.emplace_back(local_slots, nullptr);
      for (std::size_t local = 0; local < local_slots; ++local) {
        const ExpertId e = expert_at(holding.placements.back(), local);
        std::byte* const block = e >= 0 || memory.shared ? new_block() : nullptr;
        if (e < 0) continue;
        blocks[local] = block;
        for (std::size_t i = 0; i < kBlockBytes; ++i) blocks[local][i] = content(layer, e, i);
      }
    }
    for (std::size_t i = spare_blocks(holding.blocks); i > 0 && !memory.shared; --i)
      holding.spare.push_back(new_block());
    options.block_bytes = kBlockBytes;
    mover.emplace(options, std::move(holding), transport);
  }

  void expect_every_byte() const {
    for (int layer = 0; layer < shape_.layers; ++layer) {
      const auto l = static_cast<std::size_t>(layer);
      for (std::size_t local = 0; local < mover->blocks()[l].size(); ++local) {
        const ExpertId e = expert_at(mover->placements()[l], local);
        const std::byte* block = mover->blocks()[l][local];
        ASSERT_EQ(block == nullptr, e < 0);
        for (std::size_t i = 0; block && i < kBlockBytes; ++i)
          ASSERT_EQ(block[i], content(layer, e, i)) << "layer " << layer << " expert " << e;
      }
    }
  }

 private:
  ExpertId expert_at(const Placement& placement, std::size_t local) const {
    return placement.expert_of(static_cast<SlotId>(rank_ * shape_.slots_per_rank) +
                               static_cast<SlotId>(local));
  }

  std::byte* new_block() {
    if (region_) return std::exchange(next_block_, next_block_ + kBlockBytes);
    memory_.push_back(std::make_unique<std::byte[]>(kBlockBytes));
    return memory_.back().get();
  }

  Shape shape_;
  Rank rank_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  std::unique_ptr<Region> region_;
  std::byte* next_block_ = nullptr;

 public:
  std::optional<ExpertMover> mover;
};

/// Orders travel as the engine's records do: rank 0's are everybody's. Here each rank keeps a
/// mirror of what rank 0 would say, since all decide alike.
void step(Holder& holder, std::uint64_t plans, std::size_t bytes, Transport& transport) {
  MoveOrders orders = holder.mover->orders(bytes);
  orders.plan = plans;
  int switched = 0;
  holder.mover->begin_step(orders, [&](int, const Placement&, const ExpertBlocks&) { ++switched; });
  EXPECT_LE(switched, 1);
  ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
}

std::vector<int> all_layers(const Shape& shape) {
  std::vector<int> order(static_cast<std::size_t>(shape.layers));
  std::iota(order.rbegin(), order.rend(), 0);
  return order;
}

/// Those that this test can start itself.
std::vector<RankKind> rank_kinds() {
  std::vector<RankKind> kinds = main_rank_kinds();
  std::erase_if(kinds, [](const RankKind& kind) { return !kind.started_here(); });
  return kinds;
}

class MoverOver : public testing::TestWithParam<RankKind> {};

/// From one random placement to the next; one in three is interrupted by the next at some point.
void run_transitions(Holder& holder, const Shape& shape, int transitions, Transport& transport) {
  std::mt19937 random(7);
  for (int i = 1; i <= transitions; ++i) {
    const Maps maps = random_maps(shape, random);
    if (transport.rank() == 0) holder.mover->announce({maps}, all_layers(shape));
    const std::size_t budget = 64U << random() % 7;
    int steps_left = random() % 3 == 0 ? static_cast<int>(random() % 12) + 1 : 100000;
    do {
      step(holder, static_cast<std::uint64_t>(i), budget, transport);
      if (testing::Test::HasFatalFailure()) return;
    } while (--steps_left > 0 && holder.mover->moving());
    holder.expect_every_byte();
    for (std::size_t l = 0; l < maps.size() && !holder.mover->moving(); ++l)
      EXPECT_TRUE(std::ranges::equal(holder.mover->placements()[l].expert_of_slots(), maps[l]));
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(holder.mover->switches(), 0U);
}

Maps first_maps(const Shape& shape) {
  std::mt19937 random(5);
  return random_maps(shape, random);
}

TEST_P(MoverOver, EveryByteIsWhereTheMapSaysAlsoWhenPlansInterrupt) {
  const bool plain = GetParam().label() == "inproc";
  const int transitions = long_tests() ? (plain ? 10000 : 1000) : (GetParam().faulty ? 10 : 40);
  for (const Shape& shape : {Shape{}, Shape{2, 5, 2, 4}, Shape{2, 4, 4, 2}}) {
    on_ranks({.kind = GetParam(), .ranks = shape.ranks}, [&](Transport& transport) {
      Holder holder(
          shape, first_maps(shape), {.max_step_bytes = 1 << 12, .canary = true}, transport);
      run_transitions(holder, shape, transitions, transport);
    });
  }
}

/// Where ranks map one another's blocks: nothing is copied within a NUMA node, which is where all
/// are in the first case, and what is copied between two of them is never a block in use.
TEST_P(MoverOver, RanksOfANodeHandBlocksOver) {
  const int transitions = long_tests() ? 2000 : (GetParam().faulty ? 10 : 40);
  for (const int nodes : {1, 2}) {
    for (const Shape& shape : {Shape{}, Shape{2, 5, 2, 4}, Shape{2, 4, 4, 2}}) {
      on_ranks({.kind = GetParam(), .ranks = shape.ranks}, [&](Transport& transport) {
        if (!transport.capabilities().load_store) return;
        Holder holder(shape,
                      first_maps(shape),
                      {.max_step_bytes = 1 << 12, .canary = true},
                      transport,
                      {.shared = true, .nodes = nodes});
        run_transitions(holder, shape, transitions, transport);
        const std::uint64_t moved = holder.mover->bytes_sent() + holder.mover->bytes_received();
        if (nodes == 1)
          EXPECT_EQ(moved, 0U);
        else
          EXPECT_GT(moved, 0U);
        ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
      });
    }
  }
}

TEST(ExpertMover, ReplicasOfANodeShareABlockUntilNoneHasIt) {
  const Shape shape{1, 2, 2, 2};
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    Holder holder(shape, {{0, -1, 1, -1}}, {.max_step_bytes = 4096}, transport, {.shared = true});
    std::uint64_t plan = 0;
    const auto become = [&](const std::vector<ExpertId>& map) {
      if (transport.rank() == 0) holder.mover->announce({{map}}, std::vector{0});
      ++plan;
      for (int i = 0; i < 2; ++i) step(holder, plan, 4096, transport);
      holder.expect_every_byte();
    };
    become({0, 1, 1, 0});    // both experts twice, in two blocks
    become({1, -1, -1, 0});  // each where the other was
    become({0, -1, 1, -1});
    EXPECT_EQ(holder.mover->bytes_sent() + holder.mover->bytes_received(), 0U);
    EXPECT_EQ(holder.mover->switches(), 3U);
  });
}

TEST_P(MoverOver, NoStepMovesMoreThanItsBudget) {
  const Shape shape;
  on_ranks({.kind = GetParam(), .ranks = shape.ranks}, [&](Transport& transport) {
    std::mt19937 random(11);
    Holder holder(shape, random_maps(shape, random), {.max_step_bytes = 4096}, transport);
    if (transport.rank() == 0)
      holder.mover->announce({random_maps(shape, random)}, all_layers(shape));
    int steps = 0;
    do {
      const std::uint64_t sent = holder.mover->bytes_sent();
      const std::uint64_t received = holder.mover->bytes_received();
      step(holder, 1, 300, transport);
      EXPECT_LE(holder.mover->bytes_sent() - sent, 300U);
      EXPECT_LE(holder.mover->bytes_received() - received, 300U);
      ++steps;
    } while (holder.mover->moving());
    EXPECT_GT(steps, 4);
  });
}

INSTANTIATE_TEST_SUITE_P(Kinds, MoverOver, testing::ValuesIn(rank_kinds()), [](const auto& kind) {
  return kind.param.label();
});

TEST(ExpertMover, MovesWithinARankCopyNothing) {
  const Shape shape{1, 4, 2, 3};
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    Holder holder(shape, {{0, 1, -1, 2, 3, 0}}, {.max_step_bytes = 4096}, transport);
    const ExpertBlocks before = holder.mover->blocks()[0];
    if (transport.rank() == 0) holder.mover->announce({{{1, 0, 1, -1, 2, 3}}}, std::vector{0});
    for (int i = 0; i < 3; ++i) step(holder, 1, 4096, transport);
    EXPECT_FALSE(holder.mover->moving());
    EXPECT_EQ(holder.mover->bytes_sent() + holder.mover->bytes_received(), 0U);
    const ExpertBlocks after = holder.mover->blocks()[0];
    if (transport.rank() == 0)
      EXPECT_EQ(after, (ExpertBlocks{before[1], before[0], before[1]}));
    else
      EXPECT_EQ(after, (ExpertBlocks{nullptr, before[0], before[1]}));
    holder.expect_every_byte();
  });
}

/// What replicas(e)[i] of each expert takes, all experts in a row.
std::vector<double> parts(const Placement& placement) {
  std::vector<double> all;
  for (ExpertId e = 0; e < placement.experts(); ++e)
    for (std::size_t i = 0; i < placement.replicas(e).size(); ++i)
      all.push_back(placement.part(e, i));
  return all;
}

TEST(ExpertMover, SharesSwitchWithTheMapsAndAlone) {
  const Shape shape{2, 3, 2, 2};
  const Maps before{{0, 1, 2, 0}, {0, 1, 2, 0}};
  const Maps after{{0, 1, 2, 1}, {0, 1, 2, 0}};
  const std::vector<float> quarter{1, 1, 1, 3};
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    Holder holder(shape, before, {.max_step_bytes = 4096, .shares = true}, transport);
    EXPECT_EQ(parts(holder.mover->placements()[0]), (std::vector<double>{0.5, 0.5, 1, 1}));
    if (transport.rank() == 0)
      holder.mover->announce({after, {quarter, quarter}}, std::vector{0, 1});
    step(holder, 1, 4096, transport);
    EXPECT_EQ(parts(holder.mover->placements()[0]), (std::vector<double>{0.5, 0.5, 1, 1}));
    step(holder, 1, 4096, transport);
    EXPECT_EQ(parts(holder.mover->placements()[0]), (std::vector<double>{1, 0.25, 0.75, 1}));
    EXPECT_EQ(parts(holder.mover->placements()[1]), (std::vector<double>{0.5, 0.5, 1, 1}));
    const std::uint64_t moved = holder.mover->bytes_sent() + holder.mover->bytes_received();
    step(holder, 1, 4096, transport);
    EXPECT_EQ(parts(holder.mover->placements()[1]), (std::vector<double>{0.25, 0.75, 1, 1}));
    EXPECT_EQ(holder.mover->bytes_sent() + holder.mover->bytes_received(), moved)
        << "the layer's map was right already";
    EXPECT_EQ(holder.mover->switches(), 2U);
    step(holder, 1, 4096, transport);
    EXPECT_FALSE(holder.mover->moving());
    holder.expect_every_byte();
    if (transport.rank() == 0) {
      EXPECT_THROW(holder.mover->announce({after, {quarter, {1, 1}}}, std::vector{0}), ConfigError);
      EXPECT_THROW(holder.mover->announce({after, {quarter, {1, 1, -1, 1}}}, std::vector{0}),
                   ConfigError);
    }
  });
}

TEST(ExpertMover, RefusesABadPlanAndStaysAsItIs) {
  const Shape shape{1, 4, 2, 3};
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    const std::vector<ExpertId> map{0, 1, -1, 2, 3, 0};
    Holder holder(shape, {map}, {.max_step_bytes = 4096}, transport);
    if (transport.rank() == 0) {
      const std::vector<int> order{0};
      ExpertMover& mover = *holder.mover;
      EXPECT_THROW(mover.announce({{{0, 1, 1, -1, 3, 0}}}, order), ConfigError);  // lost 2
      EXPECT_THROW(mover.announce({{{0, 1, 2, 3, 9, 0}}}, order), ConfigError);   // no such expert
      EXPECT_THROW(mover.announce({{{0, 1, 2, 3}}}, order), ConfigError);         // fewer slots
      EXPECT_THROW(mover.announce({{map, map}}, order), ConfigError);             // more layers
    }
    step(holder, 0, 4096, transport);
    EXPECT_FALSE(holder.mover->moving());
    EXPECT_TRUE(std::ranges::equal(holder.mover->placements()[0].expert_of_slots(), map));
    holder.expect_every_byte();
  });
}

TEST(ExpertMover, CanaryFindsAWrongByte) {
  const Shape shape{1, 2, 2, 1};
  on_ranks({.ranks = 2}, [&](Transport& transport) {
    Holder holder(shape, {{0, 1}}, {.max_step_bytes = 4096, .canary = true}, transport);
    if (transport.rank() == 0) {
      holder.mover->announce({{{1, 0}}}, std::vector{0});
      holder.mover->blocks()[0][0][500] ^= std::byte{1};
    }
    step(holder, 1, 4096, transport);
    if (transport.rank() == 0) {
      step(holder, 1, 4096, transport);  // what came from rank 1 is right
    } else {
      EXPECT_THROW(step(holder, 1, 4096, transport), BrokenContract);
      ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
    }
  });
}

}  // namespace
}  // namespace ferry
