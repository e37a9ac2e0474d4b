// ferry generate from the outside: the same bytes for every way to run, and what a person sees.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/program.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::Arguments;
using test::operator+;

json run_json(const Arguments& arguments, const Arguments& environment = {}) {
  const auto outcome = test::run_program(arguments + Arguments{"--json"}, environment);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  json report = json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(report.is_discarded()) << "stdout holds more than JSON: " << outcome.out;
  return report;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  const json report = run_json({"doctor"});
  for (const auto& [name, state] : report["kernels"].items())
    if (state == "ok") names.push_back(name);
  return names;
}

std::string model_dir(const std::string& name) { return test::data_dir(name).string(); }

/// The golden prompts of a model as a file of ids.
std::string write_golden_ids(const test::TempDir& directory, const std::string& model) {
  const json golden = json::parse(test::read_file(test::data_dir(model) / "golden.json"));
  std::string text;
  for (const auto& prompt : golden["prompts"]) {
    std::string line = prompt["input_ids"].dump();
    text += line.substr(1, line.size() - 2) + "\n";
  }
  std::string file = (directory.path() / "ids.txt").string();
  test::write_file(file, text);
  return file;
}

/// Of each golden prompt, on one thread a rank.
Arguments six_tokens(const test::TempDir& directory, const std::string& model) {
  return {"generate",
          "--model",
          model_dir(model),
          "--input-ids",
          write_golden_ids(directory, model),
          "--max-new-tokens",
          "6",
          "--threads",
          "1"};
}

class Hashes : public testing::TestWithParam<const char*> {};

TEST_P(Hashes, AreTheSameForAllRanksTransportsThreadsAndInstructionSets) {
  const test::TempDir directory;
  const std::string ids = write_golden_ids(directory, GetParam());
  json expected;
  for (const std::string& isa : isas()) {
    for (const char* transport : {"inproc", "shm"}) {
      for (const char* ep : {"1", "2", "3", "4"}) {
        const char* threads = (ep[0] - '0') % 2 == (isa == "avx2" ? 0 : 1) ? "2" : "1";
        const json results = run_json({"generate",
                                       "--model",
                                       model_dir(GetParam()),
                                       "--input-ids",
                                       ids,
                                       "--max-new-tokens",
                                       "6",
                                       "--transport",
                                       transport,
                                       "--ep",
                                       ep,
                                       "--threads",
                                       threads},
                                      {"FERRY_ISA=" + isa})["results"];
        if (expected.is_null()) expected = results;
        EXPECT_EQ(results, expected) << isa << " " << transport << " ep " << ep;
      }
    }
  }
  EXPECT_EQ(expected[0]["logits_sha256"].get<std::string>().size(), 64U);
}

/// Heads and columns that do not divide, groups of some ranks and of all.
TEST_P(Hashes, AreTheSameForAllSizesOfGroups) {
  const test::TempDir directory;
  const Arguments common = six_tokens(directory, GetParam());
  const json expected = run_json(common)["results"];
  std::vector<Arguments> ways{
      {"--tp", "2"},
      {"--tp", "3", "--transport", "shm"},
      {"--tp", "4", "--ep", "4", "--moe-a2a-backend", "alltoallv", "--max-tokens", "9"},
      {"--tp", "2", "--ep", "4", "--moe-a2a-backend", "deepep", "--two-batch-overlap"},
      {"--tp", "3", "--ep", "6", "--moe-a2a-backend", "ascend_fuseep", "--max-sequences", "1"}};
  if (run_json({"doctor"})["transports"]["fabric"] == "ok")
    ways.push_back({"--tp", "2", "--ep", "2", "--transport", "fabric"});
  for (const Arguments& way : ways) {
    const json report = run_json(common + way);
    EXPECT_EQ(report["tp"].get<int>(), std::stoi(way[1]));
    EXPECT_EQ(report["results"], expected) << testing::PrintToString(way);
  }
}

/// Slices over all ranks and over groups, with whole groups of other ranks beside them.
TEST_P(Hashes, AreTheSameForAllExpertSlices) {
  const test::TempDir directory;
  const Arguments common = six_tokens(directory, GetParam());
  const json expected = run_json(common)["results"];
  const Arguments four{"--ep", "4", "--tp", "4"};
  std::vector<Arguments> ways{
      {"--expert-slices", "2", "--tp", "2"},
      {"--expert-slices", "2", "--tp", "2", "--transport", "shm", "--max-tokens", "9"},
      {"--expert-slices", "2", "--tp", "2", "--ep", "4", "--ep-num-redundant-experts", "3"},
      Arguments{"--expert-slices", "2", "--transport", "shm", "--two-batch-overlap"} + four,
      Arguments{"--expert-slices", "2", "--moe-a2a-backend", "ascend_fuseep"} + four,
      Arguments{"--expert-slices", "2", "--moe-a2a-backend", "alltoallv"} + four,
      Arguments{"--expert-slices", "3", "--tp", "3", "--moe-a2a-backend", "deepep"},
      Arguments{"--expert-slices", "2", "--moe-a2a-backend", "auto", "--allow-prereduce"} + four};
  if (run_json({"doctor"})["transports"]["fabric"] == "ok") {
    // Two hosts: tokens cross the network between slices of the same number.
    ways.push_back(
        Arguments{"--expert-slices", "2", "--transport", "fabric", "--ranks-per-host", "2"} + four);
  }
  for (const Arguments& way : ways) {
    const json report = run_json(common + way);
    EXPECT_EQ(report["expert_slices"].get<int>(), std::stoi(way[1]));
    EXPECT_EQ(report["results"], expected) << testing::PrintToString(way);
  }
  // Rows that are rounded on their way out.
  const Arguments rounded{"--dispatch-wire", "int8"};
  const json expected_rounded = run_json(common + rounded)["results"];
  EXPECT_NE(expected_rounded, expected);
  EXPECT_EQ(run_json(common + rounded + ways[2])["results"], expected_rounded);
}

TEST(Generate, RefusesExpertSlicesThatSpanHosts) {
  if (run_json({"doctor"})["transports"]["fabric"] != "ok") GTEST_SKIP() << "no libfabric";
  const auto outcome = test::run_program({"generate",
                                          "--prompt",
                                          "x",
                                          "--tp",
                                          "2",
                                          "--expert-slices",
                                          "2",
                                          "--transport",
                                          "fabric",
                                          "--ranks-per-host",
                                          "1"});
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE(outcome.err.find("share experts but no memory, being on two hosts"), std::string::npos)
      << outcome.err;
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Hashes,
                         testing::Values("qwen2_tied_sharded", "qwen3_bf16"),
                         [](const auto& model) { return std::string(model.param); });

/// DeepSeek's published code gives the norms of latents their own epsilon, whatever config.json
/// says of rms_norm_eps; here the two are far apart, and latents are small.
TEST(Generate, LatentsAreNormalisedAsByTransformers) {
  const std::string model = model_dir("deepseek_v3_small_latents");
  const json report = run_json(
      {"generate", "--model", model, "--input-ids", model + "/ids.txt", "--max-new-tokens", "12"});
  const json expected = json::parse(test::read_file(model + "/expected.json"));
  EXPECT_EQ(report["results"][0]["output_ids"], expected["greedy_of_transformers_5.24"]);
}

TEST(Generate, JsonHasTheFieldsThatOthersReadAndGreedyIsThatOfTransformers) {
  const test::TempDir directory;
  const std::string model = "qwen3_untied";
  const json report = run_json({"generate",
                                "--model",
                                model_dir(model),
                                "--input-ids",
                                write_golden_ids(directory, model),
                                "--max-new-tokens",
                                "32",
                                "--ep",
                                "2",
                                "--transport",
                                "shm"});
  EXPECT_EQ(report["model"], model_dir(model));
  EXPECT_EQ(report["ep"], 2);
  EXPECT_EQ(report["tp"], 1);
  EXPECT_EQ(report["backend"], "pplx");
  EXPECT_EQ(report["transport"], "shm");
  EXPECT_GT(report["prefill_tokens_per_s"], 0.0);
  EXPECT_GT(report["decode_tokens_per_s"], 0.0);
  const json golden = json::parse(test::read_file(test::data_dir(model) / "golden.json"));
  ASSERT_EQ(report["results"].size(), golden["prompts"].size());
  for (std::size_t i = 0; i < golden["prompts"].size(); ++i) {
    const json& result = report["results"][i];
    EXPECT_EQ(result["prompt_tokens"], golden["prompts"][i]["input_ids"].size());
    EXPECT_EQ(result["output_ids"], golden["prompts"][i]["greedy"]);
    EXPECT_TRUE(result["text"].is_string());
  }
}

TEST(Generate, APromptGivesTheSameAloneAndAmongOthers) {
  const test::TempDir directory;
  const std::vector<std::string> prompts{"one", "the second prompt is longer", "3, ü, and so on"};
  std::string lines;
  for (const std::string& prompt : prompts) lines += prompt + "\n";
  const std::string file = (directory.path() / "prompts.txt").string();
  test::write_file(file, lines);
  for (const Arguments& sampling :
       {Arguments{}, Arguments{"--temperature", "0.9", "--top-p", "0.95", "--seed", "4"}}) {
    const Arguments common =
        Arguments{
            "generate", "--model", model_dir("qwen2_bf16_sparse_step"), "--max-new-tokens", "9"} +
        sampling;
    const json together = run_json(common + Arguments{"--prompts", file, "--ep", "2"})["results"];
    ASSERT_EQ(together.size(), prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const json alone = run_json(common + Arguments{"--prompt", prompts[i]})["results"];
      EXPECT_EQ(alone[0], together[i]) << prompts[i];
    }
  }
}

TEST(Generate, PenaltiesAndTheLeastLengthAreFlags) {
  const Arguments command = {
      "generate", "--prompt", "The cat sat. The cat", "--max-new-tokens", "24", "--ep", "2"};
  const auto ids = [&](const Arguments& flags) {
    return run_json(command + flags)["results"][0]["output_ids"];
  };
  const json plain = ids({});
  EXPECT_EQ(ids({"--presence-penalty", "0", "--repetition-penalty", "1"}), plain);
  EXPECT_NE(ids({"--presence-penalty", "2", "--frequency-penalty", "2"}), plain);
  EXPECT_NE(ids({"--repetition-penalty", "5"}), plain);
  EXPECT_EQ(ids({"--min-new-tokens", "24"}).size(), 24U);
  for (const auto& [flag, value, text] : {std::tuple{"--presence-penalty", "3", "presence_penalty"},
                                          {"--repetition-penalty", "0", "repetition_penalty"},
                                          {"--min-new-tokens", "-1", "min_new_tokens"},
                                          {"--min-new-tokens", "25", "min_tokens"}}) {
    test::expect_one_line(test::run_program(command + Arguments{flag, value}), 2, text);
  }
}

TEST(Generate, PromptFilesMayBeLinesListsOrObjects) {
  const test::TempDir directory;
  const auto results = [&](const char* name, const std::string& text) {
    const std::string file = (directory.path() / name).string();
    test::write_file(file, text);
    return run_json({"generate",
                     "--model",
                     model_dir("qwen3_bf16"),
                     "--prompts",
                     file,
                     "--max-new-tokens",
                     "3"})["results"];
  };
  const json lines = results("p.txt", "first one\r\n\nsecond\n");
  EXPECT_EQ(lines.size(), 2U);
  EXPECT_EQ(results("p.json", R"(["first one", {"prompt": "second"}])"), lines);
  EXPECT_EQ(results("p.jsonl", "{\"prompt\": \"first one\"}\n\"second\"\n"), lines);
}

TEST(Generate, PeopleSeeTheTextOfOnePromptAndEachOfMany) {
  const Arguments common{
      "generate", "--model", model_dir("qwen3_bf16"), "--max-new-tokens", "12", "--ep", "2"};
  const json result = run_json(common + Arguments{"--prompt", "hello there"})["results"][0];
  const auto streamed = test::run_program(common + Arguments{"--prompt", "hello there"});
  EXPECT_EQ(streamed.out, result["text"].get<std::string>() + "\n");
  EXPECT_NE(streamed.err.find("2 ranks"), std::string::npos) << streamed.err;

  const auto quiet = test::run_program(common + Arguments{"--prompt", "hello there", "--quiet"});
  EXPECT_EQ(quiet.out, streamed.out);
  EXPECT_EQ(quiet.err, "");

  const test::TempDir directory;
  test::write_file(directory.path() / "p.txt", "hello there\nhello there\n");
  const auto many = test::run_program(
      common + Arguments{"--prompts", (directory.path() / "p.txt").string(), "--quiet"});
  const std::string one = "> hello there\n" + result["text"].get<std::string>() + "\n\n";
  EXPECT_EQ(many.out, one + one);
}

TEST(Generate, TextNeedsATokenizerOfEitherKind) {
  const test::TempDir directory;
  const std::filesystem::path model = directory.path() / "model";
  std::filesystem::copy(test::data_dir("kimi_k2"), model);
  const Arguments call{
      "generate", "--model", model.string(), "--prompt", "zq", "--max-new-tokens", "3", "--quiet"};
  std::filesystem::remove(model / "tokenizer.json");
  test::expect_one_line(test::run_program(call), 1, "nor tiktoken.model");
  for (const char* file : {"tiktoken.model", "tokenizer_config.json"})
    std::filesystem::copy_file(test::data_dir("tokenizer_kimi") / file,
                               model / file,
                               std::filesystem::copy_options::overwrite_existing);
  const json report = run_json(call);
  EXPECT_NE(report["results"][0]["text"], "");
}

TEST(Generate, LongPromptsAreCutIntoStepsWithoutATrace) {
  std::string prompt;
  for (int i = 0; i < 60; ++i) prompt += "word " + std::to_string(i) + " ";
  const Arguments common{
      "generate", "--model", model_dir("qwen3_bf16"), "--prompt", prompt, "--max-new-tokens", "4"};
  const json whole = run_json(common)["results"];
  EXPECT_EQ(run_json(common + Arguments{"--max-tokens", "7", "--ep", "3"})["results"], whole);
}

TEST(Generate, BackendsThatCombinePerExpertGiveTheSameBits) {
  const auto results = [](const Arguments& backend) {
    return run_json(Arguments{"generate", "--model", model_dir("qwen2_new_config"), "--prompt"} +
                    Arguments{"abc", "--max-new-tokens", "4", "--ep", "3", "--moe-a2a-backend"} +
                    backend)["results"];
  };
  const json pplx = results({"pplx"});
  EXPECT_EQ(results({"alltoallv"}), pplx);
  EXPECT_EQ(results({"deepep"}), pplx);
  EXPECT_EQ(results({"mooncake"}), pplx);
  EXPECT_EQ(results({"ascend_fuseep"}), pplx);
  for (const char* by : {"measured", "counted"}) {
    EXPECT_EQ(results({"auto", "--choose-by", by}), pplx) << by;
    EXPECT_EQ(results({"auto", "--choose-by", by, "--transport", "shm"}), pplx) << by;
  }
  EXPECT_EQ(results({"pplx", "--layout", "row_pointers", "--transport", "shm"}), pplx);
  EXPECT_EQ(results({"pplx", "--layout", "ragged", "--two-batch-overlap"}), pplx);
  // These sum on each rank first: stable, if not equal.
  EXPECT_EQ(results({"none"}), results({"none"}));
  const Arguments normal{"deepep", "--deepep-mode", "normal"};
  EXPECT_EQ(results(normal), results(normal));
}

TEST(Generate, WeightsAndWiresCanBeChosen) {
  const Arguments common{
      "generate", "--model", model_dir("qwen2_untied"), "--prompt", "abc", "--max-new-tokens", "4"};
  const auto hash = [&](const Arguments& more) {
    return run_json(common + more)["results"][0]["logits_sha256"].get<std::string>();
  };
  const std::string f32 = hash({});
  EXPECT_NE(hash({"--weights", "bf16"}), f32);
  // Rows that stay on their rank take the wire's rounding too.
  const std::string narrow = hash({"--dispatch-wire", "bf16"});
  EXPECT_NE(narrow, f32);
  EXPECT_EQ(hash({"--dispatch-wire", "bf16", "--ep", "3"}), narrow);
  EXPECT_NE(hash({"--combine-wire", "bf16"}), f32);
  const Arguments quantised{"--dispatch-wire", "fp8", "--combine-wire", "int8_block"};
  const std::string small = hash(quantised);
  EXPECT_NE(small, f32);
  EXPECT_EQ(hash(quantised + Arguments{"--ep", "3", "--moe-a2a-backend", "alltoallv"}), small);
}

TEST(Generate, KeysAndValuesMayBeKeptNarrower) {
  const Arguments common{
      "generate", "--model", model_dir("qwen2_untied"), "--prompt", "abc", "--max-new-tokens", "4"};
  const auto run = [&](const Arguments& more) { return run_json(common + more); };
  const auto hash = [](const json& report) {
    return report["results"][0]["logits_sha256"].get<std::string>();
  };
  const json plain = run({});
  EXPECT_EQ(plain["kv_cache_dtype"], "f32");
  EXPECT_EQ(hash(run({"--kv-cache-dtype", "auto"})), hash(plain));
  const json fp8 = run({"--kv-cache-dtype", "fp8"});
  EXPECT_EQ(fp8["kv_cache_dtype"], "fp8_e4m3");
  const json int8 = run({"--kv-cache-dtype", "int8"});
  EXPECT_NE(hash(fp8), hash(plain));
  EXPECT_NE(hash(int8), hash(plain));
  EXPECT_NE(hash(int8), hash(fp8));
  EXPECT_EQ(hash(run({"--kv-cache-dtype", "fp8_e4m3", "--ep", "2", "--tp", "2"})), hash(fp8));
  EXPECT_EQ(hash(run({"--kv-cache-dtype", "int8", "--ep", "3", "--max-tokens", "2"})), hash(int8));
}

/// Under every name that the options have.
TEST(Generate, SpeculationGivesTheSameBytesAndSaysWhatItDid) {
  const Arguments common = {"generate",
                            "--prompt",
                            "la la la la la la la la",
                            "--ignore-eos",
                            "--max-new-tokens",
                            "40",
                            "--ep",
                            "2"};
  const json plain = run_json(common);
  EXPECT_EQ(plain["drafted_tokens"], 0);
  std::vector<json> counts;
  for (const Arguments& names :
       {Arguments{"--speculate", "ngram", "--draft-tokens", "3", "--draft-ngram-min", "1"},
        Arguments{"--speculative-algorithm",
                  "NGRAM",
                  "--speculative-num-draft-tokens",
                  "4",
                  "--speculative-ngram-min-match-window-size",
                  "1",
                  "--speculative-ngram-max-match-window-size",
                  "8"},
        Arguments{"--speculative-config",
                  R"({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1})"}}) {
    const json report = run_json(common + names);
    EXPECT_EQ(report["results"], plain["results"]);
    EXPECT_GT(report["drafted_tokens"], 0);
    EXPECT_LE(report["accepted_tokens"], report["drafted_tokens"]);
    counts.push_back({report["drafted_tokens"], report["accepted_tokens"]});
  }
  EXPECT_EQ(counts, std::vector<json>(3, counts[0]));
}

TEST(Generate, DraftsByTheCheckpointsOwnLayer) {
  const Arguments common = {"generate",
                            "--model",
                            test::data_dir("glm4_moe_mtp").string(),
                            "--prompt",
                            "la la",
                            "--ignore-eos",
                            "--max-new-tokens",
                            "20",
                            "--ep",
                            "2"};
  const json plain = run_json(common);
  std::vector<json> counts;
  for (const Arguments& names :
       {Arguments{"--speculate", "mtp", "--draft-tokens", "2"},
        Arguments{"--speculative-algorithm", "NEXTN", "--speculative-num-draft-tokens", "3"},
        Arguments{"--speculative-config", R"({"method": "mtp", "num_speculative_tokens": 2})"}}) {
    const json report = run_json(common + names);
    EXPECT_EQ(report["results"], plain["results"]);
    EXPECT_GT(report["drafted_tokens"], 0);
    counts.push_back({report["drafted_tokens"], report["accepted_tokens"]});
  }
  EXPECT_EQ(counts, std::vector<json>(3, counts[0]));
}

}  // namespace
}  // namespace ferry
