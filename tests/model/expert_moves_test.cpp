// Transitions on a model's real weights, as each weight type packs them with its scales: whatever
// the plans, every slot holds its expert's bytes.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "ferry/balance/expert_mover.h"
#include "ferry/model/weights.h"
#include "support/files.h"
#include "support/long_tests.h"
#include "support/ranks.h"

namespace ferry {
namespace {

constexpr int kRanks = 3;
constexpr int kRedundant = 4;

using Maps = std::vector<std::vector<ExpertId>>;

Maps random_maps(int layers, int experts, int slots, std::mt19937& random) {
  Maps maps;
  for (int layer = 0; layer < layers; ++layer) {
    std::vector<ExpertId> map(static_cast<std::size_t>(slots));
    std::iota(map.begin(), map.end(), 0);
    for (auto slot = map.begin() + experts; slot != map.end(); ++slot)
      *slot = static_cast<ExpertId>(random() % static_cast<unsigned>(experts + 1)) - 1;
    std::shuffle(map.begin(), map.end(), random);
    maps.push_back(std::move(map));
  }
  return maps;
}

/// Sparse layers of what a rank has loaded.
std::vector<const ExpertWeights::Layer*> sparse_layers(const ExpertWeights& weights) {
  std::vector<const ExpertWeights::Layer*> layers;
  for (const ExpertWeights::Layer& layer : weights.layers)
    if (!layer.slots.empty()) layers.push_back(&layer);
  return layers;
}

/// Whose memory the experts lie in.
enum class Memory : std::uint8_t { own, shared, of_two_nodes };

struct Case {
  std::string model;
  WeightType type = WeightType::bf16;
  Memory memory = Memory::own;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }

/// A rank's experts in the memory that the case says.
struct Held {
  Held(const Case& c, const ExpertWeights& weights, Transport& transport) {
    const auto layers = sparse_layers(weights);
    const std::size_t slots = layers.front()->slots.size();
    block_bytes = expert_block_bytes(layers.front()->slots.front());
    if (c.memory == Memory::own) {
      memory = Buffer((layers.size() + 1) * slots * block_bytes);
    } else {
      region = transport.allocate_region((layers.size() + 1) * slots * block_bytes, 0);
      holding.memory = region.get();
    }
    std::byte* next = region ? region->local().data() : memory.data();
    for (const ExpertWeights::Layer* layer : layers) {
      holding.placements.push_back(layer->placement);
      ExpertBlocks& blocks = holding.blocks.emplace_back();
      for (const GatedFfnWeights& slot : layer->slots) {
        blocks.push_back(slot.gate_up.data ? next : nullptr);
        if (slot.gate_up.data)
          std::memcpy(next, slot.gate_up.data, block_bytes);
        else if (!region)
          holding.spare.push_back(next);
        next += block_bytes;
      }
    }
    for (std::size_t i = 0; i < slots && !region; ++i, next += block_bytes)
      holding.spare.push_back(next);
  }

  std::size_t block_bytes = 0;
  Buffer memory;
  std::unique_ptr<Region> region;
  ExpertHolding holding;
};

/// `all`: what a single rank holds, expert by expert.
void expect_every_byte(const ExpertMover& mover,
                       const ExpertWeights& all,
                       std::size_t block_bytes,
                       Rank rank) {
  const auto truth = sparse_layers(all);
  for (std::size_t layer = 0; layer < truth.size(); ++layer) {
    const auto slots = static_cast<SlotId>(mover.blocks()[layer].size());
    for (SlotId local = 0; local < slots; ++local) {
      const ExpertId e = mover.placements()[layer].expert_of(rank * slots + local);
      const std::byte* block = mover.blocks()[layer][static_cast<std::size_t>(local)];
      ASSERT_EQ(e < 0, block == nullptr);
      if (e < 0) continue;
      const std::byte* expected = truth[layer]->slots[static_cast<std::size_t>(e)].gate_up.data;
      ASSERT_EQ(std::memcmp(block, expected, block_bytes), 0) << "layer " << layer << ", " << e;
    }
  }
}

class ExpertMoves : public testing::TestWithParam<Case> {};

TEST_P(ExpertMoves, RandomTransitionsKeepEveryByteOfRealWeights) {
  const Case& c = GetParam();
  const int transitions = long_tests() ? 10000 : 40;
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir(c.model));
  const ModelConfig& config = checkpoint.config();
  ThreadPool loader(1);
  const ExpertWeights all = load_expert_weights(checkpoint, {c.type}, {0}, 1, loader, {});
  on_ranks({.ranks = kRanks}, [&](Transport& transport) {
    ThreadPool pool(1);
    const ExpertPlacement start =
        ExpertPlacement::identity(config.layers, config.moe.experts, kRanks, kRedundant);
    const ExpertWeights weights =
        load_expert_weights(checkpoint, {c.type}, start, {transport.rank()}, pool, {});
    Held held(c, weights, transport);
    const std::size_t block = held.block_bytes;
    const int layers = config.sparse_layers();
    ExpertMover mover({.block_bytes = block,
                       .max_step_bytes = 4 * block,
                       .numa_node = c.memory == Memory::of_two_nodes ? transport.rank() % 2 : 0},
                      held.holding,
                      transport);
    std::mt19937 random(3);
    std::vector<int> order(static_cast<std::size_t>(layers));
    std::iota(order.begin(), order.end(), 0);
    for (int i = 1; i <= transitions; ++i) {
      const Maps maps = random_maps(layers, config.moe.experts, start.slots(), random);
      if (transport.rank() == 0) mover.announce({maps}, order);
      const std::size_t budget = block / 8 + random() % (3 * block);
      const bool interrupted = random() % 4 == 0;
      for (int step = 0; step == 0 || (mover.moving() && !(interrupted && step > 2)); ++step) {
        MoveOrders orders = mover.orders(budget);
        orders.plan = static_cast<std::uint64_t>(i);
        mover.begin_step(orders, [](int, const Placement&, const ExpertBlocks&) {});
        ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
      }
      expect_every_byte(mover, all, block, transport.rank());
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(mover.switches(), static_cast<std::uint64_t>(transitions / 2))
        << "of one layer or more";
    EXPECT_EQ(mover.bytes_received() == 0, c.memory == Memory::shared);
  });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Memory memory : {Memory::own, Memory::shared, Memory::of_two_nodes}) {
    for (const WeightType type :
         {WeightType::f32, WeightType::bf16, WeightType::int8, WeightType::int4})
      all.push_back({"qwen3_bf16", type, memory});
    all.push_back({"deepseek_v3_fp8", WeightType::fp8, memory});
    all.push_back({"gpt_oss", WeightType::bf16, memory});  // with biases in its blocks
    all.push_back({"gpt_oss_mxfp4", WeightType::mxfp4, memory});
  }
  return all;
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  constexpr std::array kMemories{"own", "shared", "of_two_nodes"};
  const Case& c = info.param;
  return fmt::format("{}_{}_{}",
                     c.model,
                     weight_type_name(c.type),
                     kMemories.at(static_cast<std::size_t>(c.memory)));
}

INSTANTIATE_TEST_SUITE_P(Weights, ExpertMoves, testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace ferry
