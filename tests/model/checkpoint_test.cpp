#include "ferry/model/checkpoint.h"

#include <gmock/gmock.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/mapped_file.h"
#include "ferry/core/error.h"
#include "ferry/model/summary.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

namespace fs = std::filesystem;

class GoldenCheckpoint : public testing::TestWithParam<const char*> {};

TEST_P(GoldenCheckpoint, HoldsExactlyTheTensorsItsConfigAsksFor) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir(GetParam()));
  // Of a model that sees pictures too, what serves those.
  for (const std::string& name : checkpoint.unused())
    EXPECT_TRUE(name.starts_with("vision_model.") || name.starts_with("multi_modal_projector."))
        << name;
  std::size_t expected = checkpoint.unused().size();
  for_each_tensor(checkpoint.config(), [&](const TensorSpec& spec) {
    ++expected;
    const TensorView view = checkpoint.tensor(spec);
    EXPECT_EQ(view.bytes, static_cast<std::size_t>(spec.elements()) * dtype_bytes(view.dtype));
    advise_read_soon(view.span());
    unsigned sum = 0;
    for (const std::byte b : view.span()) sum |= std::to_integer<unsigned>(b);
    EXPECT_NE(sum, 0U) << spec.name;
    advise_read_done(view.span());
  });
  EXPECT_EQ(checkpoint.source().tensors().size(), expected);
}

TEST(Fp8Checkpoint, HoldsMatricesAndTheirScales) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("deepseek_v3_fp8"));
  EXPECT_THAT(checkpoint.unused(), IsEmpty());
  EXPECT_EQ(checkpoint.weight_type(), DType::bf16);
  int quantized = 0;
  std::uint64_t bytes = 0;
  for_each_tensor(checkpoint.config(), [&](const TensorSpec& spec) {
    bytes += checkpoint.stored_bytes(spec);
    if (spec.shape.size() != 2) return;
    const StoredMatrix m = checkpoint.matrix(spec);
    const bool fp8 = m.holds(WeightType::fp8);
    EXPECT_EQ(fp8, spec.name.find("_proj") != std::string::npos) << spec.name;
    quantized += fp8 ? 1 : 0;
  });
  EXPECT_GT(quantized, 20);
  std::uint64_t in_files = 0;
  for (const SourceTensor& tensor : checkpoint.source().tensors()) in_files += tensor.data.size();
  EXPECT_EQ(bytes, in_files);
}

TEST(Mxfp4Checkpoint, HoldsEveryExpertAndNothingElse) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("gpt_oss_mxfp4"));
  EXPECT_THAT(checkpoint.unused(), IsEmpty());
  EXPECT_EQ(checkpoint.weight_type(), DType::bf16);
  std::uint64_t bytes = 0;
  int packed = 0;
  for_each_tensor(unstacked(checkpoint.config()), [&](const TensorSpec& spec) {
    bytes += checkpoint.stored_bytes(spec);
    packed += checkpoint.matrix(spec).quant.code == Code::e2m1 ? 1 : 0;
  });
  EXPECT_EQ(packed, 3 * 3 * 5);  // layers, matrices, experts
  std::uint64_t in_files = 0;
  for (const SourceTensor& tensor : checkpoint.source().tensors()) in_files += tensor.data.size();
  EXPECT_EQ(bytes, in_files);
  // Three matrices of 96 x 32, and biases of 32, 32 and 96.
  EXPECT_EQ(summarize(checkpoint).parameters_per_expert, 3 * 96 * 32 + 32 + 32 + 96);
}

INSTANTIATE_TEST_SUITE_P(All,
                         GoldenCheckpoint,
                         testing::Values("qwen2_bf16_sparse_step",
                                         "qwen2_new_config",
                                         "qwen2_tied_sharded",
                                         "qwen2_untied",
                                         "qwen3_bf16",
                                         "qwen3_f16_tied_sharded",
                                         "qwen3_new_config_mixed",
                                         "qwen3_untied"),
                         [](const auto& param) { return std::string(param.param); });

/// A copy of a golden checkpoint to spoil.
class SpoiledCheckpoint : public testing::Test {
 protected:
  void copy(const char* name) {
    fs::copy(test::data_dir(name), dir(), fs::copy_options::recursive);
  }

  fs::path dir() const { return temp_.path() / "model"; }

  void change_config(const char* field, const json& value) {
    json fields = json::parse(test::read_file(dir() / "config.json"));
    fields[field] = value;
    test::write_file(dir() / "config.json", fields.dump());
  }

  void change_index(const std::string& tensor, const json& shard) {
    const fs::path index = dir() / "model.safetensors.index.json";
    json fields = json::parse(test::read_file(index));
    if (shard.is_null()) {
      fields["weight_map"].erase(tensor);
    } else {
      fields["weight_map"][tensor] = shard;
    }
    test::write_file(index, fields.dump());
  }

  std::string error() {
    return test::message_of<ModelError>([&] { Checkpoint::open(dir()); });
  }

  test::TempDir temp_;
};

TEST_F(SpoiledCheckpoint, Fp8WithoutItsConfigOrItsScales) {
  copy("deepseek_v3_fp8");
  change_config("quantization_config", nullptr);
  EXPECT_THAT(error(), HasSubstr("found F8_E4M3"));
  json quantization = {{"quant_method", "fp8"}, {"weight_block_size", {64, 128}}};
  change_config("quantization_config", quantization);
  EXPECT_THAT(error(), HasSubstr("weight_block_size: expected [128,128]"));
  quantization["weight_block_size"] = {128, 128};
  change_config("quantization_config", quantization);
  EXPECT_NO_THROW(Checkpoint::open(dir()));
  // The header's bytes stay as many, so that all offsets hold.
  std::string file = test::read_file(dir() / "model.safetensors");
  const std::string name = "q_b_proj.weight_scale_inv";
  const auto at = file.find(name);
  ASSERT_NE(at, std::string::npos);
  file.replace(at, name.size(), "q_b_proj.weight_scale_xxx");
  test::write_file(dir() / "model.safetensors", file);
  EXPECT_THAT(error(), HasSubstr(name));
}

TEST_F(SpoiledCheckpoint, TensorsThatTheConfigSaysAreNotThere) {
  copy("deepseek_v3");
  change_config("n_shared_experts", 0);
  EXPECT_THAT(
      error(),
      testing::AllOf(HasSubstr("model.safetensors: tensor model.layers.1.mlp.shared_experts."),
                     HasSubstr("expected none, as config.json says")));
  change_config("n_shared_experts", 1);
  EXPECT_NO_THROW(Checkpoint::open(dir()));
}

TEST_F(SpoiledCheckpoint, BiasesThatTheConfigSaysAreNotThere) {
  copy("qwen2_untied");
  change_config("qkv_bias", false);
  EXPECT_THAT(error(), HasSubstr("tensor model.layers.0.self_attn.k_proj.bias: expected none"));
}

/// As in transformers: tied only where the two are the same.
TEST_F(SpoiledCheckpoint, TiedEmbeddingsWithAHeadOfTheirOwn) {
  copy("qwen2_untied");
  change_config("tie_word_embeddings", true);
  const auto bytes_of = [&](const Checkpoint& checkpoint, const char* name) {
    const auto data = checkpoint.source().find(name)->data;
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  };
  std::string embedding;
  std::string head;
  {
    const Checkpoint own = Checkpoint::open(dir());
    EXPECT_FALSE(own.config().tied_embeddings);
    ASSERT_EQ(own.notes().size(), 1U);
    EXPECT_THAT(own.notes()[0], HasSubstr("lm_head.weight differs from the embedding: not tied"));
    embedding = bytes_of(own, "model.embed_tokens.weight");
    head = bytes_of(own, "lm_head.weight");
  }
  const fs::path path = dir() / "model.safetensors";
  std::string file = test::read_file(path);
  file.replace(file.find(head), head.size(), embedding);
  test::write_file(path, file);
  const Checkpoint same = Checkpoint::open(dir());
  EXPECT_TRUE(same.config().tied_embeddings);
  EXPECT_THAT(same.notes(), IsEmpty());
  EXPECT_THAT(same.unused(), testing::ElementsAre("lm_head.weight"));
}

TEST_F(SpoiledCheckpoint, Mxfp4OfOtherSizesOrWithoutItsScales) {
  copy("gpt_oss_mxfp4");
  change_config("intermediate_size", 64);
  EXPECT_THAT(error(), HasSubstr("gate_up_proj_blocks: expected [5, 128, 3, 16]"));
  change_config("intermediate_size", 32);
  EXPECT_NO_THROW(Checkpoint::open(dir()));
  change_index("model.layers.1.mlp.experts.down_proj_scales", nullptr);
  EXPECT_THAT(error(), HasSubstr("down_proj_scales: expected [5, 96, 1], found no such tensor"));
  change_config("quantization_config", nullptr);
  EXPECT_THAT(error(), HasSubstr("gate_up_proj: expected [5, 96, 64], found no such tensor"));
}

TEST_F(SpoiledCheckpoint, DirectoryOrFilesMissing) {
  EXPECT_THAT(error(), HasSubstr("expected a checkpoint directory or a file .gguf, found nothing"));
  fs::create_directory(dir());
  EXPECT_THAT(error(), HasSubstr("config.json: expected a file, found none"));
  copy("qwen2_untied");
  fs::remove(dir() / "model.safetensors");
  EXPECT_THAT(error(), HasSubstr("found neither"));
}

TEST_F(SpoiledCheckpoint, ConfigContradictsTheWeights) {
  copy("qwen2_untied");
  change_config("moe_intermediate_size", 23);
  EXPECT_THAT(error(),
              HasSubstr("model.safetensors: tensor model.layers.0.mlp.experts.0.gate_proj.weight: "
                        "expected [23, 72] as config.json says, found [24, 72]"));
  change_config("moe_intermediate_size", 24);
  change_config("num_experts", 6);
  EXPECT_THAT(error(), HasSubstr("mlp.gate.weight: expected [6, 72]"));
  change_config("num_experts", 5);
  change_config("num_hidden_layers", 4000);
  EXPECT_THAT(error(), HasSubstr("model.layers.2.input_layernorm.weight: expected [72], found no"));
}

TEST_F(SpoiledCheckpoint, TensorsTheModelDoesNotNeedAreIgnoredAndListed) {
  copy("qwen2_untied");
  change_config("num_hidden_layers", 1);
  const Checkpoint checkpoint = Checkpoint::open(dir());
  EXPECT_THAT(checkpoint.unused(), testing::Contains("model.layers.1.mlp.gate.weight"));
}

TEST_F(SpoiledCheckpoint, TypeOfTheWeightsIsKnownWithoutTheConfig) {
  copy("qwen3_bf16");
  change_config("torch_dtype", nullptr);
  EXPECT_EQ(Checkpoint::open(dir()).weight_type(), DType::bf16);
}

TEST_F(SpoiledCheckpoint, ShardTruncatedOrMissing) {
  copy("qwen2_tied_sharded");
  const fs::path shard = dir() / "model-00003-of-00007.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_THAT(error(), HasSubstr("model-00003-of-00007.safetensors"));
  fs::remove(shard);
  EXPECT_THAT(error(), HasSubstr("model-00003-of-00007.safetensors: cannot be opened"));
}

TEST_F(SpoiledCheckpoint, IndexMustNotLeadOutsideOrAstray) {
  copy("qwen2_tied_sharded");
  for (const json& shard : {json("../model.safetensors"),
                            json("/etc/passwd"),
                            json(".."),
                            json(""),
                            json(3),
                            json(std::string("a\0b", 3))}) {
    change_index("model.norm.weight", shard);
    EXPECT_THAT(error(), HasSubstr("tensor model.norm.weight: expected the name of a file beside"));
  }
  change_index("model.norm.weight", "model-00001-of-00007.safetensors");
  EXPECT_THAT(error(), HasSubstr("expected tensor model.norm.weight in"));
  change_index("model.norm.weight", nullptr);
  EXPECT_THAT(error(), HasSubstr("tensor model.norm.weight: expected [40], found no such tensor"));
  test::write_file(dir() / "model.safetensors.index.json", "{}");
  EXPECT_THAT(error(), HasSubstr("weight_map"));
}

}  // namespace
}  // namespace ferry
