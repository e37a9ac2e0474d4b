#include "ferry/model/config.h"

#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "support/files.h"

namespace ferry {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

json golden(const char* name) {
  return json::parse(test::read_file(test::data_dir(name) / "config.json"));
}

/// The error of a good config with one field changed.
std::string error_with(const char* name, const char* field, const json& value) {
  json fields = golden(name);
  fields[field] = value;
  std::string message =
      test::message_of<ModelError>([&] { parse_config(fields.dump(), "config.json"); });
  EXPECT_THAT(message, HasSubstr("config.json"));
  EXPECT_THAT(message, HasSubstr(field));
  return message;
}

ModelConfig with(const char* name, const char* field, const json& value) {
  json fields = golden(name);
  fields[field] = value;
  return parse_config(fields.dump(), "config.json");
}

ModelConfig without(const char* name, const char* field) {
  json fields = golden(name);
  fields.erase(field);
  return parse_config(fields.dump(), "config.json");
}

TEST(Config, ReadsQwen2Moe) {
  const ModelConfig c = load_config(test::data_dir("qwen2_tied_sharded"));
  EXPECT_EQ(c.architecture, "Qwen2MoeForCausalLM");
  EXPECT_EQ(c.model_type, "qwen2_moe");
  EXPECT_EQ(c.hidden, 40);
  EXPECT_EQ(c.layers, 3);
  EXPECT_EQ(c.heads, 4);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 10);
  EXPECT_EQ(c.vocab, 320);
  EXPECT_EQ(c.max_positions, 512);
  EXPECT_EQ(c.dense_inter, 52);
  EXPECT_EQ(c.rms_eps, 1e-6F);
  EXPECT_EQ(c.rope.theta, 50000.0);
  EXPECT_TRUE(c.attention_bias);
  EXPECT_FALSE(c.output_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::none);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::sparse, LayerKind::dense, LayerKind::sparse));
  EXPECT_EQ(c.moe.experts, 7);
  EXPECT_EQ(c.moe.topk, 4);
  EXPECT_EQ(c.moe.inter, 24);
  EXPECT_TRUE(c.moe.router.renormalize);
  EXPECT_EQ(c.moe.shared_inter, 48);
  EXPECT_TRUE(c.moe.shared_gate);
  EXPECT_EQ(c.dtype, DType::f32);
  EXPECT_TRUE(c.eos_ids.empty());
}

TEST(Config, ReadsQwen3MoeInTheNewForm) {
  const ModelConfig c = load_config(test::data_dir("qwen3_new_config_mixed"));
  EXPECT_EQ(c.model_type, "qwen3_moe");
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rope.theta, 75000.0);
  EXPECT_EQ(c.moe.experts, 9);  // num_local_experts
  EXPECT_EQ(c.dtype, DType::f32);
  EXPECT_TRUE(c.attention_bias);
  EXPECT_TRUE(c.output_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::head);
  EXPECT_EQ(c.moe.shared_inter, 0);
  EXPECT_FALSE(c.moe.shared_gate);
  // decoder_sparse_step 2 leaves layers 1 and 3, mlp_only_layers takes 3.
  EXPECT_THAT(c.layer_kinds,
              ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::dense, LayerKind::dense));
  EXPECT_EQ(c.sparse_layers(), 1);
}

TEST(Config, ReadsMixtral) {
  const ModelConfig c = load_config(test::data_dir("mixtral_window_bf16"));
  EXPECT_EQ(c.model_type, "mixtral");
  EXPECT_EQ(c.moe.inter, 32);  // intermediate_size
  EXPECT_TRUE(c.moe.router.renormalize);
  ASSERT_EQ(c.layer_attention.size(), 2U);
  EXPECT_EQ(c.layer_attention[1].span.kind, AttentionSpan::Kind::window);
  EXPECT_EQ(c.layer_attention[1].span.width, 11);
  EXPECT_EQ(load_config(test::data_dir("mixtral")).layer_attention[0].span.kind,
            AttentionSpan::Kind::full);
  error_with("mixtral", "sliding_window", 0);
}

TEST(Config, ReadsOlmoe) {
  const ModelConfig c = load_config(test::data_dir("olmoe"));
  EXPECT_EQ(c.qk_norm, QkNorm::whole);
  EXPECT_FALSE(c.moe.router.renormalize);
  error_with("olmoe", "clip_qkv", 8.0);
}

TEST(Config, ReadsLlama4) {
  const ModelConfig c = load_config(test::data_dir("llama4_text"));
  // interleave_moe_layer_step 2
  EXPECT_THAT(
      c.layer_kinds,
      ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::dense, LayerKind::sparse));
  EXPECT_EQ(c.moe.inter, 24);
  EXPECT_EQ(c.moe.shared_inter, 24);
  EXPECT_EQ(c.dense_inter, 40);
  EXPECT_FALSE(c.moe.shared_gate);
  EXPECT_TRUE(c.moe.weigh_rows);
  EXPECT_EQ(c.moe.storage, ExpertStorage::halves);
  EXPECT_TRUE(c.moe.router.choose_first);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::sigmoid);
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_EQ(c.qk_norm, QkNorm::turned);
  // no_rope_layers [1, 1, 0, 1]
  const LayerAttention& turns = c.layer_attention[1];
  EXPECT_TRUE(turns.rope);
  EXPECT_EQ(turns.span.kind, AttentionSpan::Kind::block);
  EXPECT_EQ(turns.span.width, 7);
  EXPECT_EQ(turns.growth.step, 0);
  const LayerAttention& still = c.layer_attention[2];
  EXPECT_FALSE(still.rope);
  EXPECT_EQ(still.span.kind, AttentionSpan::Kind::full);
  EXPECT_EQ(still.growth.step, 6);
  EXPECT_EQ(still.growth.strength, 0.3);
}

TEST(Config, ReadsGptOss) {
  const ModelConfig c = load_config(test::data_dir("gpt_oss"));
  EXPECT_TRUE(c.attention_bias);
  EXPECT_TRUE(c.output_bias);
  EXPECT_TRUE(c.sinks);
  EXPECT_EQ(c.layer_attention[0].span.kind, AttentionSpan::Kind::window);
  EXPECT_EQ(c.layer_attention[0].span.width, 9);
  EXPECT_EQ(c.layer_attention[1].span.kind, AttentionSpan::Kind::full);
  EXPECT_EQ(c.rope.scaling, RopeScaling::yarn);
  EXPECT_FALSE(c.rope.whole_pairs);
  EXPECT_EQ(c.moe.inter, 24);
  EXPECT_TRUE(c.moe.router_bias);
  EXPECT_TRUE(c.moe.expert_bias);
  EXPECT_TRUE(c.moe.router.choose_first);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::softmax);
  EXPECT_EQ(c.moe.gating.kind, Gating::Kind::clamped);
  EXPECT_EQ(c.moe.gating.alpha, 1.702F);
  EXPECT_EQ(c.moe.gating.limit, 1.25F);
  EXPECT_EQ(c.moe.storage, ExpertStorage::alternating);
  // Where nothing is said, every other layer from the first on has a window.
  const ModelConfig silent = with("gpt_oss", "layer_types", nullptr);
  EXPECT_EQ(silent.layer_attention[0].span.kind, AttentionSpan::Kind::window);
  EXPECT_EQ(silent.layer_attention[1].span.kind, AttentionSpan::Kind::full);
  EXPECT_THAT(error_with("gpt_oss", "layer_types", json::array({"full_attention"})),
              HasSubstr("for each of 2 layers"));
  error_with("gpt_oss", "layer_types", json::array({"full_attention", "chunked_attention"}));
  error_with("gpt_oss", "rope_scaling", nullptr);
  error_with("gpt_oss", "head_dim", nullptr);
}

TEST(Config, Mxfp4NeedsExpertsThatLieTogetherInWholeGroups) {
  const json quantization = {{"quant_method", "mxfp4"}};
  EXPECT_EQ(load_config(test::data_dir("gpt_oss_mxfp4")).quantization, Quantization::mxfp4);
  EXPECT_THAT(error_with("mixtral", "quantization_config", quantization),
              HasSubstr("no mxfp4 with MixtralForCausalLM"));
  EXPECT_THAT(error_with("gpt_oss", "quantization_config", quantization),
              HasSubstr("no mxfp4 with hidden 72 and experts 24 wide, which 32 must divide"));
}

TEST(Config, ReadsATextModelInsideAnother) {
  const ModelConfig c = load_config(test::data_dir("llama4_pictures_bf16"));
  EXPECT_EQ(c.model_type, "llama4");
  EXPECT_EQ(c.dtype, DType::bf16);
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::sparse, LayerKind::dense, LayerKind::sparse));
  EXPECT_TRUE(c.attention_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::none);
  EXPECT_EQ(c.rope.low_turns, c.rope.high_turns);
  error_with("llama4_pictures_bf16", "text_config", nullptr);
  json text = golden("llama4_pictures_bf16")["text_config"];
  text["hidden_size"] = 0;
  EXPECT_THAT(error_with("llama4_pictures_bf16", "text_config", text),
              HasSubstr("text_config: field hidden_size"));
}

TEST(Config, ReadsLlama4sOlderFields) {
  const char* const model = "llama4_text";
  EXPECT_EQ(with(model, "attn_temperature_tuning", 4).layer_attention[2].growth.step, 6);
  EXPECT_EQ(with(model, "attn_temperature_tuning", 0).layer_attention[2].growth.step, 0);
  EXPECT_EQ(with(model, "attn_temperature_tuning", false).layer_attention[2].growth.step, 0);
  // An empty list is none: every third layer does not turn.
  EXPECT_FALSE(with(model, "no_rope_layers", json::array()).layer_attention[2].rope);
  EXPECT_EQ(with(model, "moe_layers", {0, 1, 3}).sparse_layers(), 3);
  const ModelConfig full =
      with(model, "layer_types", json(std::vector<std::string>(4, "full_attention")));
  EXPECT_EQ(full.layer_attention[0].span.kind, AttentionSpan::Kind::full);
  error_with(model, "layer_types", {"full_attention"});
  error_with(model, "layer_types", {"full_attention", "sliding_attention", "x", "y"});
  error_with(model, "layer_types", "chunked_attention");
  error_with(model, "no_rope_layers", {1, 0});
  error_with(model, "moe_layers", {9});
  error_with(model, "rms_norm_eps", nullptr);
}

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
  error_with("qwen3_untied", "eos_token_id", 331);
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
      AllOf(HasSubstr("expected one of"), HasSubstr("Qwen2MoeForCausalLM, Qwen3MoeForCausalLM")));
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

TEST(Config, RequiredFieldsAreNamedWhenMissing) {
  for (const char* field : {"hidden_size", "vocab_size", "num_experts", "num_experts_per_tok"}) {
    EXPECT_THAT(test::message_of<ModelError>([&] { without("qwen3_untied", field); }),
                HasSubstr(fmt::format("field {}: expected an integer", field)));
  }
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
  EXPECT_EQ(tensor_name({}, "a.{layer}.b.{expert}.c", 3, 12), "a.3.b.12.c");
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

TEST(Config, ReadsDeepseekV2Lite) {
  const ModelConfig c = load_config(test::data_dir("deepseek_v2_lite"));
  EXPECT_EQ(c.latent.query_rank, 0);
  EXPECT_EQ(c.latent.rank, 40);
  EXPECT_EQ(c.latent.plain_dim, 20);
  EXPECT_EQ(c.latent.value_dim, 28);
  EXPECT_EQ(c.head_dim, 32);
  EXPECT_EQ(c.rope.dim, 12);
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_EQ(c.rope.scaling, RopeScaling::yarn);
  EXPECT_EQ(c.moe.experts, 7);
  EXPECT_EQ(c.moe.shared_inter, 48);
  EXPECT_FALSE(c.moe.shared_gate);
  EXPECT_FALSE(c.moe.selection_bias);
  EXPECT_EQ(c.moe.router.groups, 1);
  EXPECT_EQ(c.dense_inter, 84);
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::dense, LayerKind::sparse));
}

TEST(Config, ReadsGroupsOfDeepseekV2) {
  const ModelConfig c = load_config(test::data_dir("deepseek_v2_groups_bf16"));
  EXPECT_EQ(c.latent.query_rank, 44);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::softmax);
  EXPECT_EQ(c.moe.router.group_score, RouterOptions::GroupScore::max);
  EXPECT_EQ(c.moe.router.groups, 3);
  EXPECT_EQ(c.moe.router.topk_groups, 2);
  EXPECT_EQ(c.moe.router.scaling, 4.0F);
  EXPECT_FALSE(c.moe.router.renormalize);
  EXPECT_EQ(c.sparse_layers(), c.layers);
  // "greedy" knows no groups, whatever n_group says.
  EXPECT_EQ(with("deepseek_v2_groups_bf16", "topk_method", "greedy").moe.router.groups, 1);
}

TEST(Config, ReadsDeepseekV3) {
  const ModelConfig c = load_config(test::data_dir("deepseek_v3"));
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::sigmoid);
  EXPECT_EQ(c.moe.router.group_score, RouterOptions::GroupScore::sum_of_two);
  EXPECT_EQ(c.moe.router.groups, 4);
  EXPECT_EQ(c.moe.router.topk_groups, 2);
  EXPECT_EQ(c.moe.router.scaling, 2.5F);
  EXPECT_TRUE(c.moe.router.renormalize);
  EXPECT_TRUE(c.moe.selection_bias);
  EXPECT_EQ(c.quantization, Quantization::none);
  EXPECT_EQ(load_config(test::data_dir("deepseek_v3_fp8")).quantization, Quantization::fp8);
}

TEST(Config, KimiIsTheModelTypeOfDeepseeksArchitecture) {
  const ModelConfig c = load_config(test::data_dir("kimi_k2"));
  EXPECT_EQ(c.architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(c.model_type, "kimi_k2");
  EXPECT_EQ(c.moe.router.groups, 1);
  // A type that somebody made up changes nothing.
  EXPECT_EQ(with("kimi_k2", "model_type", "my_own").model_type, "deepseek_v3");
  EXPECT_EQ(with("kimi_k2", "model_type", "qwen3_moe").model_type, "deepseek_v3");
}

TEST(Config, ReadsGlm) {
  const ModelConfig c = load_config(test::data_dir("glm4_moe"));
  EXPECT_EQ(c.head_dim, 20);
  EXPECT_EQ(c.rope.dim, 10);  // the half, where nothing is said
  EXPECT_TRUE(c.attention_bias);
  EXPECT_FALSE(c.output_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::head);
  EXPECT_EQ(c.latent.rank, 0);
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::dense, LayerKind::sparse));
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::sigmoid);
  EXPECT_EQ(c.moe.router.groups, 2);
  EXPECT_EQ(c.moe.shared_inter, 20);
  EXPECT_TRUE(c.moe.selection_bias);
  const ModelConfig air = load_config(test::data_dir("glm4_moe_air_bf16"));
  EXPECT_EQ(air.qk_norm, QkNorm::none);
  EXPECT_EQ(air.rope.dim, 6);
  EXPECT_EQ(air.moe.shared_inter, 56);
}

TEST(Config, RefusesWhatDeepseekModelsCannotBe) {
  error_with("deepseek_v2_lite", "topk_method", "random");
  error_with("deepseek_v2_lite", "scoring_func", "sigmoid");
  error_with("deepseek_v2_lite", "norm_topk_prob", true);
  error_with("deepseek_v2_lite", "attention_bias", true);
  error_with("deepseek_v2_lite", "kv_lora_rank", nullptr);
  error_with("deepseek_v2_lite", "qk_rope_head_dim", 11);
  error_with("deepseek_v3", "topk_method", "greedy");
  error_with("deepseek_v3", "scoring_func", "softmax");
  error_with("deepseek_v3", "n_group", 5);
  error_with("deepseek_v3", "topk_group", 5);
  error_with("deepseek_v3", "num_experts_per_tok", 7);  // 2 groups have 6 experts
  error_with("deepseek_v3", "first_k_dense_replace", -1);
  error_with("deepseek_v3", "routed_scaling_factor", 0);
}

TEST(Config, RefusesGroupsOfOneExpertThatTwoAreTheScoreOf) {
  json fields = golden("deepseek_v3");
  fields["n_group"] = 12;
  fields["topk_group"] = 4;
  EXPECT_THAT(test::message_of<ModelError>([&] { parse_config(fields.dump(), "config.json"); }),
              HasSubstr("n_group: expected groups of two"));
}

TEST(Config, DeepseekLayersMayAlternate) {
  json fields = golden("kimi_k2");
  fields["num_hidden_layers"] = 3;
  fields["moe_layer_freq"] = 2;
  EXPECT_THAT(parse_config(fields.dump(), "config.json").layer_kinds,
              ElementsAre(LayerKind::dense, LayerKind::dense, LayerKind::sparse));
}

}  // namespace
}  // namespace ferry
