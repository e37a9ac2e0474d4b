// What kinds of mixers say of themselves.
#include "ferry/model/mixers/mixer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "ferry/core/error.h"

namespace ferry {
namespace {

using testing::HasSubstr;

ModelConfig small_config() {
  ModelConfig config;
  config.hidden = 32;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.layer_attention.resize(3);
  return config;
}

ModelConfig latent_config() {
  ModelConfig config = small_config();
  config.latent = {.rank = 10, .plain_dim = 2, .value_dim = 5};
  config.rope.dim = 4;
  for (LayerAttention& layer : config.layer_attention) layer.mixer = kLatentAttention;
  return config;
}

TEST(Mixer, AttentionKeepsKeysAndValuesOfItsHeads) {
  const ModelConfig config = small_config();
  for (const StateSpec& spec : state_specs(config, WireType::bf16)) {
    EXPECT_EQ(spec.streams, 2 * 2);
    EXPECT_EQ(spec.row_bytes, 12U);
  }
  EXPECT_EQ(state_specs(config, WireType::f32)[0].row_bytes, 24U);
  // Members of a group keep the heads that they compute, each a part.
  for (int member = 0; member < 2; ++member)
    EXPECT_EQ(state_specs(config, WireType::bf16, {member, 2})[0].streams, 2);
}

TEST(Mixer, KeysAndValuesTakeWhatTheirTypeDoes) {
  ModelConfig config = small_config();
  EXPECT_EQ(state_specs(config, WireType::int8_block)[0].row_bytes, 16U);
  EXPECT_EQ(state_specs(config, WireType::fp8)[0].row_bytes, 16U);
  config.head_dim = 128;
  EXPECT_EQ(state_specs(config, WireType::bf16)[0].row_bytes, 256U);
  for (const WireType type : {WireType::fp8, WireType::int8_block})
    EXPECT_EQ(state_specs(config, type)[0].row_bytes, 128U + 16) << "with the scale";
  config = latent_config();
  config.latent.rank = 512;
  config.rope.dim = 64;
  EXPECT_EQ(state_specs(config, WireType::fp8)[0].row_bytes, 576U + 32) << "five scales";
}

TEST(Mixer, LatentAttentionKeepsOneRowOfALayerOnEveryMember) {
  const ModelConfig config = latent_config();
  for (int member = 0; member < 2; ++member) {
    for (const StateSpec& spec : state_specs(config, WireType::bf16, {member, 2})) {
      EXPECT_EQ(spec.streams, 1);
      EXPECT_EQ(spec.row_bytes, 28U);
    }
  }
}

TEST(Mixer, LayersOfOneModelMayBeOfDifferentKinds) {
  ModelConfig config = latent_config();
  config.layer_attention[1].mixer = kAttention;
  EXPECT_EQ(mixer_of(config, 0).name(), kLatentAttention);
  EXPECT_EQ(mixer_of(config, 1).name(), kAttention);
  const StateLayout layout(state_specs(config, WireType::bf16));
  ASSERT_EQ(layout.classes().size(), 2U);
  EXPECT_EQ(layout.bytes_per_position(), 2U * 28 + 4 * 12);
  config.layer_attention[1].mixer = "telepathy";
  EXPECT_THROW(mixer_of(config, 1), BrokenContract);
}

TEST(Mixer, AGatedDeltaNetKeepsTheSameOfEverySequenceAndMembersAShare) {
  ModelConfig config = small_config();
  config.delta = {.key_heads = 2, .value_heads = 6, .key_dim = 4, .value_dim = 3, .taps = 4};
  config.layer_attention[1].mixer = kGatedDeltaNet;
  const auto bytes = [&](const GroupMember& member) {
    const StateSpec spec = state_specs(config, WireType::bf16, member)[1];
    EXPECT_EQ(spec.streams, 0);
    return spec.fixed_bytes;
  };
  // Inputs of the convolution, and matrices.
  EXPECT_EQ(bytes({}), 4U * (3 * (2 * 2 * 4 + 6 * 3) + 6 * 4 * 3));
  EXPECT_EQ(bytes({0, 2}), 4U * (3 * (2 * 4 + 3 * 3) + 3 * 4 * 3));
  // Two members of four share a key head, and each has the inputs of its own value heads.
  EXPECT_EQ(bytes({0, 4}), 4U * (3 * (2 * 4 + 3) + 4 * 3));
  EXPECT_EQ(bytes({0, 8}), 0U) << "a member without heads";
}

/// What a config is refused for.
std::string refusal(ModelConfig config, const std::function<void(ModelConfig&)>& change) {
  change(config);
  try {
    check_mixers(config, "x/config.json");
  } catch (const ModelError& e) {
    return e.what();
  }
  return "";
}

TEST(Mixer, WhatAKindDoesNotImplementIsRefusedByName) {
  EXPECT_EQ(refusal(latent_config(), [](ModelConfig&) {}), "");
  EXPECT_EQ(refusal(small_config(), [](ModelConfig&) {}), "");
  const auto latent = [](const std::function<void(ModelConfig&)>& change) {
    return refusal(latent_config(), change);
  };
  const std::string window = latent([](ModelConfig& c) {
    c.layer_attention[2].span = {AttentionSpan::Kind::window, 8};
  });
  EXPECT_EQ(window,
            "x/config.json: layer 2: latent attention does not support windows and blocks of "
            "positions (layer_types, sliding_window)");
  EXPECT_THAT(latent([](ModelConfig& c) { c.layer_attention[0].rope = false; }),
              HasSubstr("no_rope_layers"));
  EXPECT_THAT(latent([](ModelConfig& c) { c.sinks = true; }), HasSubstr("sinks"));
  EXPECT_THAT(latent([](ModelConfig& c) { c.attention_bias = true; }), HasSubstr("biases"));
  EXPECT_THAT(latent([](ModelConfig& c) { c.output_bias = true; }), HasSubstr("biases"));
  EXPECT_THAT(latent([](ModelConfig& c) { c.qk_norm = QkNorm::head; }), HasSubstr("norms"));
  EXPECT_THAT(latent([](ModelConfig& c) { c.latent = {}; }), HasSubstr("kv_lora_rank"));
  EXPECT_THAT(
      refusal(small_config(), [](ModelConfig& c) { c.layer_attention[0].mixer = kGatedDeltaNet; }),
      HasSubstr("linear_num_key_heads"));
  const auto gate = [](ModelConfig& c) {
    c.attention_gate = true;
    c.qk_norm = QkNorm::whole;
  };
  EXPECT_THAT(refusal(small_config(), gate), HasSubstr("output gate"));
  EXPECT_THAT(refusal(latent_config(), [](ModelConfig& c) { c.attention_gate = true; }),
              HasSubstr("output gate"));
  EXPECT_THAT(refusal(small_config(), [](ModelConfig& c) { c.latent.rank = 8; }),
              HasSubstr("attention does not support keys and values made of a latent"));
}

}  // namespace
}  // namespace ferry
