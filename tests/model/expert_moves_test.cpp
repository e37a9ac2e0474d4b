// Transitions on a model's real weights: whatever the plans, every slot holds its expert's bytes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string_view>

#include "ferry/balance/expert_mover.h"
#include "ferry/model/weights.h"
#include "support/files.h"
#include "support/golden_model.h"
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

/// All of a model's experts, [layer][expert], to compare with.
class Truth {
 public:
  Truth(const Checkpoint& checkpoint, DType dtype) {
    ThreadPool pool(1);
    weights_ = load_expert_weights(checkpoint, {weight_type(dtype)}, 0, 1, pool, {});
  }

  const GatedFfnWeights& expert(std::size_t layer, ExpertId e) const {
    return weights_.layers[layer].slots[static_cast<std::size_t>(e)];
  }

 private:
  ExpertWeights weights_;
};

ExpertMover::Holding holding_of(const ExpertWeights& weights, Buffer& spare) {
  ExpertMover::Holding holding;
  for (const ExpertWeights::Layer& layer : weights.layers) {
    holding.placements.push_back(layer.placement);
    ExpertMover::Blocks& blocks = holding.blocks.emplace_back();
    for (const GatedFfnWeights& slot : layer.slots)
      blocks.push_back(const_cast<std::byte*>(slot.gate_up.data));
  }
  const std::size_t bytes = expert_block_bytes(weights.layers.front().slots.front());
  const std::size_t count = ExpertMover::spare_blocks(holding.blocks);
  spare = Buffer(count * bytes);
  for (std::size_t i = 0; i < count; ++i) holding.spare.push_back(spare.data() + i * bytes);
  return holding;
}

void expect_every_byte(const ExpertMover& mover, const Truth& truth, Rank rank) {
  for (std::size_t layer = 0; layer < mover.blocks().size(); ++layer) {
    const auto slots = static_cast<SlotId>(mover.blocks()[layer].size());
    for (SlotId local = 0; local < slots; ++local) {
      const ExpertId e = mover.placements()[layer].expert_of(rank * slots + local);
      const std::byte* block = mover.blocks()[layer][static_cast<std::size_t>(local)];
      ASSERT_EQ(e < 0, block == nullptr);
      if (e < 0) continue;
      const GatedFfnWeights& expected = truth.expert(layer, e);
      const GatedFfnWeights found = at_block(expected, block);
      const std::size_t gate_up = expected.gate_up.panel_bytes() *
                                  static_cast<std::size_t>(expected.gate_up.gated_panels());
      ASSERT_EQ(std::memcmp(found.gate_up.data, expected.gate_up.data, gate_up), 0);
      ASSERT_EQ(
          std::memcmp(found.down.data, expected.down.data, expert_block_bytes(expected) - gate_up),
          0);
    }
  }
}

/// The second has biases in its blocks.
class ExpertMoves : public testing::TestWithParam<const char*> {};

TEST_P(ExpertMoves, RandomTransitionsKeepEveryByteOfRealWeights) {
  const char* everything = std::getenv("FERRY_LONG_TESTS");
  const bool all = everything != nullptr && std::string_view(everything) == "1";
  const int transitions = all ? 10000 : 100;
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir(GetParam()));
  const ModelConfig& config = checkpoint.config();
  ASSERT_EQ(config.sparse_layers(), config.layers);
  const Truth truth(checkpoint, DType::bf16);
  on_ranks({.ranks = kRanks}, [&](Transport& transport) {
    ThreadPool pool(1);
    const ExpertPlacement start =
        ExpertPlacement::identity(config.layers, config.moe.experts, kRanks, kRedundant);
    const ExpertWeights weights =
        load_expert_weights(checkpoint, {WeightType::bf16}, start, transport.rank(), pool, {});
    Buffer spare;
    const std::size_t block = expert_block_bytes(weights.layers.front().slots.front());
    ExpertMover mover(
        {.block_bytes = block, .max_step_bytes = 4 * block}, holding_of(weights, spare), transport);
    std::mt19937 random(3);
    std::vector<int> order(static_cast<std::size_t>(config.layers));
    std::iota(order.begin(), order.end(), 0);
    for (int i = 1; i <= transitions; ++i) {
      const Maps maps = random_maps(config.layers, config.moe.experts, start.slots(), random);
      if (transport.rank() == 0) mover.announce({maps}, order);
      const std::size_t budget = block / 8 + random() % (3 * block);
      const bool interrupted = random() % 4 == 0;
      for (int step = 0; step == 0 || (mover.moving() && !(interrupted && step > 2)); ++step) {
        MoveOrders orders = mover.orders(budget);
        orders.plan = static_cast<std::uint64_t>(i);
        mover.begin_step(orders, [](int, const Placement&, const ExpertMover::Blocks&) {});
        ASSERT_EQ(transport.barrier(deadline_in(std::chrono::seconds(30))), WaitResult::reached);
      }
      expect_every_byte(mover, truth, transport.rank());
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(mover.switches(), static_cast<std::uint64_t>(transitions));
  });
}

INSTANTIATE_TEST_SUITE_P(Models,
                         ExpertMoves,
                         testing::Values("qwen3_bf16", "gpt_oss"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace ferry
