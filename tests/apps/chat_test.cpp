// ferry chat from the outside: lines in, answers out.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Outcome;

/// `rest`: further arguments and where output goes.
Outcome say(const std::string& lines, const std::string& rest) {
  const test::TempDir directory;
  const std::string file = (directory.path() / "lines").string();
  test::write_file(file, lines);
  // In braces, so that `rest` has the last word about where output goes.
  return test::output_of("{ " + test::program_path() + " chat --model " +
                         (test::source_dir() / "assets/demo-moe").string() + " " + rest + " <" +
                         file + "; }");
}

std::vector<json> answers_to(const std::string& lines, const std::string& rest = "") {
  const Outcome outcome = say(lines, "--json --quiet " + rest + " 2>/dev/null");
  EXPECT_EQ(outcome.status, 0);
  std::vector<json> answers;
  std::istringstream in(outcome.out);
  for (std::string line; std::getline(in, line);) answers.push_back(json::parse(line));
  return answers;
}

TEST(Chat, KeepsAConversationUntilItIsCleared) {
  const std::string lines = fmt::format("{0}{0}{0}/clear\n{0}/exit\n{0}", "What is 12 + 7?\n");
  for (const char* how : {"--ep 1", "--ep 2 --transport shm"}) {
    const std::vector<json> answers = answers_to(lines, how);
    ASSERT_EQ(answers.size(), 4U) << how;
    EXPECT_EQ(answers[0]["message"]["content"], " 19");
    EXPECT_EQ(answers[0]["finish_reason"], "stop");
    EXPECT_GT(answers[1]["prompt_tokens"], answers[0]["prompt_tokens"]);
    EXPECT_GT(answers[2]["cached_tokens"], 0) << "earlier turns are remembered";
    EXPECT_EQ(answers[3]["message"], answers[0]["message"]);
    EXPECT_EQ(answers[3]["prompt_tokens"], answers[0]["prompt_tokens"]);
  }
}

TEST(Chat, ShowsTextAloneOnStdout) {
  const Outcome outcome = say("\nWhat is 12 + 7?", "2>/dev/null");  // without an end of line
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, " 19\n");
}

TEST(Chat, TakesTheSystemsTextFromFlagAndCommand) {
  const std::string question = "What is 12 + 7?\n";
  const std::vector<json> answers = answers_to(
      question + "/clear\n/system\n" + question + "/clear\n/system One two.\n" + question,
      "--system 'One two.' --max-new-tokens 2");
  ASSERT_EQ(answers.size(), 3U);
  EXPECT_EQ(answers[0]["prompt_tokens"], answers[2]["prompt_tokens"]);
  EXPECT_LT(answers[1]["prompt_tokens"], answers[0]["prompt_tokens"]);
  EXPECT_LE(answers[1]["completion_tokens"], 2);
}

TEST(Chat, GoesOnBehindWhatCannotBeAnswered) {
  const Outcome outcome =
      say(std::string(3000, '7') + "\n/nonsense\nWhat is 12 + 7?\n", "--quiet 2>&1");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_NE(outcome.out.find("maximum context length"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("/system TEXT"), std::string::npos) << outcome.out;
  EXPECT_TRUE(outcome.out.ends_with(" 19\n")) << outcome.out;
}

TEST(Chat, RefusesModelsThatCannot) {
  const Outcome outcome =
      test::run_program({"chat", "--model", test::data_dir("qwen3_bf16").string()});
  EXPECT_EQ(outcome.status, 2) << outcome.err;
  EXPECT_NE(outcome.err.find("chat template"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace ferry
