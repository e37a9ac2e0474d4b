// GGUF files as a source of tensors and texts: names, shapes and order as a Hugging Face directory
// has them.
#include "ferry/checkpoint/gguf/gguf_source.h"

#include <fmt/core.h>
#include <gmock/gmock.h>

#include <array>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "gguf_bytes.h"
#include "small_source.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::GgufBytes;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kF32 = 0;

class GgufModelFile : public testing::Test {
 protected:
  std::filesystem::path write(const GgufBytes& file, const std::string& name = "m.gguf") const {
    test::write_file(dir_.path() / name, file.bytes());
    return dir_.path() / name;
  }

  std::unique_ptr<TensorSource> open(const GgufBytes& file) const {
    return open_source(write(file));
  }

  std::string error(const std::function<void(GgufBytes&)>& change) const {
    GgufBytes file = test::small_gguf();
    change(file);
    return test::message_of<ModelError>([&] { open(file); });
  }

  std::filesystem::path path() const { return dir_.path(); }

 private:
  test::TempDir dir_;
};

json config_of(const TensorSource& source) {
  return json::parse(source.text("config.json").value().text);
}

std::vector<float> all_rows(const TensorSource& source,
                            const std::string& name,
                            std::int64_t rows,
                            std::int64_t columns) {
  const json config = config_of(source);
  const auto format =
      read_stored_format(ConfigReader(config["quantization_config"], "quantization_config"));
  const StoredMatrix matrix =
      find_matrix(source, format.get(), {.name = name, .rows = rows, .columns = columns});
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  // In parts of odd sizes, as loaders may ask for them.
  for (std::int64_t i = 0; i < rows; i += 3) {
    matrix.read_rows(i,
                     std::min<std::int64_t>(3, rows - i),
                     DType::f32,
                     reinterpret_cast<std::byte*>(out.data() + i * columns));
  }
  return out;
}

/// Elements 0, 1, 2, ... of a tensor with these dimensions, columns first.
void count_up(GgufBytes& file,
              const std::string& name,
              std::vector<std::uint64_t> dimensions,
              float first = 0) {
  std::size_t count = 1;
  for (const std::uint64_t d : dimensions) count *= d;
  file.tensor(name, std::move(dimensions), kF32, count * 4);
  for (std::size_t i = 0; i < count; ++i) {
    const float value = first + static_cast<float>(i);
    std::memcpy(file.data.data() + file.tensors.back().offset + i * 4, &value, 4);
  }
}

TEST_F(GgufModelFile, HasTheTensorsThatFamiliesAskFor) {
  const auto source = open(test::small_gguf());
  EXPECT_EQ(source->path(), (path() / "m.gguf").string());
  const std::string layer = "model.layers.0.";
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"})
    EXPECT_NE(source->find(name), nullptr) << name;
  EXPECT_THAT(source->find(layer + "self_attn.k_proj.weight")->shape, ElementsAre(16, 32));
  const SourceTensor* last = source->find(layer + "mlp.experts.2.down_proj.weight");
  ASSERT_NE(last, nullptr);
  EXPECT_THAT(last->shape, ElementsAre(32, 32));
  EXPECT_EQ(last->data.size(), std::size_t{32 * 34});
  EXPECT_EQ(last->type, "Q8_0");
  EXPECT_FALSE(last->dtype);
  const SourceTensor* first = source->find(layer + "mlp.experts.0.down_proj.weight");
  EXPECT_EQ(last->data.data() - first->data.data(), 2 * 32 * 34);
  EXPECT_EQ(source->find(layer + "mlp.experts.3.down_proj.weight"), nullptr);
  EXPECT_EQ(source->find("token_embd.weight"), nullptr);
}

TEST_F(GgufModelFile, SaysWhatAConfigSays) {
  GgufBytes file = test::small_gguf();
  file.integer("tokenizer.ggml.eos_token_id", 7).integer("tokenizer.ggml.eot_token_id", 9);
  const auto source = open(file);
  const json config = config_of(*source);
  EXPECT_EQ(config["architectures"], json({"Qwen3MoeForCausalLM"}));
  EXPECT_EQ(config["vocab_size"], 10);
  EXPECT_EQ(config["rms_norm_eps"], 1e-6) << "as it was meant";
  EXPECT_EQ(config["head_dim"], 16);
  EXPECT_EQ(config["mlp_only_layers"], json::array());
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_EQ(json::parse(source->text("generation_config.json")->text)["eos_token_id"],
            json({7, 9}));
  EXPECT_FALSE(source->text("tokenizer.json"));
  EXPECT_FALSE(source->text("chat_template.jinja"));
}

TEST_F(GgufModelFile, ReadsBlocksOfOneExpert) {
  GgufBytes file = test::small_gguf();
  char* block = file.data.data() + file.tensors.back().offset + (2 * 32 + 1) * 34;  // row 1 of 2
  const std::uint16_t half_of_two = 0x4000;
  std::memcpy(block, &half_of_two, 2);
  for (int i = 0; i < 32; ++i) block[2 + i] = static_cast<char>(i - 16);
  const auto source = open(file);
  const auto rows = all_rows(*source, "model.layers.0.mlp.experts.2.down_proj.weight", 32, 32);
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(rows[static_cast<std::size_t>(32 + i)], static_cast<float>(2 * (i - 16)));
}

TEST_F(GgufModelFile, TurnsRowsOfQueriesAndKeysBack) {
  GgufBytes llama;
  llama.text("general.architecture", "llama")
      .integer("llama.block_count", 1)
      .integer("llama.context_length", 64)
      .integer("llama.embedding_length", 4)
      .integer("llama.attention.head_count", 2)
      .integer("llama.attention.key_length", 4)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-5F)
      .integer("llama.expert_count", 3)
      .integer("llama.expert_used_count", 2)
      .integer("llama.feed_forward_length", 8);
  count_up(llama, "token_embd.weight", {4, 10});
  count_up(llama, "blk.0.attn_q.weight", {4, 8});
  const auto source = open(llama);
  const auto rows = all_rows(*source, "model.layers.0.self_attn.q_proj.weight", 8, 4);
  std::vector<int> order;
  for (std::size_t i = 0; i < 8; ++i) order.push_back(static_cast<int>(rows[i * 4]) / 4);
  EXPECT_THAT(order, ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(test::message_of<ModelError>(
                  [&] { all_rows(*source, "model.layers.0.self_attn.q_proj.weight", 9, 4); }),
              HasSubstr("expected [9, 4]"));
}

GgufBytes deepseek() {
  GgufBytes file;
  file.text("general.architecture", "deepseek2")
      .integer("deepseek2.block_count", 1)
      .integer("deepseek2.context_length", 64)
      .integer("deepseek2.embedding_length", 4)
      .integer("deepseek2.attention.head_count", 2)
      .integer("deepseek2.attention.key_length_mla", 5)
      .integer("deepseek2.attention.value_length_mla", 2)
      .integer("deepseek2.attention.kv_lora_rank", 4)
      .integer("deepseek2.rope.dimension_count", 2)
      .number("deepseek2.attention.layer_norm_rms_epsilon", 1e-6F)
      .integer("deepseek2.expert_count", 3)
      .integer("deepseek2.expert_used_count", 2)
      .integer("deepseek2.expert_feed_forward_length", 8);
  count_up(file, "token_embd.weight", {4, 10});
  return file;
}

TEST_F(GgufModelFile, PutsKeysAndValuesOfLatentAttentionTogether) {
  GgufBytes file = deepseek();
  count_up(file, "blk.0.attn_k_b.weight", {3, 4, 2});       // [heads, rank, plain]
  count_up(file, "blk.0.attn_v_b.weight", {4, 2, 2}, 100);  // [heads, value, rank]
  const auto source = open(file);
  const std::string name = "model.layers.0.self_attn.kv_b_proj.weight";
  const auto rows = all_rows(*source, name, 10, 4);
  const auto row = [&](std::size_t i) {
    return std::vector(rows.begin() + static_cast<int>(i) * 4,
                       rows.begin() + static_cast<int>(i) * 4 + 4);
  };
  EXPECT_THAT(row(0), ElementsAre(0, 3, 6, 9));
  EXPECT_THAT(row(2), ElementsAre(2, 5, 8, 11));
  EXPECT_THAT(row(3), ElementsAre(100, 101, 102, 103));
  EXPECT_THAT(row(5), ElementsAre(12, 15, 18, 21));
  EXPECT_THAT(row(9), ElementsAre(112, 113, 114, 115));
  const json config = config_of(*source);
  EXPECT_EQ(config["qk_nope_head_dim"], 3);
  EXPECT_EQ(config["topk_method"], "greedy");
  for (const std::int64_t wrong : {4, 9, 11, 20})
    EXPECT_THROW(all_rows(*source, name, wrong, 4), ModelError) << wrong;
  EXPECT_THROW(all_rows(*source, name, 10, 5), ModelError);
}

/// Two key heads of two rows, six heads of values of two rows: in the file, those of both key heads
/// in turn.
GgufBytes tiled_gguf() {
  GgufBytes file = test::small_gguf("qwen35moe");
  file.integer("qwen35moe.expert_shared_feed_forward_length", 32)
      .integer("qwen35moe.rope.dimension_count", 8)
      .integer("qwen35moe.ssm.conv_kernel", 4)
      .integer("qwen35moe.ssm.state_size", 2)
      .integer("qwen35moe.ssm.group_count", 2)
      .integer("qwen35moe.ssm.time_step_rank", 6)
      .integer("qwen35moe.ssm.inner_size", 12);
  return file;
}

TEST_F(GgufModelFile, PutsHeadsOfValuesOfADeltaNetTogether) {
  GgufBytes file = tiled_gguf();
  count_up(file, "blk.0.attn_qkv.weight", {3, 20});
  count_up(file, "blk.0.attn_gate.weight", {3, 12});
  count_up(file, "blk.0.ssm_beta.weight", {3, 6});
  count_up(file, "blk.0.ssm_out.weight", {12, 2});
  count_up(file, "blk.0.ssm_dt.bias", {6});
  count_up(file, "blk.0.ssm_conv1d.weight", {4, 20});
  const auto source = open(file);
  const std::string layer = "model.layers.0.linear_attn.";
  // Heads 0 to 2 are the first key head's.
  constexpr std::array kStored = {0, 2, 4, 1, 3, 5};
  const auto row_of = [&](std::int64_t row, std::int64_t before, std::int64_t each) {
    if (row < before) return row;
    const std::int64_t i = row - before;
    return before + kStored.at(static_cast<std::size_t>(i / each)) * each + i % each;
  };
  const auto expect_rows =
      [&](const char* name, std::int64_t rows, std::int64_t before, std::int64_t each) {
        const std::vector<float> found = all_rows(*source, layer + name, rows, 3);
        for (std::int64_t i = 0; i < rows * 3; ++i)
          EXPECT_EQ(found[static_cast<std::size_t>(i)],
                    static_cast<float>(row_of(i / 3, before, each) * 3 + i % 3))
              << name << " " << i;
      };
  expect_rows("in_proj_qkv.weight", 20, 8, 2);
  expect_rows("in_proj_z.weight", 12, 0, 2);
  expect_rows("in_proj_b.weight", 6, 0, 1);
  const std::vector<float> out = all_rows(*source, layer + "out_proj.weight", 2, 12);
  for (std::int64_t i = 0; i < 24; ++i) {
    const std::int64_t stored = i / 12 * 12 + row_of(i % 12, 0, 2);
    EXPECT_EQ(out[static_cast<std::size_t>(i)], static_cast<float>(stored));
  }
  const auto floats = [&](const std::string& name) {
    const auto data = source->find(layer + name)->data;
    std::vector<float> values(data.size() / sizeof(float));
    std::memcpy(values.data(), data.data(), data.size());
    return values;
  };
  EXPECT_THAT(floats("dt_bias"), ElementsAre(0, 2, 4, 1, 3, 5));
  EXPECT_THAT(source->find(layer + "conv1d.weight")->shape, ElementsAre(20, 1, 4));
  const std::vector<float> taps = floats("conv1d.weight");
  for (std::int64_t i = 0; i < 80; ++i)
    EXPECT_EQ(taps[static_cast<std::size_t>(i)],
              static_cast<float>(row_of(i / 4, 8, 2) * 4 + i % 4));
}

TEST_F(GgufModelFile, HeadsOfValuesThatDoNotFitAreRefused) {
  GgufBytes file = tiled_gguf();
  count_up(file, "blk.0.attn_gate.weight", {3, 13});
  const auto source = open(file);
  EXPECT_THAT(test::message_of<ModelError>(
                  [&] { all_rows(*source, "model.layers.0.linear_attn.in_proj_z.weight", 13, 3); }),
              HasSubstr("expected 13 rows of whole heads"));
  for (const auto& [key, value] :
       {std::pair{"ssm.time_step_rank", 3}, {"ssm.group_count", 0}, {"ssm.state_size", 1 << 21}}) {
    GgufBytes other = test::small_gguf("qwen35moe");
    for (const auto& [name, usual] : {std::pair{"expert_shared_feed_forward_length", 32},
                                      {"rope.dimension_count", 8},
                                      {"ssm.conv_kernel", 4},
                                      {"ssm.state_size", 2},
                                      {"ssm.group_count", 2},
                                      {"ssm.time_step_rank", 6},
                                      {"ssm.inner_size", 12}})
      other.integer(std::string("qwen35moe.") + name,
                    std::string_view(name) == key ? value : usual);
    EXPECT_NE(test::message_of<ModelError>([&] { open(other); }), "") << key;
  }
}

TEST_F(GgufModelFile, GatesAndUpsOfAllExpertsMayLieTogether) {
  GgufBytes file = test::small_gguf();
  std::erase_if(file.tensors, [](const auto& t) {
    return t.name.find("ffn_gate_exps") != std::string::npos ||
           t.name.find("ffn_up_exps") != std::string::npos;
  });
  count_up(file, "blk.0.ffn_gate_up_exps.weight", {32, 64, 3});
  const auto source = open(file);
  const std::string experts = "model.layers.0.mlp.experts.";
  for (const auto& [name, first] : {std::pair{"0.gate_proj.weight", 0},
                                    {"2.gate_proj.weight", 2 * 64 * 32},
                                    {"2.up_proj.weight", (2 * 64 + 32) * 32}}) {
    EXPECT_THAT(source->find(experts + name)->shape, ElementsAre(32, 32));
    EXPECT_EQ(all_rows(*source, experts + name, 32, 32).front(), static_cast<float>(first)) << name;
  }
  EXPECT_THAT(error([](GgufBytes& odd) {
                count_up(odd, "blk.0.ffn_gate_up_exps.weight", {32, 63, 3});
              }),
              HasSubstr("expected as many gates as ups"));
}

TEST_F(GgufModelFile, ExpertsAreAsManyAsTheMetadataSays) {
  for (const std::uint64_t experts : {1U, 2U, 4U, 1U << 16}) {
    EXPECT_THAT(error([&](GgufBytes& file) {
                  std::erase_if(file.tensors,
                                [](const auto& t) { return t.name == "blk.0.ffn_up_exps.weight"; });
                  count_up(file, "blk.0.ffn_up_exps.weight", {1, experts});
                }),
                HasSubstr(fmt::format(
                    "blk.0.ffn_up_exps.weight: expected that of 3 experts (expert_count), found {}",
                    experts)));
  }
}

TEST_F(GgufModelFile, HalfOfAMatrixInTwoIsRefused) {
  GgufBytes file = deepseek();
  count_up(file, "blk.0.attn_k_b.weight", {3, 4, 2});
  const auto source = open(file);
  EXPECT_THAT(test::message_of<ModelError>(
                  [&] { all_rows(*source, "model.layers.0.self_attn.kv_b_proj.weight", 10, 4); }),
              HasSubstr("self_attn.v_b_proj.weight: expected [2, 2, 4], found no such tensor"));
}

TEST_F(GgufModelFile, SaysWhichBlocksAreHeld) {
  const auto note = [](const TensorSource& source) {
    const json config = config_of(source);
    return read_stored_format(ConfigReader(config["quantization_config"], "q"))->note();
  };
  EXPECT_THAT(note(*open(test::small_gguf())), HasSubstr("blocks of Q8_0 are held as they are"));
  EXPECT_EQ(note(*open(deepseek())), "");
}

TEST(GgufFormat, OfADirectoryIsCheckedToo) {
  const test::SmallDirectory dir;
  const json config = {{"quant_method", "gguf"}};
  const auto format = read_stored_format(ConfigReader(config, "config.json"));
  for (const auto& [type, columns] : {std::pair{"U8", 34}, {"Q8_0", 32}, {"Q8_0", 33}}) {
    const auto source = dir.open({test::small_tensor("x.weight", type, {2, columns})});
    EXPECT_THAT(test::message_of<ModelError>([&, columns = columns] {
                  find_matrix(*source, format.get(), {"x.weight", 2, columns});
                }),
                HasSubstr("expected whole blocks of a type that GGUF has"));
  }
}

TEST_F(GgufModelFile, WrongOrMissingMetadataIsRefused) {
  EXPECT_THAT(
      test::message_of<ModelError>([&] { open(GgufBytes()); }),
      HasSubstr("m.gguf: metadata \"general.architecture\": expected a text, found nothing"));
  const auto without = [&](const std::string& key) {
    return error([&](GgufBytes& f) {
      const std::size_t at = f.values.find(key);
      f.values.replace(at, key.size(), std::string(key.size(), 'x'));
    });
  };
  for (const std::string key : {"qwen3moe.block_count",
                                "qwen3moe.context_length",
                                "qwen3moe.embedding_length",
                                "qwen3moe.attention.head_count",
                                "qwen3moe.expert_count",
                                "qwen3moe.expert_used_count",
                                "qwen3moe.expert_feed_forward_length"}) {
    EXPECT_THAT(without(key), AllOf(HasSubstr(key), HasSubstr("found nothing")));
  }
  GgufBytes other;
  other.text("general.architecture", "mamba\n");
  EXPECT_THAT(test::message_of<ModelError>([&] { open(other.integer("mamba\\n.block_count", 1)); }),
              HasSubstr("metadata"));
  const auto with = [&](const std::function<void(GgufBytes&)>& change) {
    return error([&](GgufBytes& f) { change(f); });
  };
  EXPECT_THAT(with([](GgufBytes& f) { f.integer("qwen3moe.nextn_predict_layers", 1); }),
              HasSubstr("expected fewer than 1 layers, found 1"));
  EXPECT_THAT(with([](GgufBytes& f) { f.text("qwen3moe.rope.scaling.type", "longrope"); }),
              HasSubstr("expected none, linear or yarn, found \"longrope\""));
  EXPECT_THAT(with([](GgufBytes& f) { f.integer("qwen3moe.attention.sliding_window", 64); }),
              HasSubstr("windows are not supported here"));
  EXPECT_THAT(with([](GgufBytes& f) { f.text("tokenizer.ggml.eos_token_id", "7"); }),
              HasSubstr("expected an integer from 0 to 2^31 - 1, found \"7\""));
}

TEST_F(GgufModelFile, TensorsThatNobodyKnowsAreRefused) {
  for (const char* name : {"blk.0.attn_new.weight", "rope_freqs.weight", "blk.x.attn_q.weight"}) {
    EXPECT_THAT(error([&](GgufBytes& f) { f.tensor(name, {4}, kF32, 16); }),
                AllOf(HasSubstr(name), HasSubstr("that qwen3moe is known to have")));
  }
  EXPECT_THAT(
      error([&](GgufBytes& f) { f.tensor("blk.1.attn_q.weight", {4}, kF32, 16); }),
      HasSubstr("blk.1.attn_q.weight: expected one of 1 layers (block_count), found another"));
  EXPECT_THAT(error([](GgufBytes& f) {
                const std::string key = "qwen3moe.block_count";
                const std::int32_t none = 0;
                std::memcpy(f.values.data() + f.values.find(key) + key.size() + 4, &none, 4);
              }),
              HasSubstr("block_count\": expected 1 to 4096, found 0"));
  EXPECT_THAT(error([](GgufBytes& f) { f.tensors.front().name = "embd"; }),
              HasSubstr("token_embd.weight: expected one, found none"));
  EXPECT_THAT(error([](GgufBytes& f) {
                f.tensors.back().name = "spare";
                f.tensors.pop_back();
                f.tensor("blk.0.ffn_down_exps.weight", {32}, kF32, 128);
              }),
              HasSubstr("expected that of all experts"));
}

TEST_F(GgufModelFile, LayersThatPredictFurtherTokensAreNotUsed) {
  GgufBytes file = test::small_gguf();
  const std::string key = "qwen3moe.block_count";
  const std::size_t at = file.values.find(key) + key.size() + 4;
  file.values.replace(at, 4, GgufBytes::raw(std::uint32_t{2}));
  file.integer("qwen3moe.nextn_predict_layers", 1).tensor("blk.1.nextn.x", {4}, kF32, 16);
  const auto source = open(file);
  EXPECT_EQ(config_of(*source)["num_hidden_layers"], 1);
  EXPECT_NE(source->find("blk.1.nextn.x"), nullptr);
}

class GgufParts : public GgufModelFile {
 protected:
  /// small_gguf() in two files.
  void write_parts(const std::function<void(GgufBytes&, GgufBytes&)>& change = {}) const {
    GgufBytes first = test::small_gguf();
    GgufBytes second;
    for (std::size_t i = 8; i < first.tensors.size(); ++i) {
      const auto& t = first.tensors[i];
      std::size_t elements = 1;
      for (const auto d : t.dimensions) elements *= d;
      second.tensor(
          t.name, t.dimensions, t.type, t.type == kF32 ? elements * 4 : elements / 32 * 34);
    }
    first.integer("split.no", 0).integer("split.count", 2).integer("split.tensors.count", 15);
    second.integer("split.no", 1).integer("split.count", 2);
    first.tensors.resize(8);
    if (change) change(first, second);
    write(first, "m-00001-of-00002.gguf");
    write(second, "m-00002-of-00002.gguf");
  }

  std::string error_of(const std::string& name) const {
    return test::message_of<ModelError>([&] { open_source(path() / name); });
  }
};

TEST_F(GgufParts, AreOneModel) {
  write_parts();
  const auto source = open_source(path() / "m-00001-of-00002.gguf");
  EXPECT_EQ(source->files().size(), 2U);
  EXPECT_EQ(source->find("model.layers.0.self_attn.o_proj.weight")->file, 1U);
  EXPECT_EQ(source->find("model.layers.0.mlp.experts.2.up_proj.weight")->file, 1U);
  EXPECT_EQ(source->find("lm_head.weight")->file, 0U);
}

TEST_F(GgufParts, MissingAndWrongOnesAreRefused) {
  write_parts();
  EXPECT_THAT(error_of("m-00002-of-00002.gguf"), HasSubstr("general.architecture"));
  std::filesystem::remove(path() / "m-00002-of-00002.gguf");
  EXPECT_THAT(error_of("m-00001-of-00002.gguf"), HasSubstr("m-00002-of-00002.gguf: "));
  std::filesystem::rename(path() / "m-00001-of-00002.gguf", path() / "m.gguf");
  EXPECT_THAT(error_of("m.gguf"), HasSubstr("whose name ends in -00001-of-00002.gguf"));
  write_parts(
      [](GgufBytes&, GgufBytes& second) { second.values.replace(20, 4, GgufBytes::raw(2)); });
  EXPECT_THAT(error_of("m-00001-of-00002.gguf"), HasSubstr("split.no: expected 1, found 2"));
  write_parts([](GgufBytes&, GgufBytes& second) { second.tensors.pop_back(); });
  EXPECT_THAT(error_of("m-00001-of-00002.gguf"),
              HasSubstr("split.tensors.count\": expected the 14 tensors of all parts, found 15"));
  write_parts([](GgufBytes&, GgufBytes& second) { second.tensors.back().name = "output.weight"; });
  EXPECT_THAT(error_of("m-00001-of-00002.gguf"),
              HasSubstr("tensor lm_head.weight: expected one, found two"));
}

}  // namespace
}  // namespace ferry
