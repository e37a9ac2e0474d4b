// Rows that are rounded to 8 bits before they meet blocks and mxfp4: how far whole models move, and
// that nothing but the row decides its bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "support/golden_model.h"

namespace ferry {
namespace {

struct Rounded {
  const char* model;
  std::optional<WeightType> weights;  ///< none: as found
};

const Rounded kRounded[] = {{"gguf/layers_in_turn.gguf", {}},
                            {"gguf/mixed_types.gguf", {}},
                            {"gpt_oss_mxfp4", {}},
                            {"qwen3_bf16", WeightType::mxfp4},
                            {"mixtral", WeightType::mxfp4},
                            {"deepseek_v3", WeightType::mxfp4}};

class ActivationsOfModel : public testing::TestWithParam<Rounded> {
 protected:
  std::vector<std::vector<std::int32_t>> sequences() const {
    const int vocab = Checkpoint::open(test::data_dir(GetParam().model)).config().vocab;
    std::vector<std::vector<std::int32_t>> all(3);
    for (int s = 0; s < 3; ++s)
      for (int i = 0; i < 20 + 9 * s; ++i)
        all[static_cast<std::size_t>(s)].push_back((7 * i * i + 3 * i + 5 + 11 * s) % vocab);
    return all;
  }

  test::ModelRun how(test::ModelRun run = {}) const {
    run.weights = GetParam().weights.value_or(WeightType::f32);
    run.as_found = !GetParam().weights;
    return run;
  }

  std::vector<std::vector<float>> run(test::ModelRun more) const {
    more.activations = Activations::int8;
    return test::run_model(GetParam().model, sequences(), how(more));
  }
};

double distance(const std::vector<std::vector<float>>& x,
                const std::vector<std::vector<float>>& y) {
  double worst = 0;
  for (std::size_t s = 0; s < x.size(); ++s) {
    double xy = 0;
    double xx = 0;
    double yy = 0;
    for (std::size_t i = 0; i < x[s].size(); ++i) {
      xy += double{x[s][i]} * y[s][i];
      xx += double{x[s][i]} * x[s][i];
      yy += double{y[s][i]} * y[s][i];
    }
    worst = std::max(worst, 1 - 2 * xy / (xx + yy));
  }
  return worst;
}

TEST_P(ActivationsOfModel, MoveItLittle) {
  const auto wide = test::run_model(GetParam().model, sequences(), how());
  const auto rounded = run({});
  EXPECT_NE(rounded, wide) << "it must not be passed over";
  const double moved = distance(rounded, wide);
  RecordProperty("distance", fmt::format("{:.2g}", moved));
  EXPECT_LT(moved, 1e-2) << GetParam().model;
}

TEST_P(ActivationsOfModel, GiveTheSameBitsHoweverItRuns) {
  const auto wanted = run({});
  EXPECT_EQ(run({.chunk = 1}), wanted) << "a row alone";
  EXPECT_EQ(run({.chunk = 7, .together = false}), wanted);
  EXPECT_EQ(run({.ranks = 2, .threads = 2}), wanted);
  EXPECT_EQ(run({.ranks = 2, .tp = 2}), wanted);
  EXPECT_EQ(run({.ranks = 2, .tp = 2, .expert_slices = 2}), wanted);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         ActivationsOfModel,
                         testing::ValuesIn(kRounded),
                         [](const auto& of) {
                           std::string name = std::filesystem::path(of.param.model).stem().string();
                           for (char& c : name)
                             if (c == '_') c = 'x';
                           return name + (of.param.weights ? "Mxfp4" : "");
                         });

}  // namespace
}  // namespace ferry
