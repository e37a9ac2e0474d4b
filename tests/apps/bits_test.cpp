// The bits that the engine has given since tests/data/bits.json was written: tools/bits.py runs
// every model in the ways that the file lists and compares hashes. The main run takes a share of
// the ways, FERRY_LONG_TESTS=1 all of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "apps/program.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;

/// Names of the models in the file, each once. Empty where the file cannot be read, which
/// GoogleTest then reports: this runs before main().
std::vector<std::string> models_of_the_file() {
  std::ifstream in(test::data_dir("bits.json"));
  const json file = json::parse(in, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> names;
  if (!file.is_object() || !file.contains("prompts")) return names;
  for (const auto& [path, prompts] : file["prompts"].items())
    names.push_back(std::filesystem::path(path).filename().string());
  return names;
}

class Bits : public testing::TestWithParam<std::string> {};

/// The runs of a model, as an expression on "MODEL ARGUMENTS". Sanitizers leave out rows with other
/// weights and wires. Scalar kernels do not: here all whole models meet the bits of the others.
std::string runs_of(const std::string& model) {
#ifdef FERRY_SANITIZE
  if (slow_run()) return "^" + model + " --ep";
#endif
  return "^" + model + " ";
}

/// Of so many ways to run a row of the file, one.
int share() {
  if (long_tests()) return 1;
  return slow_run() ? 12 : 6;
}

TEST_P(Bits, AreThoseOfTheFile) {
  if (test::output_of("python3 --version").status != 0) GTEST_SKIP() << "no python3";
  const auto outcome =
      test::output_of(fmt::format("python3 {} check --jobs 2 --program '{}' --share {} --only '{}'",
                                  (test::source_dir() / "tools/bits.py").string(),
                                  test::program_path(),
                                  share(),
                                  runs_of(GetParam())));
  EXPECT_EQ(outcome.status, 0) << outcome.out;
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Bits,
                         testing::ValuesIn(models_of_the_file()),
                         [](const auto& model) {
                           std::string name = model.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(BitsFile, HasEveryGoldenModel) {
  const std::vector<std::string> names = models_of_the_file();
  const std::set<std::string> known(names.begin(), names.end());
  for (const auto& entry : std::filesystem::directory_iterator(test::data_dir(""))) {
    if (!std::filesystem::exists(entry.path() / "golden.json") ||
        !std::filesystem::exists(entry.path() / "config.json"))
      continue;  // a tokenizer's
    EXPECT_EQ(known.count(entry.path().filename().string()), 1U)
        << entry.path() << " is new? tools/bits.py write";
  }
}

}  // namespace
}  // namespace ferry
