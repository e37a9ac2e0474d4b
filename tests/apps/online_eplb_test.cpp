// Rebalancing from the outside: the same bits with and without it, given placements, bad input.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/program.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

class OnlineEplb : public testing::Test {
 protected:
  /// The demo model on four prompts, `tokens` of each.
  json run(const Arguments& how, int tokens = kTokens) {
    test::write_file(directory_.path() / "ids.txt",
                     "5 6 7 8 9 10\n9 10 11 12\n30 31 32 33 34\n40 41 42 43 44 45 46\n");
    const auto outcome = test::run_program(Arguments{"generate",
                                                     "--input-ids",
                                                     (directory_.path() / "ids.txt").string(),
                                                     "--max-new-tokens",
                                                     std::to_string(tokens),
                                                     "--ignore-eos",
                                                     "--json"} +
                                           how);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
  }

  /// Planning runs beside the steps, on a core that others may need more, and plans wait for moves;
  /// so how many steps pass before something has happened is nobody's promise. Runs for twice the
  /// tokens until `happened` says so of "eplb"; gives that. All results are those of one rank.
  template <class Happened>
  json run_until(const Arguments& how, Happened happened) {
    json eplb;
    for (int tokens = kTokens; tokens <= kMostTokens; tokens *= 2) {
      const json report = run(how, tokens);
      if (!still_.contains(tokens)) still_[tokens] = run({"--ep", "1"}, tokens)["results"];
      EXPECT_EQ(report["results"], still_[tokens]) << tokens << " tokens";
      eplb = report["eplb"];
      EXPECT_EQ(eplb["plans_failed"], 0) << eplb["last_failure"];
      if (happened(eplb) || HasFailure()) return eplb;
    }
    ADD_FAILURE() << "not within " << kMostTokens << " tokens: " << eplb;
    return eplb;
  }

  std::string write(const std::string& text) {
    std::string file = (directory_.path() / "placement.json").string();
    test::write_file(file, text);
    return file;
  }

  static constexpr int kTokens = 100;
  static constexpr int kMostTokens = 800;  // the demo model has 1024 positions

  test::TempDir directory_;
  std::map<int, json> still_;  // results of one rank, by tokens
};

/// Of "eplb": experts have moved by a plan.
bool has_switched(const json& eplb) {
  return eplb["plans_adopted"] > 0 && eplb["layers_switched"] > 0;
}

const Arguments kRestless = {"--enable-eplb",
                             "--eplb-rebalance-num-iterations",
                             "5",
                             "--expert-distribution-recorder-buffer-size",
                             "5",
                             "--eplb-min-gain",
                             "0",
                             "--eplb-canary"};

TEST_F(OnlineEplb, LogitsAreTheSameBitsWithAndWithoutIt) {
  for (const std::string transport : {"inproc", "shm"}) {
    for (const std::string ep : {"2", "3", "4"}) {
      for (const std::string bytes : {"60000", "1000000", "0"}) {
        if (slow_run() && (bytes != "60000" || (ep == "3") != (transport == "shm"))) continue;
        SCOPED_TRACE(testing::Message() << transport << ", ep " << ep << ", " << bytes << " bytes");
        run_until(Arguments{"--transport",
                            transport,
                            "--ep",
                            ep,
                            "--ep-num-redundant-experts",
                            ep[0] == '3' ? "0" : ep,
                            "--eplb-bytes-per-step",
                            bytes} +
                      kRestless,
                  has_switched);
      }
    }
  }
}

TEST_F(OnlineEplb, EveryPolicyAndExactBackendKeepsTheBits) {
  const json still = run({"--ep", "1"})["results"];
  for (const char* policy : {"identity", "deepseek", "incremental", "risk"}) {
    EXPECT_EQ(run(Arguments{"--ep", "2", "--eplb-algorithm", policy} + kRestless)["results"], still)
        << policy;
  }
  for (const char* backend : {"alltoallv", "deepep"}) {
    EXPECT_EQ(run(Arguments{"--ep", "2", "--moe-a2a-backend", backend} + kRestless)["results"],
              still)
        << backend;
  }
}

TEST_F(OnlineEplb, EveryReplicaChoiceKeepsTheBits) {
  for (const char* choice : {"hash", "nearest", "weighted"}) {
    for (const std::string transport : {"inproc", "shm"}) {
      if (slow_run() && transport == "shm") continue;
      SCOPED_TRACE(testing::Message() << choice << ", " << transport);
      run_until(Arguments{"--ep", "3", "--ep-num-redundant-experts", "5"} +
                    Arguments{"--transport", transport} +
                    Arguments{"--eplb-replica-choice", choice} + kRestless,
                has_switched);
    }
  }
}

TEST_F(OnlineEplb, SharesFollowTheLoadWhereNothingMoves) {
  const json eplb =
      run_until(Arguments{"--ep", "2", "--ep-num-redundant-experts", "4"} +
                    Arguments{"--eplb-replica-choice", "weighted"} + kRestless +
                    Arguments{"--eplb-min-rebalancing-utilization-threshold", "0"},
                [](const json& e) { return e["shares_renewed"] > 1 && e["layers_switched"] > 0; });
  EXPECT_EQ(eplb["plans_adopted"], 0);
  EXPECT_EQ(eplb["bytes_moved_by_rank_0"], 0);
}

TEST_F(OnlineEplb, StartsWithAGivenPlacementOrPlansFromALoad) {
  const json still = run({"--ep", "2"})["results"];
  json maps = json::array();
  json counts = json::array();
  for (int layer = 0; layer < 4; ++layer) {
    std::vector<int> map(18), load(16, 1);
    for (int i = 0; i < 18; ++i) map[static_cast<std::size_t>(i)] = (15 - i + 16) % 16;
    load[static_cast<std::size_t>(layer)] = 100;
    maps.push_back(map);
    counts.push_back(load);
  }
  const std::string dump = (directory_.path() / "load.json").string();
  const std::string given = write(json{{"physical_to_logical_map", maps}}.dump());
  const Arguments record{"--ep", "2", "--record-expert-distribution", dump};
  EXPECT_EQ(run(record + Arguments{"--init-expert-location", given})["results"], still);
  EXPECT_EQ(json::parse(test::read_file(dump))["physical_to_logical_map"], maps);

  const std::string load = write(json{{"logical_count", counts}}.dump());
  EXPECT_EQ(
      run(record +
          Arguments{"--init-expert-location", load, "--ep-num-redundant-experts", "2"})["results"],
      still);
  const json planned = json::parse(test::read_file(dump))["physical_to_logical_map"];
  for (int layer = 0; layer < 4; ++layer) {
    const json& map = planned[static_cast<std::size_t>(layer)];
    ASSERT_EQ(map.size(), 18U);
    EXPECT_EQ(std::count(map.begin(), map.end(), layer), 2) << "the hot expert's replica";
  }
}

TEST_F(OnlineEplb, HighThresholdsKeepExpertsInPlace) {
  for (const Arguments& options : {Arguments{"--eplb-min-rebalancing-utilization-threshold", "0"},
                                   Arguments{"--eplb-min-gain", "1"}}) {
    const json eplb =
        run(Arguments{"--ep", "2", "--enable-eplb", "--eplb-rebalance-num-iterations", "5"} +
            options)["eplb"];
    EXPECT_GT(eplb["plans"], 0);
    EXPECT_EQ(eplb["plans_adopted"], 0);
    EXPECT_EQ(eplb["layers_switched"], 0);
  }
}

TEST_F(OnlineEplb, PlansBeforeItsTimeWhereStepsAreUneven) {
  const auto early = [](const std::string& below) {  // its time is behind the end of every run
    return Arguments{"--ep", "2", "--enable-eplb", "--eplb-early-below", below} +
           Arguments{"--eplb-rebalance-num-iterations", "1000"};
  };
  EXPECT_EQ(run(early("0"), kMostTokens)["eplb"]["plans"], 0);
  run_until(early("1"), [](const json& eplb) { return eplb["plans"] > 0; });
}

TEST_F(OnlineEplb, RefusesWhatCannotBe) {
  const auto refused = [&](const Arguments& options, int status, const std::string& text) {
    test::expect_one_line(
        test::run_program(Arguments{"generate", "--prompt", "a", "--ep", "2"} + options),
        status,
        text);
  };
  const auto file = [&](const std::string& text) {
    return Arguments{"--init-expert-location", write(text)};
  };
  refused({"--enable-eplb", "--eplb-algorithm", "best"}, 2, "unknown policy \"best\"");
  refused({"--eplb-replica-choice", "far"}, 2, "unknown replica choice \"far\"");
  refused({"--eplb-rebalance-num-iterations", "0"}, 2, "--eplb-rebalance-num-iterations");
  refused({"--eplb-min-gain", "2"}, 2, "--eplb-min-gain");
  refused({"--eplb-early-below", "-1"}, 2, "--eplb-early-below");
  refused({"--ep-num-redundant-experts", "17"}, 2, "");
  refused({"--ep-num-redundant-experts", "-1"}, 2, "");
  refused({"--init-expert-location", "/nowhere.json"}, 1, "/nowhere.json");
  refused(file("{"), 1, "placement.json");
  refused(file("{}"), 1, "logical_count");
  refused(file(R"({"physical_to_logical_map": [[0, 1]]})"), 1, "1 layers for a model of 4");
  refused(file(R"({"physical_to_logical_map": 7})"), 1, "placement.json");
  refused(file(R"({"physical_to_logical_map": [["a"], [0], [0], [0]]})"), 1, "\"a\"");
  refused(file(R"({"logical_count": [[1, 2]]})"), 1, "1 layers and 2 experts");
  json lost = json::array();
  for (int layer = 0; layer < 4; ++layer) lost.push_back(std::vector<int>(16, layer == 2 ? 0 : 1));
  refused(file(json{{"physical_to_logical_map", lost}}.dump()), 1, "has no slot");
  json small = json::array();
  for (int layer = 0; layer < 4; ++layer) {
    small.push_back(json::array());
    for (int e = 0; e < 16; ++e) small.back().push_back(e);
  }
  refused(file(json{{"physical_to_logical_map", small}}.dump()) +
              Arguments{"--ep-num-redundant-experts", "2"},
          1,
          "--ep-num-redundant-experts 2");
  for (const json& shares : {json(7), json::array({json::array({1, 2})})}) {
    refused(file(json{{"physical_to_logical_map", small}, {"shares", shares}}.dump()) +
                Arguments{"--eplb-replica-choice", "weighted"},
            1,
            "shares");
  }
}

}  // namespace
}  // namespace ferry
