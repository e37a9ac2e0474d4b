// Packed checkpoints through the program.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/program.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

class Pack : public testing::Test {
 protected:
  Pack() { test::write_file(ids_, "1 2 3 4 5 6 7"); }

  static void pack(const Arguments& how, const std::string& out) {
    const auto outcome = test::run_program(Arguments{"pack", "--out", out, "--quiet"} + how);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
  }

  /// Tokens and hashes of logits.
  json answers(const Arguments& how) const {
    const auto outcome = test::run_program(
        Arguments{"generate", "--input-ids", ids_, "--max-new-tokens", "6", "--json"} + how);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false)["results"];
  }

  test::TempDir directory_;
  std::string ids_ = (directory_.path() / "ids").string();
  std::string out_ = (directory_.path() / "out").string();
};

TEST_F(Pack, EveryFamilyAndTypeGivesTheBitsOfPackingAtLoad) {
  if (slow_run()) GTEST_SKIP() << "the main run has it";
  const std::vector<std::pair<std::string, Arguments>> cases = {
      {"deepseek_v3", {"--weights", "int8"}},
      {"deepseek_v3_fp8", {}},
      {"glm_moe_dsa_sparse", {}},
      {"qwen2_tied_sharded", {"--weights", "mxfp4"}},
      {"hunyuan_v1_moe", {"--weights", "fp8"}},
      {"lfm2_moe", {}},
      {"qwen3_next_bf16", {}},
      {"qwen3_gptq_order", {}},
      {"qwen2_awq", {"--weights", "int4"}},
      {"gpt_oss", {"--weights", "int4"}},
      {"gpt_oss_mxfp4", {}},
      {"llama4_pictures_bf16", {}},
      {"mistral4", {"--weights", "bf16"}},
      {"gguf/layers_in_turn.gguf", {}}};
  for (const auto& [name, weights] : cases) {
    const std::string out = (directory_.path() / std::filesystem::path(name).filename()).string();
    const Arguments model = Arguments{"--model", test::data_dir(name).string()} + weights;
    pack(model, out);
    const json expected = answers(model);
    EXPECT_FALSE(expected.empty());
    const Arguments packed{"--model", out};
    EXPECT_EQ(answers(packed), expected) << name;
    EXPECT_EQ(answers(packed + weights + Arguments{"--load", "mapped"}), expected) << name;
    EXPECT_EQ(answers(packed + Arguments{"--ep", "2", "--tp", "2"}), expected) << name;
    EXPECT_EQ(answers(packed + Arguments{"--ep", "3", "--load", "mapped", "--transport", "shm"}),
              expected)
        << name;
  }
}

TEST_F(Pack, DemoModelAnswersAlikeHoweverItRuns) {
  pack({}, out_);
  const json expected = answers({});
  const Arguments packed{"--model", out_};
  for (const Arguments& how :
       {Arguments{"--load", "read"},
        Arguments{"--load", "mapped", "--ep", "2"},
        Arguments{"--load", "mapped", "--ep", "2", "--tp", "2", "--expert-slices", "2"},
        Arguments{"--load",
                  "mapped",
                  "--ep",
                  "2",
                  "--enable-eplb",
                  "--eplb-rebalance-num-iterations",
                  "1"}})
    EXPECT_EQ(answers(packed + how), expected) << how.back();
  const auto report = test::run_program({"inspect", out_, "--check", "--json"});
  ASSERT_EQ(report.status, 0) << report.err;
  EXPECT_EQ(json::parse(report.out)["stored_as"], "ferry_packed");
  EXPECT_TRUE(json::parse(report.out)["unused_tensors"].empty());
}

TEST_F(Pack, RefusesWhatItCannotDoInOneLine) {
  pack({}, out_);
  const Arguments generate{"generate", "--prompt", "x", "--model", out_};
  test::expect_one_line(test::run_program(generate + Arguments{"--weights", "int8"}),
                        2,
                        "leave it out, or give the checkpoint that it was made of");
  test::expect_one_line(
      test::run_program(generate + Arguments{"--load", "lazily"}), 2, "known: read, mapped");
  test::expect_one_line(test::run_program({"pack", "--out", out_, "--quiet"}),
                        2,
                        "expected a new or empty directory");
  const std::string other = (directory_.path() / "other").string();
  test::expect_one_line(test::run_program({"quantize", "--model", out_, "--out", other}),
                        1,
                        "packed weights cannot be taken apart again");
  EXPECT_FALSE(std::filesystem::exists(other));
  test::expect_one_line(
      test::run_program({"inspect", test::data_dir("mixtral").string(), "--check"}),
      2,
      "not being packed");
  std::filesystem::resize_file(out_ + "/model.packed", 1000);
  test::expect_one_line(test::run_program(generate), 1, "(truncated file?)");
}

TEST_F(Pack, CheckFindsAChangedByte) {
  pack({}, out_);
  std::string file = test::read_file(out_ + "/model.packed");
  file[file.size() / 3] ^= 8;
  std::filesystem::remove(out_ + "/model.packed");
  test::write_file(out_ + "/model.packed", file);
  EXPECT_EQ(test::run_program({"inspect", out_}).status, 0);
  test::expect_one_line(
      test::run_program({"inspect", out_, "--check"}), 1, "expected bytes of another checksum");
}

}  // namespace
}  // namespace ferry
