// Wrong usage: one line, status 2, before any work.
#include <gtest/gtest.h>

#include "apps/program.h"

namespace ferry {
namespace {

using test::Arguments;
using test::operator+;

const std::string kModel = test::data_dir("qwen2_untied").string();

struct Case {
  const char* name;
  Arguments arguments;
  const char* says;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class WrongUsage : public testing::TestWithParam<Case> {};

TEST_P(WrongUsage, GivesOneLineAndStatusTwo) {
  test::expect_one_line(test::run_program(GetParam().arguments), 2, GetParam().says);
}

Case generate(const char* name, const Arguments& options, const char* says) {
  return {name, Arguments{"generate", "--model", kModel, "--prompt", "hello"} + options, says};
}

INSTANTIATE_TEST_SUITE_P(
    Program,
    WrongUsage,
    testing::Values(
        Case{"Nothing", {}, "subcommand"},
        Case{"UnknownSubcommand", {"frobnicate"}, "frobnicate"},
        Case{"NoPrompt", {"generate", "--model", kModel}, "--prompt"},
        Case{"TwoPrompts",
             {"generate", "--model", kModel, "--prompt", "a", "--input-ids", "b"},
             "exactly one"},
        Case{"EmptyPrompt", {"generate", "--model", kModel, "--prompt", ""}, "empty"},
        Case{"NoSuchPromptFile",
             {"generate", "--model", kModel, "--prompts", "/nowhere/p.txt"},
             "/nowhere/p.txt"},
        Case{"PromptFileIsADirectory", {"generate", "--model", kModel, "--prompts", "/"}, "direc"},
        Case{"NoQuestions", {"eval", "--model", kModel}, "eval.jsonl"},
        Case{"InspectWithoutDirectory", {"inspect"}, "directory"},
        Case{"UnknownPreset", {"make-model", "--preset", "x", "--out", "/nowhere/x"}, "tiny"},
        Case{"UnknownFamily", {"make-model", "--arch", "x", "--out", "/nowhere/x"}, "qwen3_moe"},
        generate("UnknownOption", {"--frobnicate"}, "--frobnicate"),
        generate("NotANumber", {"--ep", "two"}, "two"),
        generate("NoRanks", {"--ep", "0"}, "--ep"),
        generate("MoreRanksThanTheMachineHolds", {"--ep", "100000"}, "--ep"),
        generate("MoreRanksThanTheMachineHoldsShm",
                 {"--ep", "100000", "--transport", "shm"},
                 "--ep"),
        generate("NoTensorParallelRanks", {"--tp", "0"}, "--tp 0"),
        generate("TensorParallelBeyondTheRanks", {"--ep", "1", "--tp", "2"}, "--tp 2: 1 ranks"),
        generate("TensorParallelGroupsOfUnequalSize", {"--ep", "4", "--tp", "3"}, "--tp 3"),
        generate("NoExpertSlices", {"--expert-slices", "0"}, "--expert-slices 0"),
        generate("ExpertSlicesWithoutAGroup",
                 {"--ep", "2", "--expert-slices", "2"},
                 "--expert-slices 2: --tp 1 does not divide by that"),
        generate("ExpertSlicesThatDoNotDivideTheGroup",
                 {"--tp", "4", "--expert-slices", "3"},
                 "choose a divisor of --tp"),
        generate("ExpertSlicesThatWouldMove",
                 {"--tp", "2", "--expert-slices", "2", "--enable-eplb"},
                 "--enable-eplb moves whole experts"),
        generate("ExpertSlicesOfABackendThatSumsFirst",
                 {"--tp", "2", "--expert-slices", "2", "--moe-a2a-backend", "none"},
                 "backend none sums on each rank first"),
        generate("ExpertSlicesOfABackendThatMasks",
                 {"--tp", "2", "--expert-slices", "2", "--moe-a2a-backend", "mooncake"},
                 "backend mooncake goes on without a rank"),
        generate("ExpertSlicesOfQuantisedResults",
                 {"--tp", "2", "--expert-slices", "2", "--combine-wire", "int8"},
                 "--combine-wire int8 has scales for whole rows"),
        generate("ExpertSlicesBeyondTheColumns",
                 {"--tp", "64", "--expert-slices", "64"},
                 "--expert-slices 64: this model's"),
        generate("UnknownBackend", {"--moe-a2a-backend", "x"}, "pplx"),
        generate("UnknownDeepepMode", {"--deepep-mode", "x"}, "low_latency"),
        generate("UnknownChoice", {"--choose-by", "x"}, "known: counted, measured"),
        generate("UnknownLayout", {"--layout", "x"}, "row_pointers"),
        generate("UnknownTransport", {"--transport", "x"}, "inproc"),
        generate("UnknownWeights", {"--weights", "int3"}, "bf16"),
        generate("UnknownActivations", {"--activations", "int4"}, "choose auto or int8"),
        generate("NoWeightsForActivations",
                 {"--activations", "int8"},
                 "--activations int8: no matrix of"),
        generate("UnknownKvCacheType", {"--kv-cache-dtype", "fp8_e5m2"}, "fp8_e4m3"),
        generate("UnknownDispatchWire", {"--dispatch-wire", "x"}, "--dispatch-wire"),
        generate("UnknownCombineWire", {"--combine-wire", "x"}, "--combine-wire"),
        generate("NegativeThreads", {"--threads", "-1"}, "--threads"),
        generate("NoTimeout", {"--timeout", "0"}, "--timeout"),
        generate("NoTokensInAStep", {"--max-tokens", "0"}, "--max-tokens"),
        generate("NoSequences", {"--max-sequences", "0"}, "--max-sequences"),
        generate("ContextBeyondTheModel", {"--context-length", "513"}, "512"),
        generate("PromptBeyondTheContext", {"--context-length", "1"}, "context"),
        generate("NoNewTokens", {"--max-new-tokens", "0"}, "--max-new-tokens"),
        generate("NegativeTemperature", {"--temperature", "-0.5"}, "temperature"),
        generate("TopPAboveOne", {"--top-p", "1.5"}, "top-p"),
        generate("UnknownSpeculation", {"--speculate", "EAGLE"}, "ngram"),
        generate("DraftsWithoutSpeculation", {"--draft-tokens", "3"}, "--speculate"),
        generate("NoDraftTokens", {"--speculate", "ngram", "--draft-tokens", "0"}, "at least 1"),
        generate("TooManyDraftTokens", {"--speculate", "ngram", "--draft-tokens", "65"}, "64"),
        generate(
            "DraftTokensTwice",
            {"--speculate", "ngram", "--draft-tokens", "3", "--speculative-num-draft-tokens", "4"},
            "one of them"),
        generate("NgramsUpsideDown",
                 {"--speculate", "ngram", "--draft-ngram-min", "3", "--draft-ngram-max", "2"},
                 "--draft-ngram-min"),
        generate("NgramsOfTheModelsLayer",
                 {"--speculate", "mtp", "--draft-ngram-min", "1"},
                 "--draft-ngram-min"),
        generate("NoLayerThatPredicts", {"--speculate", "mtp"}, "further tokens"),
        generate("SpeculativeConfigIsNoJson", {"--speculative-config", "ngram"}, "JSON"),
        generate("SpeculativeConfigOfAnotherMethod",
                 {"--speculative-config", R"({"method": "eagle"})"},
                 "ngram"),
        generate("SpeculativeConfigWithMore",
                 {"--speculative-config", R"({"method": "ngram", "model": "x"})"},
                 "model"),
        generate("SpeculativeConfigOutOfRange",
                 {"--speculative-config", R"({"method": "ngram", "num_speculative_tokens": 0})"},
                 "num_speculative_tokens"),
        generate("NegativeTopK", {"--top-k", "-3"}, "top-k")),
    [](const auto& c) { return std::string(c.param.name); });

Case ids(const char* name, const char* says) { return {name, {}, says}; }

class WrongIds : public testing::TestWithParam<std::pair<const char*, Case>> {};

TEST_P(WrongIds, NameTheLine) {
  const test::TempDir directory;
  const std::string file = (directory.path() / "ids.txt").string();
  test::write_file(file, std::string("1 2 3\n\n") + GetParam().first + "\n");
  const auto outcome = test::run_program(
      {"generate", "--model", kModel, "--input-ids", file, "--ep", "2", "--transport", "shm"});
  test::expect_one_line(outcome, 2, file + " line 3");
  test::expect_one_line(outcome, 2, GetParam().second.says);
}

INSTANTIATE_TEST_SUITE_P(Program,
                         WrongIds,
                         testing::Values(std::pair{"4 331", ids("BeyondTheVocabulary", "331")},
                                         std::pair{"-1", ids("Negative", "-1")},
                                         std::pair{"7 x", ids("NotANumber", "\"x\"")},
                                         std::pair{"99999999999", ids("TooLarge", "9999")},
                                         std::pair{",", ids("None", "empty")}),
                         [](const auto& c) { return std::string(c.param.second.name); });

TEST(Usage, UnknownInstructionSetIsRefused) {
  test::expect_one_line(
      test::run_program({"generate", "--model", kModel, "--prompt", "a"}, {"FERRY_ISA=mmx"}),
      2,
      "FERRY_ISA");
}

TEST(Usage, HelpListsTheSubcommandsAndVersionIsPlain) {
  const auto help = test::run_program({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* name : {"generate", "eval", "inspect", "make-model", "doctor"})
    EXPECT_NE(help.out.find(std::string("\n  ") + name), std::string::npos) << name;
  EXPECT_EQ(test::run_program({"generate", "--help"}).status, 0);
  const auto version = test::run_program({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_TRUE(version.out.starts_with("ferry "));
}

}  // namespace
}  // namespace ferry
