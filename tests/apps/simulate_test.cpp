// ferry simulate: a table, JSON and a picture from a description and a shape or a model's config;
// wrong input is one line.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/program.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

class Simulate : public testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& text) {
    std::string path = (directory_.path() / name).string();
    test::write_file(path, text);
    return path;
  }

  Arguments call(const Arguments& more) {
    const std::string cluster = file("cluster.json", R"({
      "name": "two hosts", "hosts": 2, "ranks_per_host": 2,
      "links": [{"name": "host", "latency_us": 1, "gbytes_per_s": 10, "messages_per_s": 1e6},
                {"name": "network", "latency_us": 7, "gbytes_per_s": 1.19,
                 "messages_per_s": 1.5e5}],
      "memory": {"gbytes_per_s": 16}, "kernels": {"tflops": 3}})");
    return Arguments{"simulate", "--cluster", cluster} + more;
  }

  json json_of(const Arguments& more) {
    const auto outcome = test::run_program(call(more + Arguments{"--json"}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(outcome.out);
  }

  test::TempDir directory_;
};

TEST_F(Simulate, ForecastsEveryCombinationOfItsLists) {
  const json report = json_of({"--ep",
                               "2,4",
                               "--tokens",
                               "1,16",
                               "--moe-a2a-backend",
                               "pplx,none",
                               "--hidden",
                               "64",
                               "--inter",
                               "32",
                               "--experts",
                               "8",
                               "--topk",
                               "2"});
  ASSERT_EQ(report["forecasts"].size(), 8U);
  for (const json& f : report["forecasts"]) {
    EXPECT_GT(f["step_us"], 0.0);
    EXPECT_GT(f["tokens_per_s"], 0.0);
    EXPECT_EQ(f["dispatch_links"].size(), f["ranks"] == 4 ? 3U : 2U);
    EXPECT_FALSE(f["binds"].get<std::string>().empty());
  }
  // Nothing crosses between hosts where there is one, and each token once where it is sent to all.
  EXPECT_EQ(report["forecasts"][0]["backend"], "pplx");
  EXPECT_EQ(report["forecasts"][7]["dispatch_links"][2]["link"], "network");
}

TEST_F(Simulate, TakesTheShapeOfAModelAndTheRestOfItsStep) {
  const std::string model = test::data_dir("qwen2_untied").string();
  const json whole = json_of({"--model", model, "--ep", "2"})["forecasts"][0];
  EXPECT_GT(whole["other_us"], 0.0);
  EXPECT_GT(whole["step_us"], whole["layer_us"]);
  const json exchange = json_of({"--model", model, "--ep", "2", "--exchange-only"})["forecasts"][0];
  EXPECT_EQ(exchange["other_us"], 0.0);
  EXPECT_EQ(exchange["experts_us"]["max"], 0.0);
  EXPECT_LT(json_of({"--model", model, "--ep", "2", "--context", "1"})["forecasts"][0]["other_us"],
            whole["other_us"]);
}

TEST_F(Simulate, ForecastsGroupsAndSlices) {
  const std::string model = test::data_dir("qwen2_untied").string();
  const Arguments two{"--model", model, "--ep", "2", "--tokens", "1"};
  const json alone = json_of(two)["forecasts"][0];
  const json group = json_of(two + Arguments{"--tp", "2"})["forecasts"][0];
  const json sliced = json_of(two + Arguments{"--tp", "2", "--expert-slices", "2"})["forecasts"][0];
  EXPECT_NE(group["other_us"], alone["other_us"]);  // half of the work, and gathers
  EXPECT_EQ(sliced["balancedness"], 1.0);
  EXPECT_EQ(alone["slots_per_rank"], 3);  // of five experts
  EXPECT_EQ(sliced["slots_per_rank"], 5);
  test::expect_one_line(test::run_program(call(two + Arguments{"--expert-slices", "2"})),
                        2,
                        "--expert-slices 2: --tp 1 does not divide by that");
}

TEST_F(Simulate, PrintsATableAndDraws) {
  const std::string plot = (directory_.path() / "p.svg").string();
  const auto outcome =
      test::run_program(call({"--ep",
                              "2,4",
                              "--tokens",
                              "8",
                              "--plot",
                              plot,
                              "--routing",
                              file("load.json", R"({"logical_count": [[4, 3, 2, 1, 0, 0, 0, 9]]})"),
                              "--experts",
                              "8",
                              "--topk",
                              "2",
                              "--eplb-algorithm",
                              "greedy",
                              "--ep-num-redundant-experts",
                              "4",
                              "--moe-a2a-backend",
                              "auto"}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  for (const char* word : {"two hosts", "tokens/s", "binds", "network", "described", "auto ("})
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word;
  EXPECT_NE(test::read_file(plot).find("<svg"), std::string::npos);
}

TEST_F(Simulate, SaysWhatPerStepBalanceWouldBring) {
  const Arguments hot{
      "--ep", "4", "--tokens", "256", "--routing", "one_hot", "--experts", "8", "--topk", "1"};
  const json plain = json_of(hot)["forecasts"][0];
  EXPECT_FALSE(plain.contains("per_step_balance"));
  const Arguments asked = hot + Arguments{"--per-step-balance", "weights"};
  const json balanced = json_of(asked)["forecasts"][0];
  EXPECT_EQ(balanced["per_step_balance"]["layer_us_without"], plain["layer_us"]);
  EXPECT_LT(balanced["layer_us"], plain["layer_us"]);
  const auto outcome = test::run_program(call(asked));
  EXPECT_NE(outcome.out.find("per-step balance: "), std::string::npos);
}

/// Published times that nothing is taken from, by the median of their errors; docs/simulate.md.
TEST_F(Simulate, IsNearerToPublishedTimesThanInterpolation) {
  if (slow_run()) GTEST_SKIP() << "forecasts of hundreds of ranks";
  const auto outcome = test::output_of((test::source_dir() / "tools/check_simulate.py").string() +
                                       " --json --ferry " + test::program_path());
  ASSERT_EQ(outcome.status, 0) << outcome.out;
  const json report = json::parse(outcome.out);
  EXPECT_GT(report["held_rows"], 60);
  EXPECT_LT(report["median_error"], 0.06);
  EXPECT_LT(report["median_error_there"], report["median_interpolated_error_there"]);
  EXPECT_LT(report["median_error"], report["median_line_error"]);
}

TEST_F(Simulate, SaysInOneLineWhatIsWrong) {
  const auto refuses = [&](const Arguments& more, const std::string& says) {
    test::expect_one_line(test::run_program(call(more)), 2, says);
  };
  refuses({"--ep", "3"}, "3 ranks are not a multiple of 2 ranks a host");
  refuses({"--ep", "8"}, "8 ranks, but the cluster has 2 hosts of 2");
  refuses({"--ep", "2", "--topk", "9", "--experts", "8"}, "top-9 of 8 experts");
  refuses({"--ep", "2", "--routing", "wild"}, "unknown --routing 'wild'");
  refuses({"--ep", "2", "--per-step-balance", "some"}, "unknown per-step balance \"some\"");
  refuses({"--ep", "2", "--routing-window", "1"}, "--routing-window is of a recording");
  refuses({"--ep", "2", "--moe-a2a-backend", "x"}, "unknown --moe-a2a-backend 'x'");
  refuses({"--ep", "2", "--routing", file("load.json", R"({"logical_count": [[1, 2]]})")},
          "the recorded load is of 2 experts, not of 256");
  test::expect_one_line(test::run_program({"simulate", "--ep", "2"}), 2, "--cluster");
  test::expect_one_line(
      test::run_program({"simulate", "--cluster", file("bad.json", R"({"hosts": -1})")}),
      2,
      "bad.json: hosts is -1");
  test::expect_one_line(
      test::run_program({"simulate", "--cluster", "/nowhere/c.json"}), 2, "cannot be read");
}

}  // namespace
}  // namespace ferry
