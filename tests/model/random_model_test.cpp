#include "ferry/model/random_model.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/checkpoint/safetensors_writer.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/summary.h"
#include "ferry/model/weights.h"
#include "ferry/text/tokenizer.h"
#include "support/files.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

namespace fs = std::filesystem;

std::vector<float> values_of(const TensorView& view) {
  std::size_t n = view.bytes / dtype_bytes(view.dtype);
  std::vector<float> values(n);
  kernels().convert(view.data,
                    view.dtype,
                    reinterpret_cast<std::byte*>(values.data()),
                    DType::f32,
                    static_cast<std::int64_t>(n));
  return values;
}

std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> result;
  for (const auto& item : fs::directory_iterator(directory)) {
    result[item.path().filename().string()] = test::read_file(item.path());
  }
  return result;
}

struct Case {
  const char* arch;
  DType dtype;
  bool tied;
};

std::string name_of(const testing::TestParamInfo<Case>& info) {
  return fmt::format(
      "{}_{}{}", info.param.arch, dtype_name(info.param.dtype), info.param.tied ? "_tied" : "");
}

class RandomModel : public testing::TestWithParam<Case> {
 protected:
  RandomModelOptions options() const {
    RandomModelOptions options;
    options.arch = GetParam().arch;
    options.dtype = GetParam().dtype;
    options.tied_embeddings = GetParam().tied;
    return options;
  }

  test::TempDir temp_;
  fs::path dir_ = temp_.path() / "new" / "model";
};

TEST_P(RandomModel, OpensAsACheckpointWithATokenizer) {
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  write_random_model(options(), dir_, [&](std::uint64_t d, std::uint64_t t) {
    EXPECT_GT(d, done);
    done = d;
    total = t;
  });
  EXPECT_EQ(done, total);
  EXPECT_EQ(total, random_model_bytes(options()));
  const Checkpoint checkpoint = Checkpoint::open(dir_);
  EXPECT_EQ(checkpoint.config().model_type, GetParam().arch);
  EXPECT_EQ(checkpoint.config().tied_embeddings, GetParam().tied);
  EXPECT_EQ(checkpoint.weight_type(), GetParam().dtype);
  EXPECT_THAT(checkpoint.config().eos_ids, ElementsAre(256));
  EXPECT_THAT(checkpoint.unused(), IsEmpty());
  const Tokenizer tokenizer = Tokenizer::load(dir_);
  EXPECT_THAT(tokenizer.encode("a\u00e9<|endoftext|>"), ElementsAre('a', 0xC3, 0xA9, 256));
  EXPECT_LE(tokenizer.size(), checkpoint.config().vocab);
}

TEST_P(RandomModel, WeightsHaveSaneMomentsAndAreAligned) {
  write_random_model(options(), dir_);
  const Checkpoint checkpoint = Checkpoint::open(dir_);
  for_each_tensor(checkpoint.config(), [&](const TensorSpec& spec) {
    const TensorView view = checkpoint.tensor(spec);
    if (spec.elements() < 1000) return;
    double sum = 0;
    double squares = 0;
    for (const float v : values_of(view)) {
      sum += v;
      squares += static_cast<double>(v) * v;
    }
    const auto n = static_cast<double>(spec.elements());
    const bool unit = spec.name.ends_with("model.embed_tokens.weight") && !GetParam().tied;
    const bool in_first = spec.role == TensorRole::expert && spec.shape.size() == 3 &&
                          checkpoint.config().moe.storage != ExpertStorage::rows;
    const std::int64_t inputs = in_first ? spec.shape[1] : spec.shape.back();
    const double expected = unit ? 1.0 : 1.0 / std::sqrt(static_cast<double>(inputs));
    EXPECT_NEAR(std::sqrt(squares / n), expected, 0.1 * expected) << spec.name;
    EXPECT_NEAR(sum / n, 0, 6 * expected / std::sqrt(n)) << spec.name;
  });
}

TEST_P(RandomModel, SameOptionsSameBytesAndSeedsDiffer) {
  RandomModelOptions o = options();
  write_random_model(o, dir_);
  write_random_model(o, temp_.path() / "again");
  EXPECT_EQ(contents(dir_), contents(temp_.path() / "again"));
  o.seed = 1;
  write_random_model(o, temp_.path() / "other");
  EXPECT_NE(contents(dir_)["model.safetensors"],
            contents(temp_.path() / "other")["model.safetensors"]);
}

TEST_P(RandomModel, ShardsHoldTheSameTensors) {
  RandomModelOptions o = options();
  write_random_model(o, dir_);
  o.max_shard_bytes = 40000;
  const fs::path sharded = temp_.path() / "sharded";
  write_random_model(o, sharded);
  const Checkpoint whole = Checkpoint::open(dir_);
  const Checkpoint cut = Checkpoint::open(sharded);
  EXPECT_GT(cut.source().files().size(), 3U);
  EXPECT_TRUE(fs::exists(sharded / "model.safetensors.index.json"));
  for_each_tensor(whole.config(), [&](const TensorSpec& spec) {
    const TensorView a = whole.tensor(spec);
    const TensorView b = cut.tensor(spec);
    EXPECT_TRUE(std::ranges::equal(a.span(), b.span())) << spec.name;
  });
}

INSTANTIATE_TEST_SUITE_P(All,
                         RandomModel,
                         testing::Values(Case{"deepseek_v2", DType::f32, false},
                                         Case{"deepseek_v3", DType::bf16, false},
                                         Case{"deepseek_v32", DType::bf16, false},
                                         Case{"dots1", DType::bf16, false},
                                         Case{"ernie4_5_moe", DType::bf16, true},
                                         Case{"glm4_moe", DType::bf16, false},
                                         Case{"glm4_moe_lite", DType::bf16, false},
                                         Case{"glm_moe_dsa", DType::f32, false},
                                         Case{"gpt_oss", DType::bf16, false},
                                         Case{"hunyuan_v1_moe", DType::bf16, true},
                                         Case{"kimi_k2", DType::bf16, true},
                                         Case{"kimi_k25", DType::bf16, false},
                                         Case{"lfm2_moe", DType::bf16, false},
                                         Case{"llama4", DType::bf16, false},
                                         Case{"llama4_text", DType::f32, false},
                                         Case{"qwen2_moe", DType::f32, false},
                                         Case{"qwen2_moe", DType::bf16, true},
                                         Case{"qwen3_5_moe", DType::bf16, false},
                                         Case{"qwen3_5_moe_text", DType::f32, true},
                                         Case{"qwen3_moe", DType::bf16, false},
                                         Case{"qwen3_moe", DType::f16, true},
                                         Case{"qwen3_next", DType::bf16, false},
                                         Case{"minimax_m2", DType::bf16, false},
                                         Case{"mistral4", DType::f32, false},
                                         Case{"mixtral", DType::bf16, false},
                                         Case{"olmoe", DType::bf16, true}),
                         name_of);

TEST(RandomModelOptions, EveryPresetIsPossibleForEveryFamily) {
  for (const std::string_view preset : random_model_presets()) {
    for (const ModelFamily& family : model_families()) {
      auto options = random_model_preset(preset);
      ASSERT_TRUE(options.has_value()) << preset;
      options->arch = family.model_type;
      EXPECT_EQ(random_model_config(*options).architecture, family.architecture);
    }
  }
  EXPECT_FALSE(random_model_preset("huge").has_value());
}

TEST(RandomModelOptions, ImpossibleOnesAreTheCallersError) {
  const auto error = [](auto change) {
    RandomModelOptions options;
    change(options);
    return test::message_of<ConfigError>([&] { random_model_config(options); });
  };
  EXPECT_THAT(error([](auto& o) { o.arch = "llama"; }),
              HasSubstr("architecture llama: expected one of "));
  EXPECT_THAT(error([](auto& o) { o.vocab = 256; }), HasSubstr("vocab: expected at least 257"));
  EXPECT_THAT(error([](auto& o) { o.topk = 9; }), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(error([](auto& o) { o.hidden = 0; }), HasSubstr("hidden_size"));
  EXPECT_THAT(error([](auto& o) { o.layers = -1; }), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(error([](auto& o) { o.head_dim = 7; }), HasSubstr("head_dim"));
  EXPECT_THAT(error([](auto& o) { o.kv_heads = 3; }), HasSubstr("num_key_value_heads"));
}

TEST(RandomModelDirectory, IsNotOverwrittenAndLeavesNothingAfterAnError) {
  const test::TempDir temp;
  const fs::path dir = temp.path() / "m";
  fs::create_directory(dir);
  write_random_model({}, dir);  // empty: fine
  EXPECT_THAT(test::message_of<ConfigError>([&] { write_random_model({}, dir); }),
              HasSubstr("expected a new or empty directory"));
  const auto stop = [](std::uint64_t, std::uint64_t) { throw Error("stopped"); };
  EXPECT_THROW(write_random_model({}, temp.path() / "gone", stop), Error);
  EXPECT_FALSE(fs::exists(temp.path() / "gone"));
  test::write_file(temp.path() / "file", "");
  EXPECT_THROW(write_random_model({}, temp.path() / "file"), ConfigError);
  EXPECT_THROW(write_random_model({}, temp.path() / "file" / "below"), ConfigError);
  RandomModelOptions enormous;
  enormous.hidden = 1 << 20;
  enormous.experts = 1000;
  enormous.inter = 1 << 20;
  EXPECT_THAT(test::message_of<Error>([&] { write_random_model(enormous, temp.path() / "large"); }),
              HasSubstr("bytes of free space"));
  EXPECT_FALSE(fs::exists(temp.path() / "large"));
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const test::TempDir temp;
  const fs::path path = temp.path() / "w.safetensors";
  const std::vector<TensorHeader> headers = {{"a \"quoted\" name", DType::f32, {2, 1}},
                                             {"empty", DType::f16, {0}},
                                             {"b", DType::bf16, {3}}};
  std::vector<std::byte> data(14);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = std::byte(i + 1);
  SafetensorsWriter writer(path, headers);
  writer.write({data.data(), 5});  // pieces need not end where tensors do
  writer.write({data.data() + 5, 9});
  EXPECT_THROW(writer.write({data.data(), 1}), BrokenContract);
  writer.close();
  const SafetensorsFile file(path);
  ASSERT_EQ(file.entries().size(), 3U);
  EXPECT_EQ(file.entries()[0].offset % 64, 0U);
  const TensorView b = file.view(*file.find("b"));
  EXPECT_EQ(b.dtype, DType::bf16);
  EXPECT_EQ(std::to_integer<int>(b.data[5]), 14);
  EXPECT_EQ(file.find("a \"quoted\" name")->shape, (std::vector<std::int64_t>{2, 1}));
  EXPECT_THAT(test::message_of<Error>([&] { SafetensorsWriter again(path, headers); }),
              HasSubstr("cannot be created"));
}

TEST(SafetensorsWriter, MissingDataAndFullDisksAreErrors) {
  const test::TempDir temp;
  const std::vector<TensorHeader> headers = {{"a", DType::f32, {1}}};
  SafetensorsWriter writer(temp.path() / "w.safetensors", headers);
  EXPECT_THROW(writer.close(), BrokenContract);
}

TEST(Summary, CountsParametersAndBytes) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("qwen2_tied_sharded"));
  const ModelSummary summary = summarize(checkpoint);
  const ModelConfig& c = checkpoint.config();
  EXPECT_EQ(summary.parameters_per_expert, 3 * c.hidden * c.moe.inter);
  EXPECT_EQ(summary.expert_parameters, 2 * 7 * summary.parameters_per_expert);
  EXPECT_EQ(summary.active_parameters,
            summary.parameters - 2 * (7 - 4) * summary.parameters_per_expert);
  ASSERT_EQ(summary.by_type.size(), 1U);
  EXPECT_EQ(summary.by_type.at("F32").bytes, static_cast<std::uint64_t>(summary.parameters) * 4);
  EXPECT_GT(summary.file_bytes, summary.by_type.at("F32").bytes);
  EXPECT_THAT(summary.unused, IsEmpty());
}

TEST(Summary, RanksShareTheExperts) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("qwen2_tied_sharded"));
  const ModelSummary summary = summarize(checkpoint);
  const auto expert = static_cast<std::uint64_t>(summary.parameters_per_expert) * 4 * 2;
  for (const int ranks : {1, 2, 3, 7, 9}) {
    const auto per_rank = bytes_per_rank(checkpoint, ranks);
    ASSERT_EQ(per_rank.size(), static_cast<std::size_t>(ranks));
    std::uint64_t experts = 0;
    int held = 0;
    for (const RankBytes& rank : per_rank) {
      EXPECT_EQ(rank.file.experts, rank.experts_held * expert);
      EXPECT_EQ(rank.file.dense,
                static_cast<std::uint64_t>(summary.parameters - summary.expert_parameters) * 4);
      experts += rank.file.experts;
      held += rank.experts_held;
    }
    EXPECT_EQ(held, 7);
    EXPECT_EQ(experts, 7 * expert);
  }
}

TEST(Summary, SaysTheMemoryThatLoadingTakes) {
  ThreadPool pool(1);
  for (const char* model : {"gpt_oss_mxfp4", "deepseek_v3_fp8", "qwen2_bf16_sparse_step"}) {
    const Checkpoint checkpoint = Checkpoint::open(test::data_dir(model));
    const WeightChoice choice = choose_weights(checkpoint, {});
    const DenseWeights dense = load_dense_weights(checkpoint, choice, pool, {});
    std::uint64_t least = dense.embedding.bytes() + dense.head.memory.size();
    for (const DenseWeights::Layer& layer : dense.layers) {
      for (const OwnedFfn* ffn : {&layer.ffn, &layer.shared})
        least += ffn->gate_up.size() + ffn->down.size();
      least += layer.router.memory.size();
    }
    const auto per_rank = bytes_per_rank(checkpoint, 2);
    for (Rank rank = 0; rank < 2; ++rank) {
      std::uint64_t experts = 0;
      for (const auto& layer : load_expert_weights(checkpoint, choice, {rank}, 2, pool, {}).layers)
        experts += layer.memory.size();
      const WeightBytes& memory = per_rank[static_cast<std::size_t>(rank)].memory;
      EXPECT_EQ(memory.experts, experts) << model << " rank " << rank;
      EXPECT_GT(memory.dense, least) << model;  // mixers and norms are not counted here
    }
  }
}

/// What four bits become: panels that are not full, but nothing near bf16's four times.
TEST(Summary, Mxfp4TakesAboutTheBytesOfItsFile) {
  const RankBytes rank = bytes_per_rank(Checkpoint::open(test::data_dir("gpt_oss_mxfp4")), 1)[0];
  EXPECT_LT(rank.memory.experts, rank.file.experts * 5 / 4);
}

}  // namespace
}  // namespace ferry
