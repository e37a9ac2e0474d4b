// Damaged checkpoints: one line with the file and what is wrong, status 1, whatever the ranks are.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "apps/program.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;

/// Changes fields of config.json.
void change_config(const fs::path& model, const nlohmann::json& changes) {
  auto config = nlohmann::json::parse(test::read_file(model / "config.json"));
  config.update(changes);
  test::write_file(model / "config.json", config.dump());
}

/// Changes the header of model.safetensors, keeping its length.
void change_header(const fs::path& model, const std::function<void(nlohmann::json&)>& change) {
  std::string bytes = test::read_file(model / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  auto header = nlohmann::json::parse(bytes.substr(sizeof length, length));
  change(header);
  std::string text = header.dump();
  ASSERT_LE(text.size(), length);
  text.resize(length, ' ');
  test::write_file(model / "model.safetensors", bytes.replace(sizeof length, length, text));
}

struct Damage {
  const char* name;
  std::function<void(const fs::path&)> inflict;
  const char* says;
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedModel : public testing::TestWithParam<Damage> {};

TEST_P(DamagedModel, GivesOneLineAndStatusOne) {
  const test::TempDir directory;
  const fs::path model = directory.path() / "model";
  fs::copy(test::data_dir("qwen2_untied"), model);
  GetParam().inflict(model);
  for (const char* transport : {"inproc", "shm"}) {
    const auto outcome = test::run_program({"generate",
                                            "--model",
                                            model.string(),
                                            "--prompt",
                                            "hello",
                                            "--ep",
                                            "3",
                                            "--transport",
                                            transport});
    test::expect_one_line(outcome, 1, model.string());
    test::expect_one_line(outcome, 1, GetParam().says);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Program,
    DamagedModel,
    testing::Values(
        Damage{"NoDirectory", [](const fs::path& m) { fs::remove_all(m); }, "nothing"},
        Damage{"NoConfig", [](const fs::path& m) { fs::remove(m / "config.json"); }, "config.json"},
        Damage{"ConfigIsNotJson",
               [](const fs::path& m) { test::write_file(m / "config.json", "{"); },
               "config.json"},
        Damage{"NoWeights",
               [](const fs::path& m) { fs::remove(m / "model.safetensors"); },
               "safetensors"},
        Damage{"TruncatedWeights",
               [](const fs::path& m) {
                 fs::resize_file(m / "model.safetensors",
                                 fs::file_size(m / "model.safetensors") / 2);
               },
               "model.safetensors"},
        Damage{"EmptyWeights",
               [](const fs::path& m) { fs::resize_file(m / "model.safetensors", 0); },
               "model.safetensors"},
        Damage{"OffsetsBeyondTheFile",
               [](const fs::path& m) {
                 change_header(m, [](nlohmann::json& header) {
                   auto& offsets = header["model.norm.weight"]["data_offsets"];
                   offsets = {1 << 30, (1 << 30) + 288};
                   header.erase("__metadata__");
                 });
               },
               "model.norm.weight"},
        Damage{"TensorMissing",
               [](const fs::path& m) {
                 change_header(m, [](nlohmann::json& h) { h.erase("model.norm.weight"); });
               },
               "model.safetensors"},
        Damage{"UnknownArchitecture",
               [](const fs::path& m) {
                 change_config(m, {{"architectures", {"FooForCausalLM"}}, {"model_type", "foo"}});
               },
               "FooForCausalLM"},
        Damage{"ShapesOtherThanTheConfigs",
               [](const fs::path& m) {
                 change_config(m, {{"moe_intermediate_size", 32}});
               },
               "32"},
        Damage{"MoreLayersThanThereAre",
               [](const fs::path& m) {
                 change_config(m, {{"num_hidden_layers", 3}});
               },
               "layers.2"},
        Damage{"HeadsThatDoNotDivide",
               [](const fs::path& m) {
                 change_config(m, {{"num_key_value_heads", 2}});
               },
               "num_key_value_heads"},
        Damage{"DamagedTokenizer",
               [](const fs::path& m) { test::write_file(m / "tokenizer.json", "[]"); },
               "tokenizer.json"},
        Damage{"NoTokenizer",
               [](const fs::path& m) { fs::remove(m / "tokenizer.json"); },
               "tokenizer.json"}),
    [](const auto& damage) { return std::string(damage.param.name); });

TEST(Model, WithoutTokenizerStillContinuesIds) {
  const test::TempDir directory;
  const fs::path model = directory.path() / "model";
  fs::copy(test::data_dir("qwen2_untied"), model);
  fs::remove(model / "tokenizer.json");
  test::write_file(directory.path() / "ids", "307\n");
  const auto outcome = test::run_program({"generate",
                                          "--model",
                                          model.string(),
                                          "--input-ids",
                                          (directory.path() / "ids").string(),
                                          "--max-new-tokens",
                                          "4",
                                          "--quiet"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "73 215 143 243\n");
}

}  // namespace
}  // namespace ferry
