// Recorded expert load from the outside: the same for every way to run, and what ferry eplb reads.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

/// Two prompts of 3 and 40 ids, 6 tokens each, on the golden model with layers of both kinds.
constexpr const char* kModel = "qwen2_bf16_sparse_step";
constexpr int kNewTokens = 6;

class ExpertLoad : public testing::Test {
 protected:
  ExpertLoad() {
    test::write_file(
        directory_.path() / "ids.txt", "5 6 7\n" + [] {
          std::string ids;
          for (int i = 0; i < 40; ++i) ids += std::to_string(1 + i * 7 % 90) + " ";
          return ids + "\n";
        }());
  }

  json record(const Arguments& how) {
    const std::string file = (directory_.path() / "load.json").string();
    const auto outcome = test::run_program(Arguments{"generate",
                                                     "--model",
                                                     test::data_dir(kModel).string(),
                                                     "--input-ids",
                                                     (directory_.path() / "ids.txt").string(),
                                                     "--max-new-tokens",
                                                     std::to_string(kNewTokens),
                                                     "--ignore-eos",
                                                     "--quiet",
                                                     "--record-expert-distribution",
                                                     file} +
                                           how);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(test::read_file(file));
  }

  test::TempDir directory_;
};

/// [layer][expert] over all steps.
std::vector<std::vector<int>> total(const json& dump) {
  std::vector<std::vector<int>> sum;
  for (const json& step : dump["logical_count"]) {
    sum.resize(step.size());
    for (std::size_t l = 0; l < step.size(); ++l) {
      sum[l].resize(step[l].size());
      for (std::size_t e = 0; e < step[l].size(); ++e) sum[l][e] += step[l][e].get<int>();
    }
  }
  return sum;
}

TEST_F(ExpertLoad, EveryTokenCountsOnceHoweverItIsRun) {
  const json config = json::parse(test::read_file(test::data_dir(kModel) / "config.json"));
  const auto alone = total(record({"--ep", "1"}));
  const int tokens = 3 + 40 + 2 * (kNewTokens - 1);  // the last one is never run
  const int topk = config["num_experts_per_tok"];
  int sparse = 0;
  ASSERT_EQ(std::ssize(alone), config["num_hidden_layers"].get<int>());
  for (const auto& layer : alone) {
    const int rows = std::accumulate(layer.begin(), layer.end(), 0);
    EXPECT_TRUE(rows == 0 || rows == tokens * topk) << rows;
    sparse += rows > 0 ? 1 : 0;
  }
  EXPECT_GT(sparse, 0);
  EXPECT_LT(sparse, std::ssize(alone)) << "this model has dense layers";
  EXPECT_EQ(total(record({"--ep", "2", "--max-tokens", "8"})), alone);
  EXPECT_EQ(total(record({"--ep", "3", "--transport", "shm"})), alone);
  EXPECT_EQ(total(record({"--ep", "2", "--moe-a2a-backend", "none"})), alone);
  EXPECT_EQ(total(record({"--ep", "4", "--tp", "2"})), alone);
  EXPECT_EQ(total(record({"--tp", "3", "--two-batch-overlap"})), alone);
  EXPECT_EQ(total(record({"--ep", "4", "--tp", "2", "--expert-slices", "2"})), alone);
}

TEST_F(ExpertLoad, PhasesMakeUpTheWhole) {
  const auto all = total(record({"--ep", "2"}));
  auto sum = total(record({"--ep", "2", "--expert-distribution-phase", "prefill"}));
  const auto decode = total(record({"--ep", "2", "--expert-distribution-phase", "decode"}));
  for (std::size_t l = 0; l < sum.size(); ++l)
    for (std::size_t e = 0; e < sum[l].size(); ++e) sum[l][e] += decode[l][e];
  EXPECT_EQ(sum, all);
}

TEST_F(ExpertLoad, BufferSizeLimitsTheSteps) {
  const json dump = record({"--ep", "2", "--expert-distribution-recorder-buffer-size", "3"});
  EXPECT_EQ(dump["logical_count"].size(), 3U);
}

TEST_F(ExpertLoad, EplbPlansFromTheDump) {
  record({"--ep", "2"});
  const auto outcome = test::run_program({"eplb",
                                          "plan",
                                          "--stats",
                                          (directory_.path() / "load.json").string(),
                                          "--ranks",
                                          "2",
                                          "--redundant",
                                          "0",
                                          "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json plan = json::parse(outcome.out);
  EXPECT_GE(plan["balancedness_after"].get<double>(), plan["balancedness_before"].get<double>());
}

TEST_F(ExpertLoad, MetricsStandInTheReport) {
  const auto outcome = test::run_program({"generate",
                                          "--ep",
                                          "2",
                                          "--prompt",
                                          "what is",
                                          "--enable-expert-distribution-metrics",
                                          "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json eplb = json::parse(outcome.out)["eplb"];
  EXPECT_GT(eplb["steps"].get<int>(), 1);
  for (const char* key : {"balancedness",
                          "last_10_average_balancedness",
                          "last_100_average_balancedness",
                          "last_1000_average_balancedness"}) {
    EXPECT_GE(eplb[key].get<double>(), 0.5) << key;
    EXPECT_LE(eplb[key].get<double>(), 1.0) << key;
  }
  EXPECT_EQ(eplb["rank_rows"].size(), 2U);
  EXPECT_NE(outcome.err.find("expert load: balancedness"), std::string::npos);
}

TEST_F(ExpertLoad, RefusesWhatCannotBe) {
  test::expect_one_line(
      test::run_program({"generate", "--prompt", "a", "--expert-distribution-phase", "encode"}),
      2,
      "all, prefill, decode");
  test::expect_one_line(
      test::run_program(
          {"generate", "--prompt", "a", "--expert-distribution-recorder-buffer-size", "0"}),
      2,
      "--expert-distribution-recorder-buffer-size");
}

}  // namespace
}  // namespace ferry
