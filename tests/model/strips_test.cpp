// Matrices made of tensors that are stored in different types: queries, keys and values.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/core/error.h"
#include "ferry/model/mixers/attention.h"
#include "ferry/model/quantized_checkpoint.h"
#include "ferry/model/summary.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Logits = std::vector<std::vector<float>>;
using enum WeightType;

/// Layers of q4_k and q6_k; of q8_0, bf16 and f32; of q4_k alone; and as the first again.
constexpr const char* kFile = "gguf/mixed_types.gguf";

const AttentionWeights& attention_of(const DenseWeights& weights, std::size_t layer) {
  return dynamic_cast<const AttentionWeights&>(*weights.layers[layer].mixer);
}

std::vector<WeightType> types_of(const OwnedMatrix& matrix) {
  std::vector<WeightType> types;
  for (const PackedMatrix& strip : matrix.strips) types.push_back(strip.type);
  return types;
}

/// All that was allocated.
std::uint64_t bytes_of(const DenseWeights& weights) {
  const auto floats = [](const std::vector<float>& x) { return x.size() * sizeof(float); };
  std::uint64_t bytes =
      weights.embedding.bytes() + floats(weights.final_norm) + weights.head.memory.size();
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const DenseWeights::Layer& layer = weights.layers[i];
    const AttentionWeights& mixer = attention_of(weights, i);
    bytes += floats(layer.attention_norm) + floats(layer.ffn_norm) + layer.router.memory.size() +
             mixer.qkv.memory.size() + mixer.output.memory.size() + floats(mixer.query_norm) +
             floats(mixer.key_norm);
  }
  return bytes;
}

bool same_bytes(const Logits& a, const Logits& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
  });
}

TEST(MatrixStrips, EachTensorKeepsItsType) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir(kFile));
  ThreadPool pool(2);
  const WeightChoice choice = choose_weights(checkpoint, {});
  const DenseWeights dense = load_dense_weights(checkpoint, choice, pool, {});
  const auto qkv = [&](std::size_t layer) { return types_of(attention_of(dense, layer).qkv); };
  EXPECT_THAT(qkv(0), testing::ElementsAre(q4_k, q6_k));
  EXPECT_THAT(qkv(1), testing::ElementsAre(q8_0, bf16));  // where f32 becomes bf16, too
  EXPECT_THAT(qkv(2), testing::ElementsAre(q4_k));
  EXPECT_EQ(held_names(checkpoint, choice), "bf16, q8_0, q4_0, q4_k, q6_k");
  EXPECT_THROW(attention_of(dense, 0).qkv.whole(), BrokenContract);
  // Rows that are looked up lie as in the file.
  EXPECT_EQ(dense.embedding.bytes(), 264 * code_row_bytes(q4_k, 256));
  EXPECT_EQ(held_bytes(checkpoint, choice).looked_up, dense.embedding.bytes());
  EXPECT_EQ(bytes_per_rank(checkpoint, 1)[0].memory.dense, bytes_of(dense));
  const DenseWeights plain = load_dense_weights(checkpoint, {.type = bf16}, pool, {});
  EXPECT_THAT(types_of(attention_of(plain, 0).qkv), testing::ElementsAre(bf16));
}

TEST(MatrixStrips, GiveTheLogitsOfElements) {
  const std::vector<std::vector<std::int32_t>> sequences = {
      {1, 2, 3, 4, 5, 6, 7, 260, 17}, {9, 8, 7}, {200, 100, 50, 25, 12}};
  const Logits plain = test::run_model(kFile, sequences, {.weights = bf16, .together = false});
  ASSERT_EQ(plain[0].size(), 9U * 264U);
  const auto check = [&](test::ModelRun run, const char* what) {
    run.as_found = true;
    EXPECT_TRUE(same_bytes(test::run_model(kFile, sequences, run), plain)) << what;
  };
  check({}, "alone");
  check({.threads = 2, .chunk = 2}, "2 threads, chunks of 2");
  check({.ranks = 2}, "2 ranks");
  check({.ranks = 3, .chunk = 1}, "3 ranks, token by token");
  check({.ranks = 2, .tp = 2}, "a group of 2");
  check({.ranks = 2, .tp = 2, .own_share = true}, "a group of 2 with no weights but their own");
  check({.ranks = 3, .tp = 3, .chunk = 4, .own_share = true}, "a group of 3, likewise");
  check({.ranks = 4, .tp = 4, .threads = 2, .own_share = true}, "one without a key-value head");
  check({.ranks = 4, .tp = 2, .expert_slices = 2}, "2 groups of 2, experts in slices");
}

/// A checkpoint in fp8 in which the tensors with this in their names are plain, as where a
/// converter was told to leave them.
void write_partly_plain(const std::filesystem::path& source,
                        std::string_view plain_ones,
                        const std::filesystem::path& out) {
  ThreadPool pool(1);
  const Checkpoint plain = Checkpoint::open(source);
  write_quantized(plain, {.type = fp8}, out, pool, {});
  std::filesystem::copy(source / "model.safetensors", out / "plain.safetensors");
  nlohmann::json map;
  const auto add = [&](const char* name, bool plain_part) {
    const SafetensorsFile file(out / name);
    for (const SafetensorsFile::Entry& entry : file.entries())
      if ((entry.name.find(plain_ones) != std::string::npos) == plain_part) map[entry.name] = name;
  };
  add("model.safetensors", false);
  add("plain.safetensors", true);
  test::write_file(out / "model.safetensors.index.json",
                   nlohmann::json{{"weight_map", map}}.dump());
}

TEST(MatrixStrips, WhatIsNotQuantisedStaysSoBesideWhatIs) {
  const test::TempDir dir;
  const auto source = test::data_dir("qwen3_bf16");
  const auto mixed = dir.path() / "mixed";
  write_partly_plain(source, ".v_proj.", mixed);
  const Checkpoint checkpoint = Checkpoint::open(mixed);
  ThreadPool pool(2);
  const WeightChoice choice = choose_weights(checkpoint, {});
  ASSERT_EQ(choice.type, fp8);
  const DenseWeights found = load_dense_weights(checkpoint, choice, pool, {});
  const Checkpoint original = Checkpoint::open(source);
  const DenseWeights codes = load_dense_weights(original, {.type = fp8}, pool, {});
  const DenseWeights elements = load_dense_weights(original, {.type = bf16}, pool, {});
  const ModelConfig& config = checkpoint.config();
  for (std::size_t layer = 0; layer < found.layers.size(); ++layer) {
    const OwnedMatrix& qkv = attention_of(found, layer).qkv;
    ASSERT_THAT(types_of(qkv), testing::ElementsAre(fp8, bf16));
    const PackedMatrix& queries_and_keys = qkv.strips[0];
    const PackedMatrix& values = qkv.strips[1];
    ASSERT_EQ(queries_and_keys.n, (config.heads + config.kv_heads) * config.head_dim);
    ASSERT_EQ(queries_and_keys.n % kPanelColumns, 0);
    const auto same = [&](const PackedMatrix& a, const PackedMatrix& whole, std::int64_t first) {
      const std::size_t bytes = a.panel_bytes();
      return std::memcmp(a.data,
                         whole.data + static_cast<std::size_t>(first / kPanelColumns) * bytes,
                         static_cast<std::size_t>(a.panels()) * bytes) == 0;
    };
    EXPECT_TRUE(same(queries_and_keys, attention_of(codes, layer).qkv.whole(), 0));
    EXPECT_TRUE(same(values, attention_of(elements, layer).qkv.whole(), queries_and_keys.n));
  }
  const std::vector<std::vector<std::int32_t>> sequences = {{1, 2, 3, 4, 5, 6, 7}, {9, 8, 7}};
  const std::string model = mixed.string();
  const Logits plain = test::run_model(model, sequences, {.as_found = true});
  EXPECT_FALSE(same_bytes(test::run_model(model, sequences, {.weights = fp8}), plain));
  const auto check = [&](const test::ModelRun& run, const char* what) {
    EXPECT_TRUE(same_bytes(test::run_model(model, sequences, run), plain)) << what;
  };
  check({.ranks = 2, .tp = 2, .as_found = true, .own_share = true}, "a group of 2");
  check({.ranks = 3, .chunk = 2, .as_found = true}, "3 ranks, chunks of 2");
}

TEST(MatrixStrips, BothProductsOfABlockHaveTheirOwnType) {
  const test::TempDir dir;
  const auto mixed = dir.path() / "mixed";
  write_partly_plain(test::data_dir("glm4_moe_air_bf16"), ".mlp.down_proj.", mixed);
  const Checkpoint checkpoint = Checkpoint::open(mixed);
  ThreadPool pool(2);
  const DenseWeights dense =
      load_dense_weights(checkpoint, choose_weights(checkpoint, {}), pool, {});
  EXPECT_EQ(dense.layers[0].ffn.view.gate_up.type, fp8);
  EXPECT_EQ(dense.layers[0].ffn.view.down.type, bf16);
  write_partly_plain(test::data_dir("glm4_moe_air_bf16"), ".mlp.up_proj.", dir.path() / "gates");
  const Checkpoint gates = Checkpoint::open(dir.path() / "gates");
  const DenseWeights other = load_dense_weights(gates, choose_weights(gates, {}), pool, {});
  EXPECT_EQ(other.layers[0].ffn.view.gate_up.type, bf16);  // what is plain is not rounded
  EXPECT_EQ(other.layers[0].ffn.view.down.type, fp8);
}

}  // namespace
}  // namespace ferry
