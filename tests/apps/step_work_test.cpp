// What a step of a model cannot do without, which benchmarks print as floors.
#include <gtest/gtest.h>

#include "apps/ferry/machine_peaks.h"
#include "support/files.h"

namespace ferry {
namespace {

Checkpoint open_model(const char* name) { return Checkpoint::open(test::data_dir(name)); }

/// Norms, biases and panels that are not full are all that the plain formula leaves out.
TEST(StepWork, OfOneTypeIsAboutWhatItsSizesSay) {
  const Checkpoint checkpoint = open_model("../../assets/demo-moe");
  for (const WeightType type : {WeightType::bf16, WeightType::int8}) {
    const HeldBytes held = step_weights(checkpoint, {.type = type}).bytes;
    const HeldBytes sizes = step_weights(checkpoint.config(), type).bytes;
    EXPECT_GE(held.dense, sizes.dense);
    EXPECT_LT(static_cast<double>(held.dense), 1.1 * static_cast<double>(sizes.dense));
    ASSERT_EQ(held.experts.size(), sizes.experts.size());
    for (std::size_t layer = 0; layer < held.experts.size(); ++layer) {
      const auto expert = static_cast<double>(sizes.experts[layer]);
      EXPECT_NEAR(static_cast<double>(held.experts[layer]), expert, 0.05 * expert);
    }
  }
}

TEST(StepWork, CountsMatricesInTheTypesThatTheyAreHeldIn) {
  const Checkpoint checkpoint = open_model("gguf/mixed_types.gguf");
  const ModelConfig& config = checkpoint.config();
  const StepWeights held = step_weights(checkpoint, choose_weights(checkpoint, {}));
  const StepWeights elements = step_weights(checkpoint, {.type = WeightType::bf16});
  EXPECT_EQ(held.activations, DType::bf16);
  const RankBytes rank = bytes_per_rank(checkpoint, 1)[0];
  EXPECT_EQ(rank.memory.dense, held.bytes.dense + held.bytes.looked_up);
  std::uint64_t experts = 0;
  for (const std::uint64_t expert : held.bytes.experts)
    experts += expert * static_cast<std::uint64_t>(config.moe.experts);
  EXPECT_EQ(rank.memory.experts, experts);
  // One token reads two of three experts of each layer, and no cached positions.
  const Work token = decode_work(config, held, 1, 1);
  EXPECT_DOUBLE_EQ(token.bytes,
                   static_cast<double>(held.bytes.dense) + static_cast<double>(experts) * 2 / 3);
  const Work wide = decode_work(config, elements, 1, 1);
  EXPECT_LT(token.bytes, 0.6 * wide.bytes);
  EXPECT_DOUBLE_EQ(token.operations, wide.operations);
}

}  // namespace
}  // namespace ferry
