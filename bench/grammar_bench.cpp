// What a grammar costs one token at a vocabulary of 150k, on one thread. Floor: reading the logits
// once. `token`: the next token is told and its mask asked for at once, so that nothing of it hides
// behind a step. `mask`: the same 3 ms later, as behind a step, when what is left is to put the
// mask on the logits. `first`: the first mask of a grammar in a string, which goes through the
// vocabulary; those after it at the same place of the grammar do not.
#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "ferry/kernels/kernels.h"
#include "ferry/text/grammars.h"
#include "ferry/text/tokenizer.h"

namespace ferry {
namespace {

constexpr int kVocab = 150000;
constexpr std::int32_t kEos = kVocab - 1;
constexpr int kWordsOfBytes = 256;

/// How byte-level tokenizers write a byte: printable ones as they are, the others from U+0100 on.
std::vector<std::string> byte_characters() {
  std::vector<std::string> all;
  unsigned next = 256;
  for (unsigned b = 0; b < 256; ++b) {
    const bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const unsigned c = plain ? b : next++;
    if (c < 128)
      all.emplace_back(1, static_cast<char>(c));
    else
      all.push_back({static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))});
  }
  return all;
}

/// A vocabulary as published ones are: bytes, words in small and large letters with and without a
/// space before them, numbers, punctuation, blanks, letters of other scripts. No merges: nothing is
/// encoded here but single bytes.
nlohmann::json tokenizer_json() {
  const std::vector<std::string> of_byte = byte_characters();
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::set<std::string> seen;
  nlohmann::json vocab = nlohmann::json::object();
  const auto add = [&](const std::string& bytes) {
    if (!seen.insert(bytes).second) return;
    std::string token;
    for (const char c : bytes) token += of_byte[static_cast<unsigned char>(c)];
    vocab[token] = vocab.size();
  };
  for (int b = 0; b < kWordsOfBytes; ++b) add(std::string(1, static_cast<char>(b)));
  while (vocab.size() < kEos) {
    std::string token = below(2) == 0 ? " " : "";
    const int kind = below(20);
    const int length = 1 + below(9);
    for (int i = 0; i < length; ++i) {
      if (kind < 13)
        token += static_cast<char>((kind < 2 || (kind < 5 && i == 0) ? 'A' : 'a') + below(26));
      else if (kind == 13)
        token += static_cast<char>('0' + below(10));
      else if (kind < 16)
        token += R"({}[]",:.;!?()<>=+-*/\_#'&|)"[below(26)];
      else if (kind == 16)
        token += " \n\t"[below(3)];
      else
        token += {static_cast<char>(0xe4 + below(5)),
                  static_cast<char>(0x80 + below(64)),
                  static_cast<char>(0x80 + below(64))};
    }
    add(token);
  }
  return {{"version", "1.0"},
          {"added_tokens",
           {{{"id", kEos}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
}

const Tokenizer& tokenizer() {
  static const Tokenizer made = [] {
    std::string directory =
        (std::filesystem::temp_directory_path() / "ferry-bench-XXXXXX").string();
    if (::mkdtemp(directory.data()) == nullptr) throw std::runtime_error("no directory");
    std::ofstream(std::filesystem::path(directory) / "tokenizer.json") << tokenizer_json();
    Tokenizer loaded = Tokenizer::load(directory);
    std::filesystem::remove_all(directory);
    return loaded;
  }();
  return made;
}

Grammars& grammars() {
  static Grammars made(tokenizer(), kVocab, std::vector<std::int32_t>{kEos});
  return made;
}

/// A text that has come so far of some form, and what may come next.
struct Place {
  GrammarText grammar;
  std::string text;
  std::string next;
};

Place place(int number) {
  using Kind = GrammarText::Kind;
  static const std::string schema = R"({"type": "object", "properties": {
      "name": {"type": "string"}, "age": {"type": "integer"},
      "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}},
      "required": ["name", "age", "tags"], "additionalProperties": false})";
  switch (number) {
    case 0:  // nearly all tokens may come
      return {{Kind::json_schema, schema}, R"({"name": "Mi)", "a"};
    case 1:  // few may
      return {{Kind::json_schema, schema}, R"({"name": "Mia", "age": 1)", "2"};
    case 2:
      return {{Kind::json_schema, schema}, R"({"name": "Mia", "age": 12, "tags": ["re)", "d"};
    case 3:  // any object
      return {{Kind::json, ""}, R"({"a": [1, {"b": "x)", "y"};
    case 4:
      return {{Kind::json_schema, R"({"type": "string", "maxLength": 200})"}, "\"Mi", "a"};
    default:
      return {{Kind::regex, "[A-Z][a-z]+( [A-Z][a-z]+)*"}, "Onc", "e"};
  }
}

constexpr const char* kPlaces[] = {"in a string",
                                   "in a number",
                                   "in an enum",
                                   "in any object",
                                   "in a string with maxLength",
                                   "in a regex"};
constexpr int kLast = static_cast<int>(std::size(kPlaces)) - 1;

/// Before the last token, with the mask for it there.
std::unique_ptr<GrammarState> state_at(const Place& at) {
  grammars().check(at.grammar);
  auto state = grammars().begin(at.grammar);
  for (const std::int32_t id : tokenizer().encode(at.text, /*add_special=*/false))
    state->advance(id);
  return state;
}

void token(benchmark::State& bench) {
  const Place at = place(static_cast<int>(bench.range(0)));
  bench.SetLabel(kPlaces[bench.range(0)]);
  const auto state = state_at(at);
  const std::int32_t next = tokenizer().encode(at.next, /*add_special=*/false).front();
  std::vector<float> logits(kVocab, 1.0F);
  for (auto _ : bench) {
    state->advance(next);
    state->mask(logits);
    state->roll_back(1);
  }
}

void mask(benchmark::State& bench) {
  constexpr std::chrono::milliseconds kStep{3};
  const Place at = place(static_cast<int>(bench.range(0)));
  bench.SetLabel(kPlaces[bench.range(0)]);
  const auto state = state_at(at);
  const std::int32_t next = tokenizer().encode(at.next, /*add_special=*/false).front();
  std::vector<float> logits(kVocab, 1.0F);
  for (auto _ : bench) {
    state->advance(next);
    std::this_thread::sleep_for(kStep);
    const auto begin = std::chrono::steady_clock::now();
    state->mask(logits);
    bench.SetIterationTime(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    state->roll_back(1);
  }
}

void first(benchmark::State& bench) {
  const Place at = place(0);
  int number = 0;
  for (auto _ : bench) {
    GrammarText fresh = at.grammar;  // another one each time, so that it is not kept
    fresh.text.insert(1, "\"title\": \"" + std::to_string(number++) + "\", ");
    grammars().check(fresh);
    const auto state = grammars().begin(fresh);
    for (const std::int32_t id : tokenizer().encode(at.text, /*add_special=*/false))
      state->advance(id);
    std::vector<float> logits(kVocab, 1.0F);
    state->mask(logits);
  }
}

void floor(benchmark::State& bench) {
  const std::vector<float> row(kVocab, 1.0F);
  for (auto _ : bench) benchmark::DoNotOptimize(kernels().greatest(row.data(), std::ssize(row)));
}

BENCHMARK(floor);
BENCHMARK(token)->DenseRange(0, kLast)->UseRealTime();
BENCHMARK(mask)->DenseRange(0, kLast)->UseManualTime()->Iterations(200);
BENCHMARK(first)->UseRealTime();

}  // namespace
}  // namespace ferry

int main(int argc, char** argv) {
  if (!ferry::Grammars::built_in()) {
    std::fputs("this build has no grammars (scripts/setup.sh)\n", stderr);
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
