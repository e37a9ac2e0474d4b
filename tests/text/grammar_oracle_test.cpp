// Masks and texts of JSON schemas beside those of other programs: llguidance's masks over the same
// vocabulary, jsonschema's word on what came out. scripts/setup.sh clients installs both; without
// them this test is skipped. tests/oracles/grammar_oracle.py compares, and says what differs on
// purpose.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "ferry/text/grammars.h"
#include "ferry/text/tokenizer.h"
#include "support/files.h"
#include "support/paths.h"
#include "support/random_schema.h"

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int32_t kEos = 640;
constexpr int kVocab = 656;  // more than the tokenizer has
constexpr int kSchemas = 80;
constexpr int kWalks = 3;  // of each schema
constexpr int kMostTokens = 120;

/// One that has both packages; empty: there is none.
std::string python() {
  for (const std::string& program :
       {(test::source_dir() / "build/clients/bin/python").string(), std::string("python3")}) {
    const std::string command = program + " -c 'import llguidance, jsonschema' 2>/dev/null";
    if (std::system(command.c_str()) == 0) return program;
  }
  return "";
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

/// The tokens that may come next, a bit each.
std::string mask_of(GrammarState& state, std::vector<std::int32_t>& allowed) {
  std::vector<float> logits(kVocab, 0.0F);
  state.mask(logits);
  std::string bits((kVocab + 7) / 8, '\0');
  allowed.clear();
  for (std::int32_t id = 0; id < kVocab; ++id) {
    if (!std::isfinite(logits[static_cast<std::size_t>(id)])) continue;
    allowed.push_back(id);
    char& byte = bits[static_cast<std::size_t>(id / 8)];
    byte = static_cast<char>(static_cast<unsigned char>(byte) | (1U << (id % 8)));
  }
  return hex(bits);
}

/// Whether a text by chance had better take another token: white space teaches little, and DEL is
/// what the two programs differ in.
bool dull(std::string_view token) {
  return token.find_first_not_of(" \t\r\n") == std::string_view::npos ||
         token.find('\x7f') != std::string_view::npos;
}

/// A text by chance, with the mask before each of its tokens.
Json walk(const Tokenizer& tokenizer,
          Grammars& grammars,
          const std::string& schema,
          std::mt19937& random) {
  const auto state = grammars.begin({GrammarText::Kind::json_schema, schema});
  Json steps = Json::array();
  std::vector<std::int32_t> allowed;
  for (int i = 0; i < kMostTokens; ++i) {
    const std::string mask = mask_of(*state, allowed);
    if (allowed.empty()) break;
    std::int32_t id = allowed[random() % allowed.size()];
    for (int again = 0; again < 20 && id != kEos && dull(tokenizer.token_bytes(id)); ++again)
      id = allowed[random() % allowed.size()];
    steps.push_back({{"mask", mask}, {"token", id}});
    if (id == kEos) break;
    state->advance(id);
  }
  return steps;
}

/// What the oracle ends with.
int status_of(const std::string& program, const Json& walks) {
  const test::TempDir directory;
  const std::string file = (directory.path() / "walks.json").string();
  test::write_file(file, walks.dump());
  const std::string script = (test::source_dir() / "tests/oracles/grammar_oracle.py").string();
  return std::system(fmt::format("{} {} {}", program, script, file).c_str());
}

TEST(GrammarOracle, MasksAndTextsAreWhatOthersSay) {
  const std::string program = python();
  if (program.empty())
    GTEST_SKIP() << "no Python with llguidance and jsonschema (scripts/setup.sh clients)";
  const Tokenizer tokenizer = Tokenizer::load(test::source_dir() / "assets" / "demo-moe");
  Grammars grammars(tokenizer, kVocab, std::vector<std::int32_t>{kEos});
  Json all{{"eos", kEos}, {"tokens", Json::array()}, {"schemas", Json::array()}};
  for (std::int32_t id = 0; id < kVocab; ++id) {
    const bool text = id < tokenizer.size() && tokenizer.has_token(id) && !tokenizer.is_special(id);
    all["tokens"].push_back(text ? Json(hex(tokenizer.token_bytes(id))) : Json(nullptr));
  }
  std::mt19937 random(17);
  for (int i = 0; i < kSchemas; ++i) {
    const Json schema = test::random_schema(random);
    grammars.check({GrammarText::Kind::json_schema, schema.dump()});
    Json walks = Json::array();
    for (int j = 0; j < kWalks; ++j)
      walks.push_back(walk(tokenizer, grammars, schema.dump(), random));
    all["schemas"].push_back({{"schema", schema}, {"walks", walks}});
  }
  EXPECT_EQ(status_of(program, all), 0);
  // The oracle sees a single token too many, of one mask in the middle.
  std::string mask = all["schemas"][kSchemas / 2]["walks"][0][0]["mask"];
  mask[0] = mask[0] == 'f' ? '7' : 'f';
  all["schemas"][kSchemas / 2]["walks"][0][0]["mask"] = mask;
  EXPECT_NE(status_of(program, all), 0);
}

}  // namespace
}  // namespace ferry
