// The subcommands around generate: eval, inspect, make-model, doctor.
#include <gtest/gtest.h>
#include <sched.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

const std::string kModel = test::data_dir("qwen3_bf16").string();

json run_json(const Arguments& arguments) {
  const auto outcome = test::run_program(arguments + Arguments{"--json"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
}

/// The text that the model continues a prompt with, as eval cuts it.
std::string answer_of(const std::string& prompt) {
  const json report = run_json({"generate", "--model", kModel, "--prompt", prompt});
  std::string text = report["results"][0]["text"];
  text.resize(std::min(text.find('\n'), text.size()));
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

TEST(Eval, CountsExactMatches) {
  const test::TempDir directory;
  const std::string data = (directory.path() / "questions.jsonl").string();
  const auto line = [](const std::string& prompt, const std::string& answer) {
    return json{{"prompt", prompt}, {"answer", answer}}.dump() + "\n";
  };
  test::write_file(data,
                   line("first", answer_of("first")) + line("second", "surely not this") +
                       line("third", answer_of("third")) + line("fourth", answer_of("fourth")));
  const Arguments eval{"eval", "--model", kModel, "--data", data};
  for (const char* ep : {"1", "2", "4"}) {
    const json report = run_json(eval + Arguments{"--ep", ep});
    EXPECT_EQ(report["exact"], 3);
    EXPECT_EQ(report["total"], 4);
    EXPECT_EQ(report["score"], 0.75);
    ASSERT_EQ(report["misses"].size(), 1U);
    EXPECT_EQ(report["misses"][0]["prompt"], "second");
  }
  const auto text = test::run_program(eval + Arguments{"--verbose", "--min-score", "0.7"});
  EXPECT_EQ(text.status, 0);
  EXPECT_NE(text.out.find("3 of 4"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("surely not this"), std::string::npos) << text.out;
  EXPECT_EQ(test::run_program(eval + Arguments{"--min-score", "0.8"}).status, 1);
  EXPECT_EQ(run_json(eval + Arguments{"--limit", "1"})["score"], 1.0);
}

TEST(Eval, WrongDataNamesTheLine) {
  const test::TempDir directory;
  const std::string data = (directory.path() / "questions.jsonl").string();
  for (const char* wrong :
       {"{", "[]", "{\"prompt\": \"a\"}", "{\"prompt\": 1, \"answer\": \"\"}"}) {
    test::write_file(data, std::string("{\"prompt\": \"a\", \"answer\": \"b\"}\n") + wrong + "\n");
    test::expect_one_line(
        test::run_program({"eval", "--model", kModel, "--data", data}), 2, data + " line 2");
  }
  test::write_file(data, "\n");
  test::expect_one_line(
      test::run_program({"eval", "--model", kModel, "--data", data}), 2, "no question");
}

TEST(Inspect, TellsWhatEachRankWouldLoad) {
  const json report = run_json({"inspect", kModel, "--ep", "4"});
  EXPECT_EQ(report["architecture"], "Qwen3MoeForCausalLM");
  EXPECT_EQ(report["experts"], 6);
  EXPECT_EQ(report["topk"], 2);
  ASSERT_EQ(report["ranks"].size(), 4U);
  std::vector<int> held;
  std::uint64_t experts = 0;
  for (const json& rank : report["ranks"]) {
    held.push_back(rank["experts_per_layer"]);
    experts += rank["expert_bytes"].get<std::uint64_t>();
  }
  EXPECT_EQ(held, (std::vector<int>{2, 2, 2, 0}));
  EXPECT_EQ(experts, report["expert_parameters"].get<std::uint64_t>() * 2);
  EXPECT_NE(test::run_program({"inspect", kModel}).out.find("6 of width 24"), std::string::npos);
  test::expect_one_line(test::run_program({"inspect", "/nowhere"}), 1, "/nowhere");
  EXPECT_EQ(report["kv_type"], "bf16");
  const json narrow = run_json({"inspect", kModel, "--kv-cache-dtype", "int8"});
  EXPECT_EQ(narrow["kv_type"], "int8");
  EXPECT_LT(narrow["kv_bytes_per_token"], report["kv_bytes_per_token"]);
  test::expect_one_line(
      test::run_program({"inspect", kModel, "--kv-cache-dtype", "x"}), 2, "--kv-cache-dtype x");
}

TEST(Inspect, TellsWhetherThereIsAChatTemplate) {
  const test::TempDir directory;
  const std::string model = (directory.path() / "model").string();
  std::filesystem::copy(kModel, model);
  EXPECT_EQ(run_json({"inspect", model})["chat_template"], nullptr);
  const auto file = directory.path() / "model" / "chat_template.jinja";
  test::write_file(file, "{% for m in messages %}{{ m.content }}{% endfor %}");
  EXPECT_EQ(run_json({"inspect", model})["chat_template"]["supported"], true);
  test::write_file(file, "\n{{ messages | frobnicate }}");
  const json chat = run_json({"inspect", model})["chat_template"];
  EXPECT_EQ(chat["supported"], false);
  const char* const refusal = "line 2: filter frobnicate is not supported";
  EXPECT_NE(chat["error"].get<std::string>().find(refusal), std::string::npos);
  EXPECT_NE(test::run_program({"inspect", model}).out.find(refusal), std::string::npos);
}

TEST(MakeModel, WritesWhatGenerateRuns) {
  const test::TempDir directory;
  for (const char* arch :
       {"deepseek_v2", "deepseek_v3",   "deepseek_v32", "dots1",   "ernie4_5_moe",
        "glm4_moe",    "glm4_moe_lite", "glm_moe_dsa",  "gpt_oss", "hunyuan_v1_moe",
        "kimi_k2",     "kimi_k25",      "lfm2_moe",     "llama4",  "llama4_text",
        "minimax_m2",  "mistral4",      "mixtral",      "olmoe",   "qwen2_moe",
        "qwen3_5_moe", "qwen3_moe",     "qwen3_next"}) {
    const std::string model = (directory.path() / arch).string();
    // But for some layers.
    const bool recurrent =
        std::string_view(arch) == "qwen3_next" || std::string_view(arch) == "lfm2_moe";
    const auto made = test::run_program({"make-model",
                                         "--arch",
                                         arch,
                                         "--out",
                                         model,
                                         "--experts",
                                         "5",
                                         "--layers",
                                         recurrent ? "4" : "1"});
    ASSERT_EQ(made.status, 0) << made.err;
    EXPECT_EQ(run_json({"inspect", model})["experts"], 5);
    const auto hash = [&](const char* ep) {
      return run_json({"generate", "--model", model, "--prompt", "hi", "--ep", ep})["results"][0];
    };
    EXPECT_EQ(hash("1"), hash("3"));
    // A directory with something in it is never overwritten.
    test::expect_one_line(test::run_program({"make-model", "--out", model}), 2, model);
  }
}

TEST(Doctor, SaysWhatThereIs) {
  const json report = run_json({"doctor"});
  EXPECT_TRUE(report["cpu"].is_string());
  EXPECT_TRUE(report["isa"].is_string());
  EXPECT_GE(report["cores"], 1);
  EXPECT_GE(report["numa_nodes"], 1);
  EXPECT_EQ(report["transports"]["inproc"], "ok");
  EXPECT_TRUE(report["gpus"].is_array());
  EXPECT_EQ(report["kernels"]["scalar"], "ok");
  EXPECT_NE(test::run_program({"doctor"}).out.find("inproc"), std::string::npos);
}

/// For one NUMA node and for several, as hwloc is told; what it says can be run.
TEST(Doctor, RecommendsOptionsThatTheProgramTakes) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  if (!CPU_ISSET(0, &allowed) || !CPU_ISSET(1, &allowed))
    GTEST_SKIP() << "made-up machines have processors 0 and 1";
  for (const char* machine : {"numa:1 core:2 pu:1", "numa:2 core:1 pu:1"}) {
    const test::Arguments environment{std::string("HWLOC_SYNTHETIC=") + machine};
    const json report =
        json::parse(test::run_program({"doctor", "--json"}, environment).out)["recommended"];
    const bool several = machine[5] == '2';
    EXPECT_EQ(report["one request"].get<std::string>().find("--tp 2 --expert-slices 2") == 0,
              several);
    for (const auto& [when, options] : report.items()) {
      test::Arguments arguments{"generate", "--prompt", "x", "--max-new-tokens", "2", "--quiet"};
      std::istringstream words(options.get<std::string>());
      for (std::string word; words >> word;) arguments.push_back(word);
      const auto outcome = test::run_program(arguments);
      EXPECT_EQ(outcome.status, 0) << when << ": " << outcome.err;
    }
  }
}

}  // namespace
}  // namespace ferry
