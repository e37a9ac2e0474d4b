// The measuring subcommands, with sizes too small to mean anything.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "apps/ferry/a2a_floor.h"
#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

const std::string kModel = test::data_dir("qwen3_bf16").string();

json run_json(const Arguments& arguments) {
  const auto outcome = test::run_program(arguments);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
}

TEST(BenchMoe, ReportsARowForEachCaseOverThreadsAndProcesses) {
  const json rows = run_json(
      {"bench", "moe",       "--json", "--tokens",  "1,5",  "--hidden",    "64",        "--inter",
       "48",    "--experts", "5",      "--topk",    "2",    "--ep",        "2",         "--threads",
       "1",     "--seconds", "0.01",   "--routing", "zipf", "--transport", "inproc,shm"});
  ASSERT_EQ(rows.size(), 4U);
  for (const json& row : rows) {
    for (const char* key : {"p50_us", "slowest_rank_us", "tflops", "gbps", "floor_us"})
      EXPECT_GT(row[key], 0) << key;
    EXPECT_EQ(row["rank_cpu_us"].size(), 2U);
    EXPECT_TRUE(row["bound"] == "memory" || row["bound"] == "compute");
  }
  EXPECT_EQ(rows[1]["tokens"], 5);
  EXPECT_EQ(rows[3]["transport"], "shm");
}

TEST(BenchMoe, MeasuresEveryBackendAndWhatAutoStandsFor) {
  const Arguments shape{"--tokens", "3", "--hidden", "64", "--inter", "48", "--experts", "5"};
  const auto outcome =
      test::run_program(Arguments{"bench", "moe", "--json", "--topk", "2", "--ep", "2"} + shape +
                        Arguments{"--threads", "1", "--seconds", "0.01", "--backend"} +
                        Arguments{"none,alltoallv,pplx,deepep,mooncake,ascend_fuseep,auto"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json rows = json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 7U);
  EXPECT_NE(rows[6]["backend"], "auto");
  EXPECT_NE(outcome.err.find("auto chose"), std::string::npos) << outcome.err;
}

struct SmallA2a {
  std::string ep = "2";
  std::string tokens = "3";
  std::string transport = "inproc";

  Arguments with(const Arguments& more) const {
    const Arguments shape{"--hidden", "264", "--experts", "5", "--topk", "2"};
    return Arguments{"bench", "a2a", "--seconds", "0.01", "--ep", ep, "--tokens", tokens} + shape +
           Arguments{"--transport", transport} + more;
  }
};

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

/// Sum over a matrix [ranks][sources].
double sum_of(const json& matrix) {
  double sum = 0;
  for (const json& row : matrix)
    for (const json& value : row) sum += value.get<double>();
  return sum;
}

TEST(BenchA2a, MeasuresEveryBackendAndMode) {
  const json rows = run_json(SmallA2a{.transport = "inproc,shm"}.with(
      {"--json", "--moe-a2a-backend", "all", "--deepep-mode", "all", "--routing", "one_hot"}));
  std::set<std::string> backends;
  for (const json& row : rows) {
    backends.insert(row["backend"]);
    const bool fused = row["backend"] == "ascend_fuseep" || row["chosen"] == "ascend_fuseep";
    if (fused) {
      EXPECT_EQ(row["op"], "total");
    }
    for (const char* key : {"mean_us",
                            "p50_us",
                            "p95_us",
                            "p99_us",
                            "min_us",
                            "all_ranks_p50_us",
                            "all_ranks_p95_us",
                            "all_ranks_p99_us",
                            "bytes",
                            "consumer_us",
                            "floor_us",
                            "baseline_p50_us"})
      EXPECT_GT(row[key], 0) << key << " of " << row.dump();
    EXPECT_GE(row["stddev_us"], 0);
    EXPECT_GE(row["wire_bytes"], 0);
    EXPECT_GE(row["p99_us"], row["p95_us"]);
    EXPECT_GE(row["p95_us"], row["p50_us"]);
    EXPECT_GE(row["p50_us"], row["min_us"]);
    EXPECT_LE(row["all_ranks_p50_us"], row["p50_us"]) << "the slowest rank counts";
    EXPECT_EQ(row["waits_us"].size(), 2U);
    EXPECT_GT(sum_of(row["waits_us"]), 0) << row.dump();
    EXPECT_DOUBLE_EQ(sum_of(row["rows_from"]), 2.0 * 3 * 2) << "ranks, tokens, experts of each";
    EXPECT_EQ(row["routing"], "one_hot");
    EXPECT_EQ(row["baseline"], "classic");
    EXPECT_EQ(row["ranks"], 2);
    EXPECT_EQ(row["tokens"], 3);
    EXPECT_EQ(row["hidden"], 264);
    EXPECT_EQ(row["experts"], 5);
    EXPECT_EQ(row["topk"], 2);
  }
  EXPECT_EQ(backends,
            (std::set<std::string>{
                "none", "alltoallv", "pplx", "deepep", "mooncake", "ascend_fuseep", "auto"}));
}

TEST(BenchA2a, QuantisedWiresAreVerifiedAndCarryFewerBytes) {
  const json rows = run_json(SmallA2a().with({"--json",
                                              "--dispatch-wire",
                                              "all",
                                              "--expert-type",
                                              "wire,bf16",
                                              "--combine-wire",
                                              "bf16,fp8"}));
  // 6 wires, as delivered and (but for bf16 itself) as bf16, 2 wires back, 3 operations.
  ASSERT_EQ(rows.size(), 11U * 2 * 3);
  const double entries = 3 * 2;
  for (const json& row : rows) {
    const double bf16 = entries * 264 * 2;
    const double fp8 = entries * (264 + 12 + 12);  // 3 scales, and up to a multiple of 16
    if (row["op"] == "dispatch" && row["dispatch_wire"] == "bf16") {
      EXPECT_EQ(row["bytes"], bf16);
    }
    if (row["op"] == "dispatch" && row["dispatch_wire"] == "fp8") {
      EXPECT_EQ(row["bytes"], fp8);
    }
    if (row["op"] == "combine") {
      EXPECT_EQ(row["bytes"], row["combine_wire"] == "fp8" ? fp8 : bf16);
    }
  }
}

TEST(BenchA2a, LeavesOutWhatDoesNotGoTogether) {
  const auto outcome = test::run_program(SmallA2a().with({"--json",
                                                          "--dispatch-wire",
                                                          "fp8",
                                                          "--expert-type",
                                                          "bf16",
                                                          "--layout",
                                                          "padded,ragged,row_pointers"}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const json rows = json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
  std::set<std::string> layouts;
  for (const json& row : rows) layouts.insert(row["layout"]);
  EXPECT_EQ(layouts, (std::set<std::string>{"padded", "ragged"}));
  EXPECT_NE(outcome.err.find("left out pplx"), std::string::npos) << outcome.err;
}

TEST(BenchA2a, RefusesTheOnlyCaseWithItsReason) {
  for (const auto& [option, value, reason] :
       std::vector<std::array<std::string, 3>>{{"--moe-a2a-backend", "nccl", "ascend_fuseep"},
                                               {"--dispatch-wire", "fp4", "fp8_pow2"},
                                               {"--layout", "heap", "row_pointers"},
                                               {"--routing", "random", "one_hot"},
                                               {"--deepep-mode", "fast", "low_latency"}}) {
    Arguments arguments = SmallA2a().with({option, value});
    if (option == "--deepep-mode")
      arguments.insert(arguments.end(), {"--moe-a2a-backend", "deepep"});
    test::expect_one_line(test::run_program(arguments), 2, reason);
  }
}

TEST(BenchA2a, ShowsAColumnForEachEpSize) {
  const auto outcome = test::run_program(SmallA2a{.ep = "1,3"}.with({}));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const std::size_t table = outcome.out.find("| ");
  ASSERT_NE(table, std::string::npos) << outcome.out;
  const std::string text = outcome.out.substr(table);
  EXPECT_LT(text.find("EP3"), text.find("EP1")) << text;
  for (const char* row : {"| dispatch |", "| combine  |", "| total    |"})
    EXPECT_EQ(count_of(text, row), 1U) << text;
  EXPECT_EQ(count_of(text, " ± "), 6U) << text;
}

TEST(BenchA2a, ShowsWhoWaitedForWhom) {
  const auto run = test::run_program(SmallA2a{.ep = "3"}.with({"--waits"}));
  ASSERT_EQ(run.status, 0) << run.err;
  const std::size_t at = run.out.find("microseconds that a rank (down) waited for a source");
  ASSERT_NE(at, std::string::npos) << run.out;
  EXPECT_EQ(count_of(run.out.substr(at), "\n"), 1U + 3U);
  EXPECT_GE(count_of(run.out.substr(at), " 0.0 ("), 3U) << "nobody waits for itself: " << run.out;
}

TEST(BenchA2a, PlotsALineForEachBackend) {
  const test::TempDir directory;
  const auto file = directory.path() / "a2a.svg";
  const auto outcome = test::run_program(
      SmallA2a{.tokens = "1,4"}.with({"--moe-a2a-backend", "pplx,none", "--plot", file.string()}));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const std::string svg = test::read_file(file);
  EXPECT_EQ(count_of(svg, "<polyline"), 4U) << svg;  // two backends, floor, classic
  EXPECT_EQ(count_of(svg, "<circle"), 4U) << svg;
  for (const char* part : {">pplx</text>",
                           ">none</text>",
                           "classic alltoallv",
                           "tokens per rank",
                           "microseconds",
                           "prefers-color-scheme: dark",
                           "</svg>"})
    EXPECT_NE(svg.find(part), std::string::npos) << part;
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(test::run_program(SmallA2a().with({"--plot", "/nowhere/a2a.svg"})).status, 1);
}

/// 2 ranks with 2 slots each, 2 tokens a rank, top-2.
A2aCase floor_case(DispatchFormat format) {
  A2aCase a2a{.ranks = 2, .tokens = 2, .hidden = 16, .experts = 4, .topk = 2};
  a2a.exchange.format = format;
  return a2a;
}

std::vector<std::int64_t> floor_rows(DispatchFormat format) {
  const std::vector<SlotId> slots{0, 1, 0, 3, /*rank 1:*/ 2, 0, 1, 3};
  FloorPlan plan(floor_case(format));
  plan.build(slots);
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    EXPECT_EQ(plan.rank_of(i), slots[i] / 2);
    EXPECT_LT(plan.row(i), plan.most_rows());
    rows.push_back(plan.row(i));
  }
  return rows;
}

TEST(A2aFloor, PutsRowsWhereTheLayoutHasThem) {
  using Rows = std::vector<std::int64_t>;
  EXPECT_EQ(floor_rows(DispatchFormat::padded), (Rows{0, 4, 1, 4, 0, 2, 5, 5}));
  EXPECT_EQ(floor_rows(DispatchFormat::ragged), (Rows{0, 16, 1, 16, 0, 2, 17, 17}));
  EXPECT_EQ(floor_rows(DispatchFormat::row_pointers), (Rows{0, 3, 1, 1, 0, 2, 4, 2}));
}

TEST(BenchModel, NamesTestsAsLlamaBenchDoes) {
  const json rows = run_json({"bench",
                              "model",
                              "--json",
                              "--quiet",
                              "--model",
                              kModel,
                              "-p",
                              "5",
                              "-n",
                              "3",
                              "-b",
                              "1,3",
                              "-r",
                              "1",
                              "--ep",
                              "2",
                              "--max-tokens",
                              "4"});
  ASSERT_EQ(rows.size(), 4U);
  EXPECT_EQ(rows[0]["test"], "pp5");
  EXPECT_EQ(rows[1]["test"], "tg3");
  EXPECT_EQ(rows[2]["batch"], 3);
  for (const json& row : rows) {
    EXPECT_GT(row["tokens_per_s"], 0);
    EXPECT_GT(row["floor_tokens_per_s"], 0);
    EXPECT_EQ(row["ep"], 2);
  }
}

TEST(BenchModel, RebalancesWhileItMeasures) {
  for (const char* transport : {"inproc", "shm"}) {
    const json rows = run_json(Arguments{"bench", "model", "--json", "--quiet", "--model", kModel} +
                               Arguments{"-p", "8", "-n", "40", "-r", "1", "--ep", "2"} +
                               Arguments{"--transport", transport, "--enable-eplb"} +
                               Arguments{"--eplb-policy", "incremental", "--eplb-min-gain", "0"} +
                               Arguments{"--eplb-rebalance-num-iterations", "5", "--eplb-canary"});
    ASSERT_EQ(rows.size(), 2U);
    const json& eplb = rows[1]["eplb"];
    EXPECT_EQ(eplb["steps"], 2 + 2 * 40) << "each test runs once before it is measured";
    EXPECT_GT(eplb["plans"], 0);
    EXPECT_EQ(eplb["plans_failed"], 0) << eplb["last_failure"];
  }
}

TEST(BenchModel, SaysWhereTheTimeWent) {
  const json rows = run_json(Arguments{"bench", "model", "--json", "--quiet", "--model", kModel} +
                             Arguments{"-p", "8", "-n", "5", "-r", "1", "--ep", "2", "--profile"});
  ASSERT_EQ(rows.size(), 2U);
  for (const json& row : rows) {
    const json& phases = row["phases_us_per_token"];
    double all = 0;
    for (const json& us : phases) all += us.get<double>();
    EXPECT_LE(all, 1.01e6 / row["tokens_per_s"].get<double>()) << "more than there was";
    for (const char* name : {"norms", "attention", "router", "exchange", "experts", "head"})
      EXPECT_GT(phases.at(name), 0) << name;
  }
}

TEST(BenchModel, RefusesMoreTokensThanTheContextHolds) {
  const auto outcome =
      test::run_program({"bench", "model", "--model", kModel, "-p", "9", "--context-length", "8"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("pp9 needs 9 positions"), std::string::npos) << outcome.err;
}

TEST(Doctor, MeasuresTheMachineAndWhatItAllowsAModel) {
  const json report = run_json({"doctor", "--json", "--measure", "--model", kModel});
  ASSERT_FALSE(report["measured"].empty());
  EXPECT_EQ(report["measured"][0]["threads"], 1);
  for (const json& row : report["measured"])
    for (const char* key :
         {"read_gbps", "peak_tflops", "pp512_at_most_tokens_per_s", "tg64_at_most_tokens_per_s"})
      EXPECT_GT(row[key], 0) << key;
}

}  // namespace
}  // namespace ferry
