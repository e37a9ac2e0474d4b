// What config.json says in the families of 2026, and what it may not.
#include <cmath>
#include <string>
#include <vector>

#include "config_description.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/family.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Config, ReadsMiniMax) {
  const ModelConfig c = load_config(test::data_dir("minimax_m2"));
  EXPECT_EQ(c.head_dim, 20);
  EXPECT_EQ(c.rope.dim, 10);  // rotary_dim
  EXPECT_EQ(c.rope.theta, 5e6);
  EXPECT_EQ(c.qk_norm, QkNorm::whole);
  EXPECT_EQ(c.moe.inter, 24);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::sigmoid);
  EXPECT_EQ(c.moe.router.groups, 1);
  EXPECT_TRUE(c.moe.router.renormalize);
  EXPECT_TRUE(c.moe.selection_bias);
  EXPECT_EQ(with("minimax_m2", "rotary_dim", nullptr).rope.dim, 20);
  EXPECT_EQ(with("minimax_m2", "partial_rotary_factor", 0.2).rope.dim, 4);
  error_with("minimax_m2", "rotary_dim", 7);
  error_with("minimax_m2", "rotary_dim", 22);
  error_with("minimax_m2", "scoring_func", "softmax");
  error_with("minimax_m2", "use_qk_norm", false);
  error_with("minimax_m2", "use_routing_bias", false);
  error_with("minimax_m2", "qk_norm_type", "per_head");
  error_with("minimax_m2", "shared_intermediate_size", 16);
  error_with("minimax_m2", "attn_type_list", std::vector<int>{1, 0});
}

TEST(Config, ReadsDots) {
  const ModelConfig c = load_config(test::data_dir("dots1"));
  EXPECT_EQ(c.qk_norm, QkNorm::head);
  EXPECT_EQ(c.moe.router.groups, 2);
  EXPECT_EQ(c.moe.shared_inter, 40);
  const auto kind = [&](int layer) {
    return c.layer_attention[static_cast<std::size_t>(layer)].span.kind;
  };
  EXPECT_EQ(kind(1), AttentionSpan::Kind::full);
  EXPECT_EQ(kind(2), AttentionSpan::Kind::window);
  EXPECT_EQ(c.layer_attention[2].span.width, 9);
  const ModelConfig named =
      with("dots1", "layer_types", {"sliding_attention", "full_attention", "full_attention"});
  EXPECT_EQ(named.layer_attention[0].span.kind, AttentionSpan::Kind::window);
  EXPECT_EQ(named.layer_attention[2].span.kind, AttentionSpan::Kind::full);
  EXPECT_EQ(with("dots1", "sliding_window", nullptr).layer_attention[2].span.kind,
            AttentionSpan::Kind::full);
  error_with("dots1", "max_window_layers", -1);
  error_with("dots1", "layer_types", {"full_attention"});
}

TEST(Config, ReadsErnie) {
  const ModelConfig c = load_config(test::data_dir("ernie4_5_moe"));
  EXPECT_EQ(c.moe.experts, 10);
  EXPECT_EQ(c.moe.topk, 3);
  EXPECT_EQ(c.moe.shared_inter, 40);
  EXPECT_TRUE(c.moe.selection_bias);
  EXPECT_TRUE(c.tied_embeddings);  // where nothing is said
  EXPECT_TRUE(c.rope.interleaved);
  EXPECT_EQ(c.rope.theta, 500000.0);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::softmax);
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::sparse));
  EXPECT_THAT(with("ernie4_5_moe", "moe_layer_end_index", 1).layer_kinds,
              ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::dense));
  EXPECT_THAT(with("ernie4_5_moe", "moe_layer_interval", 2).layer_kinds,
              ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::dense));
  error_with("ernie4_5_moe", "use_bias", true);
  error_with("ernie4_5_moe", "moe_norm_min", 0.5);
  error_with("ernie4_5_moe", "moe_layer_start_index", std::vector<int>{1, 2});
  error_with("ernie4_5_moe", "moe_k", 11);
}

TEST(Config, ReadsHunyuan) {
  const ModelConfig c = load_config(test::data_dir("hunyuan_v1_moe"));
  EXPECT_EQ(c.qk_norm, QkNorm::turned_head);
  EXPECT_TRUE(c.qk_norm_weights());
  EXPECT_EQ(c.moe.topk, 3);  // a list, the same for each layer
  EXPECT_EQ(c.moe.shared_inter, c.moe.inter);
  EXPECT_TRUE(c.moe.router.renormalize);
  EXPECT_DOUBLE_EQ(c.rope.theta, 10000.0 * std::pow(50.0, 20.0 / 18.0));
  EXPECT_EQ(c.rope.scaling, RopeScaling::none);
  EXPECT_EQ(with("hunyuan_v1_moe", "moe_topk", 2).moe.topk, 2);
  error_with("hunyuan_v1_moe", "moe_topk", std::vector<int>{2, 3});
  error_with("hunyuan_v1_moe", "moe_topk", std::vector<int>{});
  error_with("hunyuan_v1_moe", "moe_intermediate_size", std::vector<int>{28, 20});
  error_with("hunyuan_v1_moe", "moe_intermediate_size", 20);
  error_with("hunyuan_v1_moe", "num_shared_expert", std::vector<int>{2, 2});
  error_with("hunyuan_v1_moe", "use_cla", true);
  error_with("hunyuan_v1_moe", "use_qk_norm", false);
  error_with("hunyuan_v1_moe", "rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}});
  error_with("hunyuan_v1_moe", "rope_scaling", {{"type", "dynamic"}, {"alpha", 0}});
}

TEST(Config, ReadsMistral4) {
  const ModelConfig c = load_config(test::data_dir("mistral4"));
  EXPECT_EQ(c.head_dim, 28);
  EXPECT_EQ(c.rope.dim, 8);
  EXPECT_EQ(c.moe.router.score, RouterOptions::Score::softmax);
  EXPECT_EQ(c.moe.router.group_score, RouterOptions::GroupScore::sum_of_two);
  EXPECT_FALSE(c.moe.selection_bias);
  const QueryGrowth& growth = c.layer_attention[1].growth;
  EXPECT_EQ(growth.step, 13);
  EXPECT_EQ(growth.factor(12), 1.0F);
  EXPECT_FLOAT_EQ(growth.factor(13), 1.0F + 0.3F * std::log(2.0F));
  // A class with a scaling of its own: growth is part of it.
  const ModelConfig silent = with("mistral4", "rope_parameters", nullptr);
  EXPECT_EQ(silent.layer_attention[0].growth.step, 8192);
  EXPECT_EQ(silent.rope.dim, 8);
  error_with("mistral4", "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}});
  error_with("mistral4", "scoring_func", "sigmoid");
  error_with("mistral4", "n_group", 5);
}

TEST(Config, GlmFlashNamesItsDenseLayers) {
  const ModelConfig c = load_config(test::data_dir("glm4_moe_lite"));
  EXPECT_THAT(c.layer_kinds, ElementsAre(LayerKind::sparse, LayerKind::dense, LayerKind::sparse));
  EXPECT_EQ(c.moe.router.scaling, 1.8F);
  const std::vector<LayerKind> first = {LayerKind::dense, LayerKind::sparse, LayerKind::sparse};
  EXPECT_EQ(with("glm4_moe_lite", "mlp_layer_types", nullptr).layer_kinds, first);
  error_with("glm4_moe_lite", "mlp_layer_types", {"sparse", "dense"});
  error_with("glm4_moe_lite", "mlp_layer_types", {"sparse", "dense", "hash_moe"});
  error_with("glm4_moe_lite", "intermediate_size", 0);
}

TEST(Config, IndexersChoosePositionsAndEndNone) {
  for (const char* model : {"deepseek_v32_sparse", "glm_moe_dsa_sparse"}) {
    const ModelConfig c = load_config(test::data_dir(model));
    EXPECT_EQ(c.max_positions, 512) << model;
    EXPECT_THAT(c.notes, IsEmpty()) << model;
    EXPECT_LT(c.latent.indexer.topk, 20) << model;
    EXPECT_EQ(c.latent.indexer.interleaved, c.model_type == "glm_moe_dsa");
    json silent = golden(model);
    silent.erase("index_topk");
    EXPECT_EQ(parse_config(silent.dump(), "config.json").latent.indexer.topk, 2048)
        << "the class's default";
    error_with(model, "index_topk", 0);
    error_with(model, "index_n_heads", "many");
    error_with(model, "index_head_dim", 6);  // less than what turns
    error_with(model, "q_lora_rank", 0);
  }
}

TEST(Config, LayersOfGlmShareWhatAnIndexerChose) {
  const auto shares = [](const ModelConfig& c) {
    std::string letters;
    for (const LayerAttention& layer : c.layer_attention)
      letters += layer.shares_choice ? 'S' : 'F';
    return letters;
  };
  const char* model = "glm_moe_dsa_sparse";
  EXPECT_EQ(shares(load_config(test::data_dir(model))), "FSFS");
  EXPECT_EQ(shares(with(model, "indexer_types", nullptr)), "FFFF");
  json fields = golden(model);
  fields.erase("indexer_types");
  const auto parsed = [&] { return shares(parse_config(fields.dump(), "config.json")); };
  fields["index_topk_freq"] = 2;
  EXPECT_EQ(parsed(), "FFSF");
  fields["index_skip_topk_offset"] = 1;
  EXPECT_EQ(parsed(), "FSFS");
  fields["index_topk_pattern"] = "FSSF";
  EXPECT_EQ(parsed(), "FSSF");
  fields["index_topk_pattern"] = {"full", "full", "shared", "full"};
  EXPECT_EQ(parsed(), "FFSF");
  error_with(model, "indexer_types", {"shared", "full", "full", "full"});
  error_with(model, "indexer_types", {"full", "full", "full"});
  error_with(model, "indexer_types", {"full", "full", "full", "none"});
  error_with(model, "indexer_types", "FFFF");
}

TEST(Config, LfmNamesItsConvolutions) {
  const ModelConfig c = load_config(test::data_dir("lfm2_moe"));
  EXPECT_EQ(c.conv_taps, 3);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_EQ(c.layer_attention[i].mixer, i == 1 ? kAttention : kShortConv) << i;
  EXPECT_THAT(
      c.layer_kinds,
      ElementsAre(LayerKind::dense, LayerKind::sparse, LayerKind::sparse, LayerKind::sparse));
  EXPECT_EQ(c.rms_eps, 1e-5F);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_FALSE(with("lfm2_moe", "tie_embedding", false).tied_embeddings);
  EXPECT_FALSE(with("lfm2_moe", "use_expert_bias", false).moe.selection_bias);
  error_with("lfm2_moe", "conv_bias", true);
  error_with("lfm2_moe", "conv_L_cache", 0);
  error_with("lfm2_moe", "layer_types", nullptr);
  error_with("lfm2_moe", "layer_types", {"conv", "conv", "conv", "conv"});
  error_with("lfm2_moe", "layer_types", {"conv", "full_attention", "conv"});
  error_with("lfm2_moe", "num_dense_layers", 5);
}

TEST(Config, KimiWithPicturesIsAKimiInside) {
  const ModelConfig c = load_config(test::data_dir("kimi_k25_pictures_int4"));
  EXPECT_EQ(c.model_type, "kimi_k25");
  EXPECT_EQ(c.moe.experts, 9);
  json fields = golden("kimi_k25_pictures_int4");
  fields["architectures"] = {"Kimi_K25ForConditionalGeneration"};  // as transformers writes it
  EXPECT_EQ(parse_config(fields.dump(), "config.json").model_type, "kimi_k25");
  fields.erase("text_config");
  EXPECT_THROW(parse_config(fields.dump(), "config.json"), ModelError);
}

TEST(Config, ReadsQwenNext) {
  const ModelConfig c = load_config(test::data_dir("qwen3_next"));
  EXPECT_EQ(c.delta.key_heads, 2);
  EXPECT_EQ(c.delta.value_heads, 6);
  EXPECT_EQ(c.delta.key_dim, 20);
  EXPECT_EQ(c.delta.value_dim, 12);
  EXPECT_EQ(c.delta.taps, 4);
  EXPECT_TRUE(c.delta.by_key_head);
  EXPECT_TRUE(c.attention_gate);
  EXPECT_TRUE(c.norms_from_one);
  EXPECT_EQ(c.rope.dim, 6);  // a quarter of 24
  EXPECT_EQ(c.layer_kinds[1], LayerKind::dense);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_EQ(c.layer_attention[i].mixer, i == 3 ? kAttention : kGatedDeltaNet) << i;
  EXPECT_EQ(with("qwen3_next", "full_attention_interval", 2).layer_attention[1].mixer, kAttention);
  EXPECT_FALSE(with("qwen3_next", "norm_topk_prob", false).moe.router.renormalize);
  error_with("qwen3_next", "linear_num_value_heads", 5);
  error_with("qwen3_next", "linear_num_key_heads", 0);
  error_with("qwen3_next", "linear_conv_kernel_dim", 1000);
  error_with("qwen3_next", "attn_output_gate", false);
  error_with("qwen3_next", "hidden_act", "gelu");
  error_with("qwen3_next", "layer_types", std::vector<std::string>(4, "linear_attention"));
  error_with("qwen3_next", "layer_types", std::vector<std::string>(4, "sliding_attention"));
  error_with("qwen3_next", "layer_types", std::vector<std::string>(3, "full_attention"));
}

TEST(Config, QwenWithPicturesIsAQwenInside) {
  const ModelConfig c = load_config(test::data_dir("qwen3_5_moe_pictures_bf16"));
  EXPECT_EQ(c.model_type, "qwen3_5_moe");
  EXPECT_FALSE(c.delta.by_key_head);
  EXPECT_EQ(c.rope.dim, 8);
  EXPECT_TRUE(c.moe.router.renormalize);
  const auto names = family_of(c).names;
  EXPECT_EQ(tensor_name(names, names.delta_out, 2),
            "model.language_model.layers.2.linear_attn.out_proj.weight");
  EXPECT_EQ(tensor_name(names, names.lm_head), "lm_head.weight");
  EXPECT_EQ(known_layer(names, "model.language_model.layers.2.linear_attn.out_proj.weight"), 2);
  EXPECT_EQ(known_layer(names, "model.layers.2.linear_attn.out_proj.weight"), std::nullopt);
  EXPECT_EQ(known_layer(names, "mtp.layers.0.mlp.gate.weight"), std::nullopt);
  EXPECT_EQ(known_layer(names, "lm_head.weight"), -1);
}

TEST(Checkpoint, ExpertsLieTogetherWhereTheFilesSay) {
  EXPECT_EQ(Checkpoint::open(test::data_dir("qwen3_stacked")).config().moe.storage,
            ExpertStorage::rows);
  EXPECT_EQ(Checkpoint::open(test::data_dir("qwen3_bf16")).config().moe.storage,
            ExpertStorage::apart);
}

}  // namespace
}  // namespace ferry
