// Keys and values kept narrower than activations: how far whole models move, that their bits stand,
// and what is refused.
#include "ferry/model/kv_type.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ferry/core/error.h"
#include "support/golden_model.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using testing::HasSubstr;

TEST(KvType, IsReadByEveryNameThatItHas) {
  EXPECT_EQ(parse_kv_type("auto", "--x"), std::nullopt);
  for (const auto& [name, type, told] : std::vector<std::tuple<std::string, WireType, std::string>>{
           {"f32", WireType::f32, "f32"},
           {"float32", WireType::f32, "f32"},
           {"bf16", WireType::bf16, "bf16"},
           {"bfloat16", WireType::bf16, "bf16"},
           {"int8", WireType::int8_block, "int8"},
           {"fp8", WireType::fp8, "fp8_e4m3"},
           {"fp8_e4m3", WireType::fp8, "fp8_e4m3"}}) {
    EXPECT_EQ(parse_kv_type(name, "--x"), type) << name;
    EXPECT_EQ(kv_type_name(type), told) << name;
  }
  for (const char* name : {"fp8_e5m2", "int4", "", "FP8"}) {
    try {
      static_cast<void>(parse_kv_type(name, "--kv-cache-dtype"));
      ADD_FAILURE() << name;
    } catch (const ConfigError& e) {
      EXPECT_THAT(e.what(), HasSubstr("--kv-cache-dtype " + std::string(name) + ":"));
      EXPECT_THAT(e.what(), HasSubstr("auto, f32, bf16, int8, fp8_e4m3"));
    }
  }
}

TEST(KvType, IsRefusedWhereNothingIsKeptSo) {
  ModelConfig config = load_config(test::data_dir("qwen3_next"));
  EXPECT_NO_THROW(check_kv_type(WireType::fp8, config)) << "some layers have attention";
  for (LayerAttention& layer : config.layer_attention) layer.mixer = kGatedDeltaNet;
  EXPECT_NO_THROW(check_kv_type({}, config));
  try {
    check_kv_type(WireType::fp8, config);
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("--kv-cache-dtype fp8_e4m3"));
  }
}

/// What a model has lost: the mean and greatest divergence of its distributions, in nats.
struct Loss {
  double mean = 0;
  double most = 0;
};

Loss divergence(const std::vector<std::vector<float>>& of,
                const std::vector<std::vector<float>>& from,
                std::size_t vocab) {
  Loss loss;
  std::size_t rows = 0;
  for (std::size_t s = 0; s < of.size(); ++s) {
    for (std::size_t at = 0; at < of[s].size(); at += vocab, ++rows) {
      const auto log_sum = [&](const std::vector<float>& logits) {
        double sum = 0;
        for (std::size_t i = 0; i < vocab; ++i)
          sum += std::exp(static_cast<double>(logits[at + i]));
        return std::log(sum);
      };
      const double p_sum = log_sum(from[s]);
      const double q_sum = log_sum(of[s]);
      double row = 0;
      for (std::size_t i = 0; i < vocab; ++i) {
        const double p = static_cast<double>(from[s][at + i]) - p_sum;
        const double q = static_cast<double>(of[s][at + i]) - q_sum;
        row += std::exp(p) * (p - q);
      }
      loss.mean += row;
      loss.most = std::max(loss.most, row);
    }
  }
  loss.mean /= static_cast<double>(rows);
  return loss;
}

/// Every kind of attention: plain, of a latent, with windows and sinks, in blocks, beside recurrent
/// layers.
constexpr const char* kModels[] = {"qwen3_untied",
                                   "deepseek_v3",
                                   "deepseek_v2_lite",
                                   "gpt_oss",
                                   "llama4_text",
                                   "mixtral",
                                   "qwen3_next",
                                   "minimax_m2"};

class KvTypeOfModel : public testing::TestWithParam<const char*> {
 protected:
  /// Long enough that several pages and a window are full.
  static std::vector<std::vector<std::int32_t>> sequences() {
    std::vector<std::vector<std::int32_t>> all;
    for (const test::GoldenPrompt& prompt : test::golden_prompts(GetParam())) {
      std::vector<std::int32_t> ids;
      while (ids.size() < 60) ids.insert(ids.end(), prompt.prompt.begin(), prompt.prompt.end());
      ids.resize(60);
      all.push_back(ids);
      if (all.size() == 3) break;
    }
    return all;
  }
};

TEST_P(KvTypeOfModel, LosesLittleAndMoreWithFewerBits) {
  const auto texts = sequences();
  const auto vocab = static_cast<std::size_t>(load_config(test::data_dir(GetParam())).vocab);
  const auto wide = test::run_model(GetParam(), texts, {});
  EXPECT_EQ(test::run_model(GetParam(), texts, {.kv_type = WireType::f32}), wide);
  const auto loss_of = [&](WireType type) {
    const auto narrow = test::run_model(GetParam(), texts, {.kv_type = type});
    EXPECT_NE(narrow, wide) << "it must not be passed over";
    const Loss loss = divergence(narrow, wide, vocab);
    RecordProperty(std::string(kv_type_name(type)), fmt::format("{:.2g}", loss.mean));
    return loss;
  };
  const Loss bf16 = loss_of(WireType::bf16);
  const Loss int8 = loss_of(WireType::int8_block);
  const Loss fp8 = loss_of(WireType::fp8);
  // Twice what the worst of these models loses; docs/numerics.md has all of them. The most that a
  // position loses is a token that goes to another expert.
  EXPECT_LT(bf16.mean, 3e-4);
  EXPECT_LT(int8.mean, 7e-4);
  EXPECT_LT(fp8.mean, 2e-2);
  EXPECT_LT(bf16.most, 0.03);
  EXPECT_LT(int8.most, 0.1);
  EXPECT_LT(fp8.most, 0.8);
  EXPECT_LT(int8.mean, fp8.mean);
  EXPECT_LT(bf16.mean, fp8.mean);
}

TEST_P(KvTypeOfModel, GivesTheSameBitsHoweverItRuns) {
  const auto texts = sequences();
  for (const WireType type : {WireType::int8_block, WireType::fp8}) {
    if (slow_run() && type == WireType::fp8) continue;
    const auto wanted = test::run_model(GetParam(), texts, {.kv_type = type});
    for (const test::ModelRun& run :
         {test::ModelRun{.ranks = 3, .threads = 2, .kv_type = type},
          test::ModelRun{.ranks = 2, .tp = 2, .kv_type = type},
          test::ModelRun{.chunk = 7, .kv_type = type},
          test::ModelRun{.chunk = 1, .together = false, .kv_type = type}})
      EXPECT_EQ(test::run_model(GetParam(), texts, run), wanted)
          << kv_type_name(type) << ", " << run.ranks << " ranks, chunks of " << run.chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, KvTypeOfModel, testing::ValuesIn(kModels), [](const auto& model) {
  return std::string(model.param);
});

}  // namespace
}  // namespace ferry
