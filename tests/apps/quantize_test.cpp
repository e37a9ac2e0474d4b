// Quantised weights through the program: --weights, and checkpoints that `ferry quantize` wrote.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/program.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

json run_json(const Arguments& arguments, const Arguments& environment = {}) {
  const auto outcome = test::run_program(arguments + Arguments{"--json"}, environment);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
}

const Arguments kGenerate{
    "generate", "--prompt", "Once upon a time there was", "--max-new-tokens", "30"};

class Quantised : public testing::TestWithParam<const char*> {
 protected:
  Arguments weights_{"--weights", GetParam()};
};

TEST_P(Quantised, DemoModelAnswersAsWellAsItDidInBf16) {
  if (slow_run()) GTEST_SKIP() << "the main run has it";
  EXPECT_GE(run_json(Arguments{"eval"} + weights_)["exact"], 190);
}

TEST_P(Quantised, LogitsAreTheSameBitsForAnyRanksThreadsAndInstructionSets) {
  const json expected = run_json(kGenerate + weights_)["results"];
  for (const char* ep : {"1", "2", "3"}) {
    for (const std::string threads : {"1", "2"}) {
      for (const std::string isa : {"scalar", "avx2"}) {
        if (slow_run() && (isa == "scalar" || threads == "1")) continue;
        const Arguments how{"--ep", ep, "--threads", threads};
        EXPECT_EQ(run_json(kGenerate + weights_ + how, {"FERRY_ISA=" + isa})["results"], expected)
            << ep << " " << threads << " " << isa;
      }
    }
  }
}

TEST_P(Quantised, OnceToDiskGivesTheBitsOfQuantisingAtLoad) {
  const test::TempDir directory;
  for (const std::string shard_gb : {"1", "0.0005"}) {
    if (slow_run() && shard_gb == "1") continue;
    const std::string out = (directory.path() / shard_gb).string();
    const auto outcome = test::run_program(
        Arguments{"quantize", "--out", out, "--shard-gb", shard_gb, "--quiet"} + weights_);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const json expected = run_json(kGenerate + weights_)["results"];
    EXPECT_EQ(run_json(kGenerate + Arguments{"--model", out} + weights_)["results"], expected);
    const json report = run_json(kGenerate + Arguments{"--model", out});
    EXPECT_EQ(report["weights"], GetParam());
    EXPECT_EQ(report["results"], expected);
    EXPECT_TRUE(run_json({"inspect", out})["unused_tensors"].empty());
    // What was quantised can be held otherwise.
    EXPECT_GE(run_json({"eval", "--model", out, "--weights", "bf16", "--limit", "50"})["score"],
              0.9);
  }
}

/// A checkpoint with experts in tensors of all becomes one with each expert's apart; what serves
/// pictures is left out.
TEST_P(Quantised, StacksOfExpertsGiveTheSameBitsFromDisk) {
  const test::TempDir directory;
  for (const std::string name : {"llama4_text", "llama4_pictures_bf16"}) {
    const std::string model = test::data_dir(name).string();
    const std::string out = (directory.path() / name).string();
    const auto outcome = test::run_program(
        Arguments{"quantize", "--model", model, "--out", out, "--quiet"} + weights_);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const json expected = run_json(kGenerate + Arguments{"--model", model} + weights_)["results"];
    EXPECT_EQ(run_json(kGenerate + Arguments{"--model", out, "--ep", "2"})["results"], expected);
    EXPECT_TRUE(run_json({"inspect", out})["unused_tensors"].empty());
  }
}

/// Of a family each: what mixers pack in their own way, heads that are embeddings, stacks.
TEST_P(Quantised, EveryFamilyGivesTheBitsOfQuantisingAtLoad) {
  if (slow_run()) GTEST_SKIP() << "the main run has it";
  const test::TempDir directory;
  const std::string ids = (directory.path() / "ids").string();
  test::write_file(ids, "1 2 3 4 5 6 7");
  for (const std::string name : {"deepseek_v3",
                                 "deepseek_v3_fp8",
                                 "glm_moe_dsa_sparse",
                                 "qwen2_tied_sharded",
                                 "hunyuan_v1_moe",
                                 "lfm2_moe",
                                 "qwen3_next",
                                 "qwen3_5_moe_text",
                                 "gpt_oss",
                                 "minimax_m2"}) {
    const std::string model = test::data_dir(name).string();
    const std::string out = (directory.path() / name).string();
    const auto outcome = test::run_program(
        Arguments{"quantize", "--model", model, "--out", out, "--quiet"} + weights_);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const Arguments generate{"generate", "--input-ids", ids, "--max-new-tokens", "6"};
    const json expected = run_json(generate + Arguments{"--model", model} + weights_);
    const json from_disk = run_json(generate + Arguments{"--model", out});
    EXPECT_EQ(from_disk["results"], expected["results"]) << name;
    EXPECT_TRUE(run_json({"inspect", out})["unused_tensors"].empty()) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Weights,
                         Quantised,
                         testing::Values("int8", "fp8", "int4", "mxfp4"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Quantize, RefusesWhatItCannotDoInOneLine) {
  const test::TempDir directory;
  const std::string out = (directory.path() / "out").string();
  test::expect_one_line(test::run_program({"quantize", "--weights", "bf16", "--out", out}),
                        2,
                        "choose int8, fp8, int4 or mxfp4");
  test::expect_one_line(test::run_program({"quantize", "--weights", "int3", "--out", out}),
                        2,
                        "no such weight type; known: f32, bf16, int8, fp8, int4, mxfp4");
  test::write_file((directory.path() / "file").string(), "x");
  test::expect_one_line(
      test::run_program({"quantize", "--out", directory.path().string(), "--quiet"}),
      2,
      "expected a new or empty directory");
  test::expect_one_line(
      test::run_program({"quantize", "--out", out, "--model", directory.path().string()}),
      1,
      "config.json");
  EXPECT_FALSE(std::filesystem::exists(out));
}

}  // namespace
}  // namespace ferry
