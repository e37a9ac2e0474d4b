#include "ferry/model/config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "config_description.h"
#include "ferry/model/family.h"

namespace ferry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(QueryGrowth, GrowsWithTheLogarithmOfItsSteps) {
  const QueryGrowth growth{8192, 0.1};
  EXPECT_EQ(growth.factor(0), 1.0F);
  EXPECT_EQ(growth.factor(8190), 1.0F);
  EXPECT_FLOAT_EQ(growth.factor(8191), 1.0F + 0.1F * std::log(2.0F));
  EXPECT_FLOAT_EQ(growth.factor(8192 * 4), 1.0F + 0.1F * std::log(5.0F));
  EXPECT_EQ(QueryGrowth{}.factor(100), 1.0F);
}

TEST(AttentionSpan, BeginsWhereItsKindSays) {
  using Kind = AttentionSpan::Kind;
  EXPECT_EQ((AttentionSpan{Kind::full, 0}).first(9), 0);
  EXPECT_EQ((AttentionSpan{Kind::window, 4}).first(2), 0);
  EXPECT_EQ((AttentionSpan{Kind::window, 4}).first(9), 6);
  EXPECT_EQ((AttentionSpan{Kind::block, 4}).first(9), 8);
  EXPECT_EQ((AttentionSpan{Kind::block, 4}).first(7), 4);
}

TEST(Config, DefaultsAreThoseOfTransformers) {
  EXPECT_TRUE(without("qwen2_new_config", "qkv_bias").attention_bias);
  EXPECT_FALSE(with("qwen2_new_config", "qkv_bias", false).attention_bias);
  EXPECT_FALSE(without("qwen2_untied", "norm_topk_prob").moe.router.renormalize);
  EXPECT_FALSE(without("qwen3_untied", "attention_bias").attention_bias);
  EXPECT_FALSE(without("qwen3_untied", "tie_word_embeddings").tied_embeddings);
  EXPECT_EQ(without("qwen3_untied", "head_dim").head_dim, 12);
  EXPECT_EQ(with("qwen2_untied", "head_dim", 32).head_dim, 32);
  EXPECT_EQ(with("qwen2_untied", "mlp_only_layers", nullptr).sparse_layers(), 2);
  EXPECT_EQ(without("qwen2_untied", "rope_theta").rope.theta, 10000.0);
  EXPECT_FALSE(without("qwen2_untied", "torch_dtype").dtype.has_value());
  EXPECT_EQ(without("qwen2_untied", "architectures").model_type, "qwen2_moe");
}

TEST(Config, EosIsANumberOrAListAndGenerationConfigWins) {
  EXPECT_THAT(with("qwen3_untied", "eos_token_id", 7).eos_ids, ElementsAre(7));
  EXPECT_THAT(with("qwen3_untied", "eos_token_id", {7, 9}).eos_ids, ElementsAre(7, 9));
  // Outside the vocabulary it can never be drawn.
  EXPECT_THAT(with("qwen3_untied", "eos_token_id", 331).eos_ids, testing::IsEmpty());
  EXPECT_THAT(with("qwen3_untied", "eos_token_id", {330, 50279, -1}).eos_ids, ElementsAre(330));
  error_with("qwen3_untied", "eos_token_id", "x");

  const test::TempDir dir;
  json fields = golden("qwen3_untied");
  fields["eos_token_id"] = 3;
  test::write_file(dir.path() / "config.json", fields.dump());
  EXPECT_THAT(load_config(dir.path()).eos_ids, ElementsAre(3));
  test::write_file(dir.path() / "generation_config.json", R"({"temperature": 0.7})");
  EXPECT_THAT(load_config(dir.path()).eos_ids, ElementsAre(3));
  test::write_file(dir.path() / "generation_config.json", R"({"eos_token_id": [5, 6]})");
  EXPECT_THAT(load_config(dir.path()).eos_ids, ElementsAre(5, 6));
  test::write_file(dir.path() / "generation_config.json", "[");
  EXPECT_THAT(test::message_of<ModelError>([&] { load_config(dir.path()); }),
              HasSubstr("generation_config.json"));
}

TEST(Config, RefusesWhatIsNotSupportedByName) {
  EXPECT_THAT(
      error_with("qwen2_untied", "architectures", {"LlamaForCausalLM"}),
      AllOf(HasSubstr("expected one of"), HasSubstr("OlmoeForCausalLM, Qwen2MoeForCausalLM")));
  error_with("qwen2_untied", "architectures", json::array());
  EXPECT_THAT(error_with("qwen2_untied", "hidden_act", "gelu"),
              HasSubstr("expected \"silu\", found \"gelu\""));
  error_with("qwen2_untied", "use_sliding_window", true);
  error_with("qwen2_untied", "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 4.0}});
  error_with("qwen2_untied", "rope_scaling", {{"type", "linear"}});
  error_with("qwen2_new_config", "rope_parameters", {{"rope_type", "llama3"}, {"factor", 8.0}});
  error_with("qwen2_untied", "rope_scaling", {{"type", "yarn"}, {"factor", -4.0}});
  error_with("qwen2_untied", "partial_rotary_factor", 1.5);
  error_with("qwen2_untied", "partial_rotary_factor", 0.01);
  error_with("qwen2_untied", "quantization_config", {{"quant_method", "fp8"}});
  error_with("qwen2_new_config", "layer_types", {"sliding_attention", "full_attention"});
  error_with("qwen2_untied", "torch_dtype", "float8_e4m3fn");
}

TEST(Config, RefusesImpossibleNumbers) {
  for (const char* field : {"hidden_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "num_key_value_heads",
                            "vocab_size",
                            "max_position_embeddings",
                            "num_experts",
                            "num_experts_per_tok",
                            "moe_intermediate_size",
                            "decoder_sparse_step",
                            "head_dim"}) {
    for (const json& value : {json(0),
                              json(-1),
                              json(1.5),
                              json("8"),
                              json(true),
                              json(std::uint64_t{1} << 40),
                              json(18446744073709551615U),
                              json::array()}) {
      error_with("qwen3_untied", field, value);
    }
  }
  for (const json& value : {json(0), json(-1e-6), json("x"), json(true)}) {
    error_with("qwen3_untied", "rms_norm_eps", value);
    error_with("qwen3_untied", "rope_theta", value);
  }
  error_with("qwen3_untied", "num_key_value_heads", 4);  // 6 heads
  error_with("qwen3_untied", "head_dim", 21);
  error_with("qwen3_untied", "num_experts_per_tok", 8);  // 7 experts
  error_with("qwen3_untied", "mlp_only_layers", {2});    // 2 layers
  error_with("qwen3_untied", "tie_word_embeddings", 1);
  error_with("qwen2_untied", "shared_expert_intermediate_size", 0);
  EXPECT_THAT(error_with("qwen2_untied", "num_attention_heads", 5), HasSubstr("divisor of"));
}

TEST(Config, AFieldThatItsClassHasNoDefaultForIsNamedWhenMissing) {
  EXPECT_THAT(
      test::message_of<ModelError>([&] { without("deepseek_v2_lite", "num_experts_per_tok"); }),
      HasSubstr("field num_experts_per_tok: expected an integer"));
}

TEST(Config, FlippedBytesLoadOrThrow) {
  const std::string whole = test::read_file(test::data_dir("qwen3_untied") / "config.json");
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    std::string text = whole;
    text[random() % text.size()] ^= static_cast<char>(1 + random() % 255);
    try {
      const ModelConfig config = parse_config(text, "config.json");
      EXPECT_EQ(config.layer_kinds.size(), static_cast<std::size_t>(config.layers));
    } catch (const ModelError&) {
    }
  }
}

TEST(Families, AreFoundByEitherName) {
  EXPECT_EQ(find_family("qwen2_moe"), find_family("Qwen2MoeForCausalLM"));
  EXPECT_EQ(find_family("gpt2"), nullptr);
  EXPECT_EQ(tensor_name(TensorNames{}, "a.{layer}.b.{expert}.c", 3, 12), "a.3.b.12.c");
}

TEST(Config, ReadsYarnAsDeepseekWritesIt) {
  const RopeOptions rope = with("qwen2_untied",
                                "rope_scaling",
                                {{"type", "yarn"},
                                 {"factor", 40},
                                 {"beta_fast", 32},
                                 {"beta_slow", 1},
                                 {"mscale", 0.707},
                                 {"mscale_all_dim", 0.5},
                                 {"original_max_position_embeddings", 4096}})
                               .rope;
  EXPECT_EQ(rope.scaling, RopeScaling::yarn);
  EXPECT_EQ(rope.theta, 1000000.0);
  EXPECT_EQ(rope.factor, 40);
  EXPECT_EQ(rope.high_turns, 32);
  EXPECT_EQ(rope.low_turns, 1);
  EXPECT_EQ(rope.original_positions, 4096);
  EXPECT_EQ(rope.mscale_all_dim, 0.5);
  EXPECT_NEAR(rope.magnitude, 1.064468903941252, 1e-12);  // transformers' attention_factor
  EXPECT_TRUE(rope.whole_pairs);
}

TEST(Config, ReadsYarnOfTransformers5) {
  const RopeOptions rope = with("qwen2_new_config",
                                "rope_parameters",
                                {{"rope_type", "yarn"},
                                 {"rope_theta", 150000.0},
                                 {"factor", 32.0},
                                 {"truncate", false},
                                 {"original_max_position_embeddings", 4096}})
                               .rope;
  EXPECT_EQ(rope.theta, 150000.0);
  EXPECT_FALSE(rope.whole_pairs);
  EXPECT_EQ(rope.mscale_all_dim, 0);
  EXPECT_NEAR(rope.magnitude, 1.3465735902799727, 1e-12);
}

TEST(Config, ReadsPartialRotationWhereverItIsWritten) {
  const ModelConfig whole = load_config(test::data_dir("qwen2_untied"));
  EXPECT_EQ(whole.rope.dim, whole.head_dim);
  EXPECT_EQ(with("qwen2_untied", "partial_rotary_factor", 0.5).rope.dim, whole.head_dim / 2);
  const ModelConfig part = with("qwen2_new_config",
                                "rope_parameters",
                                {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}});
  EXPECT_EQ(part.rope.dim, part.head_dim / 2);
}

}  // namespace
}  // namespace ferry
