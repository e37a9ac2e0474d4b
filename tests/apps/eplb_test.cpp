// ferry eplb: plans from dumps, refuses damaged ones, replays traces, draws.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

class Eplb : public testing::Test {
 protected:
  std::string dump(const std::string& text) {
    std::string path = (directory_.path() / "load.json").string();
    test::write_file(path, text);
    return path;
  }

  test::TempDir directory_;
};

TEST_F(Eplb, PlanReportsTheReadmesPlacement) {
  const std::string file = dump(R"({"logical_count": [
      [90,132,40,61,104,165,39,4,73,56,183,86], [20,107,104,64,19,197,187,157,172,86,16,27]]})");
  const auto outcome = test::run_program({"eplb",
                                          "plan",
                                          "--stats",
                                          file,
                                          "--ranks",
                                          "8",
                                          "--nodes",
                                          "2",
                                          "--groups",
                                          "4",
                                          "--redundant",
                                          "4",
                                          "--policy",
                                          "deepseek",
                                          "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json plan = json::parse(outcome.out);
  EXPECT_EQ(plan["physical_to_logical_map"][0],
            json({5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  for (const char* key : {"policy",
                          "ranks",
                          "nodes",
                          "groups",
                          "redundant",
                          "balancedness_before",
                          "balancedness_after",
                          "bound",
                          "moves",
                          "moves_bound",
                          "bytes_moved",
                          "plan_us"})
    EXPECT_TRUE(plan.contains(key)) << key;
}

TEST_F(Eplb, PlanStartsFromThePlacementOfTheDumpAndSumsItsSteps) {
  const std::string file = dump(R"({"logical_count": [[[9, 1]], [[1, 9]]],
                                    "physical_to_logical_map": [[1, 0]]})");
  const auto outcome =
      test::run_program({"eplb", "plan", "--stats", file, "--ranks", "2", "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json plan = json::parse(outcome.out);
  EXPECT_EQ(plan["balancedness_before"], 1.0);
  EXPECT_EQ(plan["moves"], 0);
  EXPECT_EQ(plan["physical_to_logical_map"], json({{1, 0}}));
}

TEST_F(Eplb, WeightedPlansHaveTheShareOfEachSlot) {
  const std::string file = dump(R"({"logical_count": [[6, 6, 3, 0]],
                                    "physical_to_logical_map": [[0, 2, 0, 1, 1, 3]]})");
  const auto outcome = test::run_program({"eplb",
                                          "plan",
                                          "--stats",
                                          file,
                                          "--ranks",
                                          "3",
                                          "--policy",
                                          "incremental",
                                          "--weighted",
                                          "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json plan = json::parse(outcome.out);
  EXPECT_EQ(plan["moves"], 0) << "shares alone make it even";
  ASSERT_EQ(plan["shares"].size(), 1U);
  EXPECT_NEAR(plan["shares"][0][2], 4, 0.01);  // of expert 0's 6 rows, on rank 1
  EXPECT_NEAR(plan["balancedness_after"], 1, 0.001);
}

TEST_F(Eplb, DamagedDumpsGiveOneLineAndStatusOne) {
  const auto refused = [&](const std::string& text, const std::string& says) {
    test::expect_one_line(
        test::run_program({"eplb", "plan", "--stats", dump(text), "--ranks", "2"}), 1, says);
  };
  refused("", "not JSON");
  refused("[]", "logical_count");
  refused(R"({"logical_count": []})", "not empty");
  refused(R"({"logical_count": [[]]})", "not empty");
  refused(R"({"logical_count": 3})", "expected an array");
  refused(R"({"logical_count": [[1, 2], [1]]})", "logical_count[1] has 1 elements");
  refused(R"({"logical_count": [[[1, 2]], [[1, 2], [3, 4]]]})", "logical_count[1] has 2 elements");
  refused(R"({"logical_count": [[1, -2]]})", "holds -2");
  refused(R"({"logical_count": [[1, 1e300]]})", "holds 1e+300");
  refused(R"({"logical_count": [[1, null]]})", "holds null");
  refused(R"({"logical_count": [[1, NaN]]})", "not JSON");
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 0]]})", "expert 1");
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 2]]})", "holds 2");
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 1], [0, 1]]})",
          "2 layers");
  test::expect_one_line(
      test::run_program({"eplb", "plan", "--stats", "/nowhere.json", "--ranks", "2"}),
      1,
      "nowhere");
}

TEST_F(Eplb, StatsTellBalanceOverTimeLoadByRankAndHottestExperts) {
  std::string steps;
  for (int step = 0; step < 30; ++step)
    steps += std::string(step == 0 ? "" : ",") + (step < 25 ? "[[4,4]]" : "[[6,2]]");
  const std::string file = dump("{\"logical_count\": [" + steps + "]}");
  const Arguments call{"eplb", "stats", "--stats", file, "--ranks", "2"};
  const auto outcome = test::run_program(call + Arguments{"--json", "--hottest", "1"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json stats = json::parse(outcome.out);
  EXPECT_DOUBLE_EQ(stats["balancedness"], 4.0 / 6);
  EXPECT_DOUBLE_EQ(stats["last_10_average_balancedness"], (5 + 5 * 4.0 / 6) / 10);
  EXPECT_DOUBLE_EQ(stats["last_100_average_balancedness"], (25 + 5 * 4.0 / 6) / 30);
  EXPECT_EQ(stats["rank_rows"], json({130.0, 110.0}));
  ASSERT_EQ(stats["hottest"].size(), 1U);
  EXPECT_EQ(stats["hottest"][0]["expert"], 0);
  EXPECT_DOUBLE_EQ(stats["hottest"][0]["of_a_rank"], 130.0 / 120);
  EXPECT_EQ(test::run_program(call).status, 0);
  test::expect_one_line(test::run_program(call + Arguments{"--hottest", "0"}), 2, "--hottest");
}

TEST_F(Eplb, PlanStartsFromAPlacementOfVllmAscend) {
  const std::string file = dump(R"({"logical_count": [[5, 1, 1, 5], [1, 5, 1, 5]]})");
  const std::string placement = (directory_.path() / "placement.json").string();
  const auto device = [](int id, const std::string& experts) {
    return R"({"device_id": )" + std::to_string(id) + R"(, "device_expert": )" + experts + "}";
  };
  const auto layer = [&](int id, const std::string& first, const std::string& second) {
    return R"({"layer_id": )" + std::to_string(id) + R"(, "device_count": 2, "device_list": [)" +
           device(1, second) + "," + device(0, first) + "]}";
  };
  const auto with = [&](const std::string& layers, const std::string& ranks = "2") {
    test::write_file(placement, R"({"moe_layer_count": 2, "layer_list": [)" + layers + "]}");
    return test::run_program({"eplb",
                              "plan",
                              "--stats",
                              file,
                              "--ranks",
                              ranks,
                              "--json",
                              "--policy",
                              "incremental",
                              "--placement",
                              placement});
  };
  const std::string good =
      layer(1, "[0, 1, 2]", "[2, 3, 0]") + "," + layer(0, "[0, 1, 3]", "[2, 3, 0]");
  const auto outcome = with(good);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json plan = json::parse(outcome.out);
  EXPECT_EQ(plan["redundant"], 2);
  EXPECT_EQ(plan["moves"], 0) << "it is as even as can be";
  EXPECT_EQ(plan["physical_to_logical_map"], json({{0, 1, 3, 2, 3, 0}, {0, 1, 2, 2, 3, 0}}));

  const auto refused = [&](const std::string& layers, const std::string& says) {
    test::expect_one_line(with(layers), 1, says);
  };
  refused(good + "," + good, "layer_id from 0 to 3");
  refused(layer(0, "[0, 1]", "[2, 3]"), "moe_layer_count is 2, 1 are there");
  refused(layer(0, "[0, 1]", "[2, 3]") + "," + layer(1, "[0, 1]", "[2]"), "has 1 elements");
  refused(layer(0, "[0, 1]", "[2, 3]") + "," + layer(1, "[0, 1]", "[2, 2]"), "expert 3");
  refused(layer(0, "[0, 1]", "[2, 3]") + "," + layer(1, "[0, 1]", "[2, 9]"), "expert 9");
  refused(layer(0, "[0, 1]", "[2, -3]"), "moe_layer_count");
  refused(layer(0, "[0, 1]", "[2, 3]") + R"(,{"layer_id": 1})", "no device_list");
  refused("7", "layer_id");
  test::expect_one_line(with(good, "3"), 1, "2 devices, not 3 ranks");
  test::write_file(placement, R"({"physical_to_logical_map": [[0, 1, 2]]})");
  test::expect_one_line(
      test::run_program(
          {"eplb", "stats", "--stats", file, "--ranks", "2", "--placement", placement}),
      1,
      "placement.json");
}

TEST_F(Eplb, WrongUsageGivesStatusTwo) {
  const Arguments plan{"eplb", "plan", "--stats", dump(R"({"logical_count": [[1, 2, 3]]})")};
  const auto refused = [&](const Arguments& more, const std::string& says) {
    test::expect_one_line(test::run_program(plan + more), 2, says);
  };
  refused({}, "--ranks");
  refused({"--ranks", "0"}, "--ranks");
  refused({"--ranks", "2", "--policy", "luck"}, "greedy");
  refused({"--ranks", "2", "--redundant", "4"}, "too many");
  refused({"--ranks", "2", "--strict"}, "stay empty");
  refused({"--ranks", "2", "--groups", "2"}, "groups");
  test::expect_one_line(
      test::run_program({"eplb", "simulate", "--ranks", "2", "--trace", "x"}), 2, "drifting");
}

TEST_F(Eplb, SimulateComparesPolicies) {
  for (const char* trace : {"zipf", "drifting", "bursty", "topics"}) {
    const auto outcome = test::run_program({"eplb",
                                            "simulate",
                                            "--trace",
                                            trace,
                                            "--ranks",
                                            "8",
                                            "--experts",
                                            "32",
                                            "--redundant",
                                            "8",
                                            "--steps",
                                            "120",
                                            "--layers",
                                            "2",
                                            "--json"});
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const json report = json::parse(outcome.out);
    ASSERT_EQ(report.size(), 5U);
    EXPECT_GT(report[2]["balancedness_mean"], report[0]["balancedness_mean"]);
    EXPECT_LT(report[2]["step_us"], report[0]["step_us"]);
    EXPECT_LT(report[3]["moves"], report[2]["moves"]);
  }
}

TEST_F(Eplb, ShowDrawsBeforeAndAfter) {
  const std::string picture = (directory_.path() / "heat.svg").string();
  const auto outcome =
      test::run_program({"eplb",
                         "show",
                         "--stats",
                         dump(R"({"logical_count": [[9, 1, 1, 1], [1, 1, 1, 9]]})"),
                         "--ranks",
                         "2",
                         "--redundant",
                         "2",
                         "--plot",
                         picture});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("after greedy"), std::string::npos);
  const std::string svg = test::read_file(picture);
  EXPECT_EQ(svg.rfind("<svg", 0), 0U);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  for (const Arguments& command :
       {Arguments{"eplb", "show", "--stats", "x.json", "--ranks", "2"}, Arguments{"bench", "a2a"}})
    test::expect_one_line(
        test::run_program(command + Arguments{"--plot", "heat.png"}), 2, "ends in .svg");
}

}  // namespace
}  // namespace ferry
