// What fields mean that config.json leaves out: what the published config class means.
#include "ferry/model/config_defaults.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "config_description.h"
#include "ferry/model/family.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// All that a model computes depends on, as text.
std::string description(const ModelConfig& c) {
  std::ostringstream out;
  out << c.model_type << ' ' << c.hidden << ' ' << c.layers << ' ' << c.heads << ' ' << c.kv_heads
      << ' ' << c.head_dim << ' ' << c.vocab << ' ' << c.max_positions << ' ' << c.dense_inter
      << ' ' << c.rms_eps << ' ' << c.attention_bias << c.output_bias << c.sinks
      << static_cast<int>(c.qk_norm) << c.tied_embeddings << c.attention_gate << c.norms_from_one
      << '\n';
  const RopeOptions& r = c.rope;
  out << r.theta << ' ' << r.dim << ' ' << r.interleaved << static_cast<int>(r.scaling) << ' '
      << r.factor << ' ' << r.original_positions << ' ' << r.low_turns << ' ' << r.high_turns << ' '
      << r.whole_pairs << ' ' << r.magnitude << ' ' << r.mscale_all_dim << '\n';
  out << c.latent.rank << ' ' << c.latent.query_rank << ' ' << c.latent.plain_dim << ' '
      << c.latent.value_dim << ' ' << c.latent.rms_eps << '\n';
  const IndexerConfig& index = c.latent.indexer;
  out << index.topk << ' ' << index.heads << ' ' << index.dim << index.interleaved << ' '
      << c.conv_taps << '\n';
  const DeltaConfig& d = c.delta;
  out << d.key_heads << ' ' << d.value_heads << ' ' << d.key_dim << ' ' << d.value_dim << ' '
      << d.taps << d.by_key_head << '\n';
  for (const LayerAttention& a : c.layer_attention)
    out << a.mixer << static_cast<int>(a.span.kind) << ' ' << a.span.width << a.rope << ' '
        << a.growth.step << ' ' << a.growth.strength << a.growth.counts_itself << a.shares_choice
        << '\n';
  for (const LayerKind kind : c.layer_kinds) out << static_cast<int>(kind);
  const MoeConfig& m = c.moe;
  out << '\n'
      << m.experts << ' ' << m.topk << ' ' << m.inter << ' ' << static_cast<int>(m.gating.kind)
      << ' ' << m.gating.alpha << ' ' << m.gating.limit << ' ' << m.expert_bias << m.router_bias
      << m.weigh_rows << m.selection_bias << m.shared_gate << ' ' << m.shared_inter << '\n'
      << static_cast<int>(m.router.score) << ' ' << m.router.renormalize << m.router.choose_first
      << ' ' << m.router.groups << ' ' << m.router.topk_groups << ' ' << m.router.scaling << '\n';
  for (const std::int32_t id : c.eos_ids) out << id << ' ';
  return out.str();
}

json defaults_of(const ModelFamily& family) {
  return json::parse(
      config_defaults(family.config_class.empty() ? family.model_type : family.config_class));
}

/// The smallest config.json of a family: what no class has a default for.
json silent(const ModelFamily& family) {
  json fields = {{"architectures", {family.architecture}}, {"model_type", family.model_type}};
  json& text = family.text_fields == nullptr ? fields : fields[family.text_fields];
  if (family.text_fields != nullptr) text = json::object();
  const json defaults = defaults_of(family);
  const auto none_of = [&](std::initializer_list<const char*> keys) {
    return std::ranges::none_of(keys, [&](const char* key) { return defaults.contains(key); });
  };
  if (none_of({"num_experts_per_tok", "moe_k", "moe_topk"})) text["num_experts_per_tok"] = 2;
  if (none_of({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"}))
    text["n_routed_experts"] = 4;
  const bool divides =
      defaults.at("hidden_size").get<int>() % defaults.at("num_attention_heads").get<int>() == 0;
  if (!divides && !defaults.contains("head_dim")) text["head_dim"] = 128;
  if (defaults.contains("conv_L_cache")) {
    text["layer_types"] =
        std::vector<std::string>(defaults.at("num_hidden_layers").get<std::size_t>(), "conv");
    text["layer_types"][2] = "full_attention";
  }
  return fields;
}

TEST(ConfigDefaults, EveryFamilyReadsASilentFileAsOneThatSaysThem) {
  for (const ModelFamily& family : model_families()) {
    SCOPED_TRACE(family.model_type);
    json spoken = silent(family);
    json& text = family.text_fields == nullptr ? spoken : spoken[family.text_fields];
    const json defaults = defaults_of(family);
    ASSERT_GT(defaults.size(), 10U);
    for (const auto& [key, value] : defaults.items())
      if (!text.contains(key)) text[key] = value;
    EXPECT_EQ(description(parse_config(silent(family).dump(), "config.json")),
              description(parse_config(spoken.dump(), "config.json")));
  }
}

/// Of each golden model, a field that says what its class means anyway: without it transformers'
/// answers must still be right.
TEST(ConfigDefaults, LeavingOutWhatTheClassMeansChangesNothing) {
  int left_out = 0;
  for (const char* const model : test::kGoldenModels) {
    json fields = golden(model);
    const ModelConfig whole = parse_config(fields.dump(), "config.json");
    const ModelFamily& family = family_of(whole);
    json& text = family.text_fields == nullptr ? fields : fields[family.text_fields];
    const json before = text;
    const json defaults = defaults_of(family);
    for (const auto& [key, value] : before.items()) {
      if (!defaults.contains(key) || defaults[key] != value) continue;
      text.erase(key);
      ++left_out;
      EXPECT_EQ(description(parse_config(fields.dump(), "config.json")), description(whole))
          << model << ": " << key;
    }
  }
  EXPECT_GT(left_out, 100);
}

TEST(ConfigDefaults, AreThoseThatTransformersAnsweredFor) {
  // Each was another model's before: shared experts dropped, weights neither divided nor scaled.
  EXPECT_EQ(without("deepseek_v3", "n_shared_experts").moe.shared_inter, 20);
  EXPECT_TRUE(without("deepseek_v3", "norm_topk_prob").moe.router.renormalize);
  EXPECT_EQ(without("deepseek_v3", "routed_scaling_factor").moe.router.scaling, 2.5F);
  EXPECT_EQ(without("mixtral", "rope_theta").rope.theta, 1e6);
  EXPECT_EQ(without("mixtral", "rms_norm_eps").rms_eps, 1e-5F);
  EXPECT_EQ(without("glm4_moe", "routed_scaling_factor").moe.router.scaling, 1.0F);
  EXPECT_TRUE(without("glm4_moe", "norm_topk_prob").moe.router.renormalize);
  EXPECT_EQ(without("olmoe", "rms_norm_eps").rms_eps, 1e-5F);
}

TEST(ConfigDefaults, NullIsNoDefault) {
  EXPECT_EQ(with("deepseek_v3", "q_lora_rank", nullptr).latent.query_rank, 0);
  EXPECT_EQ(with("mixtral", "eos_token_id", nullptr).eos_ids.size(), 0U);
  EXPECT_FALSE(with("deepseek_v3", "norm_topk_prob", nullptr).moe.router.renormalize);
  error_with("mixtral", "rms_norm_eps", nullptr);
}

TEST(ConfigDefaults, GptOssMeansItsOwnScalingWhereNoneIsSaid) {
  json fields = golden("gpt_oss");
  fields.erase("rope_theta");
  for (const bool erase : {false, true}) {
    fields["rope_scaling"] = nullptr;
    if (erase) fields.erase("rope_scaling");
    const RopeOptions rope = parse_config(fields.dump(), "config.json").rope;
    EXPECT_EQ(rope.scaling, RopeScaling::yarn);
    EXPECT_EQ(rope.theta, 150000.0);
    EXPECT_EQ(rope.factor, 32.0);
    EXPECT_EQ(rope.original_positions, 4096.0);
    EXPECT_FALSE(rope.whole_pairs);
  }
}

TEST(ConfigDefaults, LatentNormsHaveTheirOwnEpsilon) {
  EXPECT_EQ(with("deepseek_v3", "rms_norm_eps", 1e-3).latent.rms_eps, 1e-6F);
}

TEST(Config, RefusesRotaryEmbeddingsThatDifferBetweenLayers) {
  const json one = {{"rope_type", "yarn"}, {"factor", 4.0}, {"rope_theta", 1e4}};
  EXPECT_THAT(error_with("qwen2_new_config",
                         "rope_parameters",
                         {{"full_attention", one}, {"sliding_attention", one}}),
              HasSubstr("rope_parameters: field full_attention: expected a value"));
}

TEST(Config, KindsOfLayersByNameMustAgreeWithTheOtherFields) {
  EXPECT_THAT(with("deepseek_v3", "mlp_layer_types", {"dense", "sparse"}).layer_kinds,
              ElementsAre(LayerKind::dense, LayerKind::sparse));
  EXPECT_THAT(error_with("deepseek_v3", "mlp_layer_types", {"sparse", "sparse"}),
              HasSubstr("for each of 2 layers"));
  error_with("qwen3_untied", "mlp_layer_types", {"sparse"});
  error_with("qwen3_untied", "mlp_layer_types", "sparse");
  error_with("mixtral", "mlp_layer_types", {"sparse", "hash_moe"});
}

}  // namespace
}  // namespace ferry
