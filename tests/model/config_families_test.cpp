// What each family's config.json says, and what it may not.
#include <cmath>
#include <string>
#include <vector>

#include "config_description.h"
#include "ferry/checkpoint/stored_format.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

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
}

TEST(Config, Mxfp4NeedsExpertsThatLieTogetherInWholeGroups) {
  const json quantization = {{"quant_method", "mxfp4"}};
  EXPECT_EQ(load_config(test::data_dir("gpt_oss_mxfp4")).stored_format->name(), "mxfp4");
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
  EXPECT_EQ(c.stored_format, nullptr);
  EXPECT_EQ(load_config(test::data_dir("deepseek_v3_fp8")).stored_format->name(), "fp8");
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
