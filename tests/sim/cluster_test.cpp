// Descriptions of clusters: what they mean, and one clear line for each that is wrong.
#include "ferry/sim/cluster.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "support/files.h"

namespace ferry {
namespace {

constexpr const char* kGood = R"({
  "name": "pair", "hosts": 4, "ranks_per_host": 8,
  "links": [
    {"name": "host", "latency_us": 0.5, "gbytes_per_s": 100, "messages_per_s": 1e6},
    {"name": "rack", "hosts": 2, "latency_us": 3, "gbytes_per_s": 50, "messages_per_s": 5e6,
     "duplex": "half", "ranks_per_port": 8, "origin": "measured"},
    {"name": "spine", "latency_us": 6, "gbytes_per_s": 25, "messages_per_s": 5e6,
     "peer_messages_per_s": 1e5}],
  "memory": {"gbytes_per_s": 20, "origin": "guessed"},
  "kernels": {"tflops": 2, "sum_gbytes_per_s": 9}, "start_us": 4})";

Cluster parse(const std::string& text) { return parse_cluster(text, "c.json", false); }

std::string error_of(const std::string& text) {
  try {
    parse(text);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

std::string with(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Cluster, IsWhatItsDescriptionSays) {
  const Cluster c = parse(kGood);
  EXPECT_EQ(c.name, "pair");
  EXPECT_EQ(c.spans(), (std::vector<int>{8, 16, 32}));
  EXPECT_EQ(c.links[1].latency_us, 3);
  EXPECT_FALSE(c.links[1].full_duplex);
  EXPECT_EQ(c.links[1].ranks_per_port, 8);
  EXPECT_EQ(c.links[1].origin, Origin::measured);
  EXPECT_TRUE(c.links[2].full_duplex);
  EXPECT_EQ(c.links[2].peer_messages_per_s, 1e5);
  EXPECT_EQ(c.memory_gbytes_per_s, 20);
  EXPECT_EQ(c.memory_origin, Origin::guessed);
  EXPECT_EQ(c.tflops, 2);
  EXPECT_EQ(c.sum_gbytes_per_s, 9);
  EXPECT_EQ(c.start_us, 4);
}

TEST(Cluster, NamesTheMemberThatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"[", "c.json: not JSON"},
      {"[]", "c.json: it must be an object"},
      {"{}", "c.json: hosts is missing"},
      {with("\"hosts\": 4", "\"hosts\": 0"),
       "c.json: hosts is 0: must be a whole number from 1 to 1048576"},
      {with("\"hosts\": 4", "\"hosts\": 2.5"),
       "c.json: hosts is 2.5: must be a whole number from 1 to 1048576"},
      {with("\"latency_us\": 3", "\"latency_us\": -3"),
       "c.json: links[1].latency_us is -3: must be a number of at least 0"},
      {with("\"latency_us\": 3,", ""), "c.json: links[1].latency_us is missing"},
      {with("\"gbytes_per_s\": 100", "\"gbytes_per_s\": 0"),
       "c.json: links[0].gbytes_per_s is 0: must be a number above 0"},
      {with("\"gbytes_per_s\": 100", "\"gbytes_per_s\": \"fast\""),
       "c.json: links[0].gbytes_per_s is \"fast\": must be a number above 0"},
      {with("\"half\"", "\"simplex\""),
       "c.json: links[1].duplex is \"simplex\": must be full or half"},
      {with("\"measured\"", "\"known\""),
       "c.json: links[1].origin is \"known\": must be measured, described or guessed"},
      {with("\"sum_gbytes_per_s\": 9", "\"sum_gbytes_per_s\": -9"),
       "c.json: kernels.sum_gbytes_per_s is -9: must be a number above 0"},
      {with("\"tflops\": 2", "\"tflops\": 2, \"gflops\": 3"),
       "c.json: unknown member kernels.gflops"},
      {with("\"start_us\": 4", "\"copies_overlap\": 1"),
       "c.json: copies_overlap is 1: must be true or false"},
      {with("\"start_us\"", "\"begin_us\""), "c.json: unknown member begin_us"},
      {with("\"name\": \"host\",", "\"name\": \"host\", \"hosts\": 2,"),
       "c.json: links[0].hosts must not be there: the first link is within a host"},
      {with("\"hosts\": 2,", ""), "c.json: links[1].hosts is missing"},
      {with("\"name\": \"spine\"", "\"name\": \"spine\", \"hosts\": 3"),
       "c.json: links that join 24 ranks do not join whole runs of 16"},
      {with("\"name\": \"spine\"", "\"name\": \"spine\", \"hosts\": 2"),
       "c.json: the last level of links joins 16 of 32 ranks"},
      {with("\"memory\": {\"gbytes_per_s\": 20, \"origin\": \"guessed\"},", ""),
       "c.json: memory is missing"},
      {R"({"hosts": 1, "ranks_per_host": 1, "links": []})",
       "c.json: links must be a list of 1 to 4 objects"},
      {R"({"hosts": 2, "ranks_per_host": 1, "links": [{"name": "host", "latency_us": 1,
           "gbytes_per_s": 1, "messages_per_s": 1}]})",
       "c.json: links has none between the 2 hosts"},
  };
  for (const auto& [text, says] : cases) EXPECT_EQ(error_of(text), says);
}

TEST(Cluster, HasWholeHostsOfRanks) {
  const Cluster c = parse(kGood);
  for (const int ranks : {1, 5, 8, 16, 24, 32}) c.check_ranks(ranks);
  EXPECT_THROW(c.check_ranks(12), ConfigError);
  EXPECT_THROW(c.check_ranks(40), ConfigError);
}

TEST(Cluster, TakesWhatDoctorMeasured) {
  const test::TempDir directory;
  const auto file = directory.path() / "c.json";
  test::write_file(directory.path() / "host.json",
                   R"({"version": "x", "measured": [
    {"threads": 1, "read_gbps": 10.0, "peak_tflops": 1.0, "int8_peak_tops": 2.0},
    {"threads": 8, "read_gbps": 40.0, "peak_tflops": 8.0, "int8_peak_tops": 16.0}]})");
  const std::string text = R"({"hosts": 1, "ranks_per_host": 4, "doctor": "host.json",
    "links": [{"name": "host", "latency_us": 1, "gbytes_per_s": 5, "messages_per_s": 1e6}]})";
  const Cluster c = parse_cluster(text, file, false);
  EXPECT_EQ(c.memory_gbytes_per_s, 10);
  EXPECT_EQ(c.tflops, 2);
  EXPECT_EQ(c.memory_origin, Origin::measured);
  EXPECT_EQ(parse_cluster(text, file, true).tflops, 4);

  test::write_file(directory.path() / "host.json", R"({"version": "x"})");
  try {
    static_cast<void>(parse_cluster(text, file, false));
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("ferry doctor --measure --json"), std::string::npos);
  }
  EXPECT_THROW(static_cast<void>(read_cluster(directory.path() / "none.json", false)), ConfigError);
}

}  // namespace
}  // namespace ferry
