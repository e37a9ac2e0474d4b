// Ranks of the real program that are started one by one, as torchrun, srun or a script would.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "apps/program.h"
#include "ferry/launch.h"
#include "ferry/transport/sockets.h"

namespace ferry {

using nlohmann::json;
using test::Arguments;
using test::operator+;
using test::Outcome;
using test::Program;

inline bool command(const std::string& line) {
  return std::system((line + " 2>/dev/null").c_str()) == 0;
}

inline bool has_fabric() {
  for (const TransportInfo& info : list_transports())
    if (info.name == "fabric") return info.available;
  return false;
}

class Cluster : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_fabric()) GTEST_SKIP() << "this build or machine has no fabric";
    // Free now, and nobody else is likely to be given it in the next seconds.
    port_ = own_address(listen_at(resolve("127.0.0.1", 0))).port();
  }

  static Arguments generate(const std::string& model = "qwen3_untied") {
    return {"generate",
            "--model",
            test::data_dir(model).string(),
            "--input-ids",
            ids_file(),
            "--max-new-tokens",
            "6",
            "--threads",
            "1",
            "--json"};
  }

  static std::string ids_file() {
    static const test::TempDir directory;
    std::string file = (directory.path() / "ids.txt").string();
    test::write_file(file, "1 2 3 4 5\n7 8 9\n3 1 4 1 5 9 2 6\n");
    return file;
  }

  static json results_of(const Outcome& outcome) {
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    const json report = json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(report.is_discarded()) << "stdout: " << outcome.out << " stderr: " << outcome.err;
    return report.is_discarded() ? json() : report["results"];
  }

  static json alone() { return results_of(test::run_program(generate())); }

  Arguments variables(Rank rank, int size, const std::string& token = "s3cret") const {
    return {"RANK=" + std::to_string(rank),
            "WORLD_SIZE=" + std::to_string(size),
            "MASTER_ADDR=" + master_,
            "MASTER_PORT=" + std::to_string(port_),
            "FERRY_TOKEN=" + token};
  }

  void start(Rank rank, int size, const Arguments& more = {}, const std::string& token = "s3cret") {
    programs_.push_back(std::make_unique<Program>(generate() + more, variables(rank, size, token)));
  }

  std::vector<Outcome> wait_for_all() {
    std::vector<Outcome> outcomes;
    for (const auto& program : programs_) outcomes.push_back(program->wait());
    return outcomes;
  }

  /// All have failed with one line that holds `text`.
  void expect_all_fail(const std::string& text) {
    for (const Outcome& outcome : wait_for_all()) test::expect_one_line(outcome, 1, text);
  }

  std::string master_ = "127.0.0.1";
  int port_ = 0;
  std::vector<std::unique_ptr<Program>> programs_;
};

/// A run that lasts until it is ended: two layers would reach the last position within a second.
class LongCluster : public Cluster {
 protected:
  void SetUp() override {
    Cluster::SetUp();
    if (IsSkipped()) return;
    const auto made =
        test::run_program({"make-model", "--layers", "64", "--out", model_, "--quiet"});
    ASSERT_EQ(made.status, 0) << made.err;
  }

  Arguments endless(const std::string& timeout) const {
    return {"generate",
            "--model",
            model_,
            "--prompt",
            "hello",
            "--ignore-eos",
            "--max-new-tokens",
            "1000000",
            "--threads",
            "1",
            "--quiet",
            "--timeout",
            timeout};
  }

  void start_endless(Rank rank, int size, const std::string& timeout) {
    programs_.push_back(std::make_unique<Program>(endless(timeout), variables(rank, size)));
  }

  void wait_for_text() {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (programs_[0]->out().size() < 20 && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ASSERT_GE(programs_[0]->out().size(), 20U);
  }

  test::TempDir directory_;
  std::string model_ = (directory_.path() / "model").string();
};

}  // namespace ferry
