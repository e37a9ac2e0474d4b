// The demo model: found without being named, answers what it was not trained on, same bits always.
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

TEST(Demo, FerryHomeComesFirst) {
  namespace fs = std::filesystem;
  const test::TempDir home;
  const fs::path model = home.path() / "assets" / "demo-moe";
  fs::create_directories(model.parent_path());
  fs::copy(test::data_dir("qwen3_bf16"), model);
  const Arguments generate{"generate", "--prompt", "a", "--max-new-tokens", "1"};
  EXPECT_EQ(run_json(generate, {"FERRY_HOME=" + home.path().string()})["model"], model.string());
}

TEST(Demo, AnswersNineOfTenHeldOutQuestions) {
  json expected;
  for (const std::string ep : {"1", "2", "4"}) {
    for (const std::string transport : {"inproc", "shm"}) {
      if (slow_run() && (ep == "1") != (transport == "inproc")) continue;
      json report = run_json({"eval", "--ep", ep, "--transport", transport});
      EXPECT_GE(report["score"], 0.9) << "ep " << ep << ", " << transport;
      if (expected.is_null()) expected = report["misses"];
      EXPECT_EQ(report["misses"], expected);
    }
  }
}

TEST(Demo, LogitsAreTheSameBitsForAnyRanksAndThreads) {
  const Arguments generate{
      "generate", "--prompt", "Once upon a time there was", "--max-new-tokens", "40"};
  const json expected = run_json(generate)["results"];
  for (const char* ep : {"1", "2", "3", "4"}) {
    for (const std::string transport : {"inproc", "shm"}) {
      for (const std::string threads : {"1", "2"}) {
        if (slow_run() && (transport == "shm") != (threads == "2")) continue;
        const Arguments how{"--ep", ep, "--transport", transport, "--threads", threads};
        EXPECT_EQ(run_json(generate + how)["results"], expected) << ep << transport << threads;
      }
    }
  }
}

TEST(Demo, LogitsAreTheSameBitsForEveryBackendThatCombinesPerExpert) {
  const Arguments generate{
      "generate", "--prompt", "Once upon a time there was", "--max-new-tokens", "12"};
  const json expected = run_json(generate)["results"];
  for (const char* backend : {"pplx", "alltoallv", "deepep", "mooncake", "ascend_fuseep"}) {
    for (const std::string ep : {"1", "2", "3", "4"}) {
      if (slow_run() && ep != "3") continue;
      Arguments how{"--ep", ep, "--threads", "1", "--moe-a2a-backend", backend};
      EXPECT_EQ(run_json(generate + how)["results"], expected) << backend << " ep " << ep;
      how.emplace_back("--two-batch-overlap");
      EXPECT_EQ(run_json(generate + how)["results"], expected) << backend << " overlap, ep " << ep;
    }
  }
}

}  // namespace
}  // namespace ferry
