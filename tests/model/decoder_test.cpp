#include "ferry/model/decoder.h"

#include <gtest/gtest.h>

#include <span>

#include "ferry/core/error.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Logits = std::vector<std::vector<float>>;

std::vector<std::vector<std::int32_t>> tokens_of(const std::vector<test::GoldenPrompt>& prompts) {
  std::vector<std::vector<std::int32_t>> sequences;
  for (const auto& p : prompts) sequences.push_back(p.tokens());
  return sequences;
}

/// The rows of logits that transformers has: those of the prompt, then those that chose each token
/// of the continuation (the first of which is the prompt's last row).
std::vector<float> expected_logits(const test::GoldenPrompt& p) {
  const std::size_t vocab = p.greedy_logits.size() / p.greedy.size();
  std::vector<float> rows = p.logits;
  rows.insert(rows.end(),
              p.greedy_logits.begin() + static_cast<std::ptrdiff_t>(vocab),
              p.greedy_logits.end());
  return rows;
}

/// Equality as bytes: -0 and 0 differ, equal NaNs do not.
void expect_same_bytes(const Logits& a, const Logits& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t s = 0; s < a.size(); ++s) {
    ASSERT_EQ(a[s].size(), b[s].size());
    std::size_t differ = 0;
    for (std::size_t i = 0; i < a[s].size(); ++i)
      differ += std::memcmp(&a[s][i], &b[s][i], sizeof(float)) != 0 ? 1 : 0;
    EXPECT_EQ(differ, 0U) << what << ", sequence " << s << ": of " << a[s].size() << " logits";
  }
}

class Golden : public testing::TestWithParam<const char*> {
 protected:
  std::string model() const { return GetParam(); }

  std::vector<test::GoldenPrompt> prompts_ = test::golden_prompts(GetParam());
  std::vector<std::vector<std::int32_t>> sequences_ = tokens_of(prompts_);
};

TEST_P(Golden, LogitsInF32AgreeWithTransformers) {
  const Logits logits = test::run_model(model(), sequences_, {.weights = DType::f32});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::vector<float> expected = expected_logits(prompts_[s]);
    const auto [low, high] = std::minmax_element(expected.begin(), expected.end());
    float worst = 0.0F;
    for (std::size_t i = 0; i < expected.size(); ++i)
      worst = std::max(worst, std::abs(logits[s][i] - expected[i]));
    EXPECT_LT(worst, 1e-4F * (*high - *low)) << "prompt of " << prompts_[s].prompt.size();
    RecordProperty("max_abs_diff_of_range_" + std::to_string(s),
                   std::to_string(worst / (*high - *low)));
  }
}

TEST_P(Golden, GreedyContinuationIsThatOfTransformers) {
  const Logits logits = test::run_model(model(), sequences_, {.weights = DType::f32, .chunk = 1});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::size_t vocab = logits[s].size() / sequences_[s].size();
    std::vector<std::int32_t> greedy;
    for (std::size_t i = 0; i < prompts_[s].greedy.size(); ++i) {
      const float* row = logits[s].data() + (prompts_[s].prompt.size() - 1 + i) * vocab;
      greedy.push_back(static_cast<std::int32_t>(std::max_element(row, row + vocab) - row));
    }
    EXPECT_EQ(greedy, prompts_[s].greedy);
  }
}

TEST_P(Golden, Bf16WeightsStayClose) {
  const Logits logits = test::run_model(model(), sequences_, {.weights = DType::bf16});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::vector<float>& expected = prompts_[s].logits;
    EXPECT_LT(test::calc_diff({logits[s].data(), expected.size()}, expected), 1e-3)
        << "prompt of " << prompts_[s].prompt.size();
  }
}

/// All ways to run must give the bytes of the plainest one.
TEST_P(Golden, BytesDependOnNothingButTheTokens) {
  for (const DType weights : {DType::f32, DType::bf16}) {
    const Logits plain =
        test::run_model(model(), sequences_, {.weights = weights, .together = false});
    const auto check = [&](test::ModelRun run, const std::string& what) {
      run.weights = weights;
      expect_same_bytes(test::run_model(model(), sequences_, run),
                        plain,
                        std::string(dtype_name(weights)) + " " + what);
    };
    check({}, "among others");
    check({.chunk = 1}, "token by token");
    check({.chunk = 7}, "in chunks of 7");
    check({.threads = 2}, "2 threads");
    check({.threads = 2, .chunk = 5}, "2 threads, chunks of 5");
    check({.ranks = 2}, "2 ranks");
    check({.ranks = 3, .chunk = 11}, "3 ranks, chunks of 11");
    check({.ranks = 2, .threads = 2, .chunk = 3, .together = false}, "one rank without tokens");
  }
}

TEST_P(Golden, AllGatherStaysClose) {
  const Logits logits =
      test::run_model(model(), sequences_, {.ranks = 2, .backend = MoeA2ABackend::none});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::vector<float>& expected = prompts_[s].logits;
    EXPECT_LT(test::calc_diff({logits[s].data(), expected.size()}, expected), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Golden,
                         testing::ValuesIn(test::kGoldenModels),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace ferry
