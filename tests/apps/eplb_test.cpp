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
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 0]]})", "expert 1");
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 2]]})", "holds 2");
  refused(R"({"logical_count": [[1, 2]], "physical_to_logical_map": [[0, 1], [0, 1]]})",
          "2 layers");
  test::expect_one_line(
      test::run_program({"eplb", "plan", "--stats", "/nowhere.json", "--ranks", "2"}),
      1,
      "nowhere");
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
  for (const char* trace : {"zipf", "drifting", "bursty"}) {
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
    ASSERT_EQ(report.size(), 4U);
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
}

}  // namespace
}  // namespace ferry
