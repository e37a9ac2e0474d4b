// The measuring subcommands, with sizes too small to mean anything.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;

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
