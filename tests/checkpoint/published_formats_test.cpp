// What compressed-tensors, GPTQ and AWQ checkpoints may say beyond what every form is tested for,
// and what of it is refused.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "quantization_configs.h"
#include "small_source.h"

namespace ferry {
namespace {

using nlohmann::json;
using test::bytes;
using test::gptq;
using test::mxfp4_rows;
using test::packed;
using test::SmallTensor;
using testing::HasSubstr;

TEST(CompressedTensors, HoldsWhatRowsAreRoundedForAlone) {
  const auto held = [](const json& config) {
    return read_stored_format(ConfigReader(config, "config.json"))->held();
  };
  EXPECT_FALSE(held(packed(4, "group", true)));  // promises rows of 16 bits
  json wide = packed(4, "group", true);
  wide["config_groups"]["group_0"]["weights"]["group_size"] = kInt4Group;
  EXPECT_FALSE(held(wide));
  EXPECT_EQ(held(bytes("int", "channel")), WeightType::int8);
  EXPECT_EQ(held(bytes("float", "block")), WeightType::fp8);
  EXPECT_FALSE(held(bytes("float", "channel")));
  EXPECT_EQ(held(mxfp4_rows()), WeightType::mxfp4);
}

TEST(CompressedTensors, RefusesWhatItDoesNotRead) {
  const auto error = [](const json& config) {
    return test::message_of<ModelError>(
        [&] { read_stored_format(ConfigReader(config, "config.json")); });
  };
  const auto with = [](const char* field, const json& value) {
    json config = packed(4, "group", true);
    config["config_groups"]["group_0"]["weights"][field] = value;
    return config;
  };
  EXPECT_THAT(error(with("num_bits", 3)), HasSubstr("num_bits"));
  EXPECT_THAT(error(with("type", "float")), HasSubstr("num_bits"));
  EXPECT_THAT(error(with("strategy", "token")), HasSubstr("strategy"));
  EXPECT_THAT(error(with("strategy", "tensor")), HasSubstr("num_bits"));
  EXPECT_THAT(error(with("actorder", "group")), HasSubstr("actorder"));
  EXPECT_THAT(error(with("group_size", 0)), HasSubstr("group_size"));
  json blocks = bytes("float", "block");
  blocks["config_groups"]["group_0"]["weights"]["block_structure"] = {64, 64};
  EXPECT_THAT(error(blocks), HasSubstr("block_structure"));
  json nvfp4 = packed(4, "group", true);
  nvfp4["format"] = "nvfp4-pack-quantized";
  EXPECT_THAT(error(nvfp4), HasSubstr("num_bits"));
  json wide = mxfp4_rows();
  wide["config_groups"]["group_0"]["weights"]["group_size"] = 16;
  EXPECT_THAT(error(wide), HasSubstr("num_bits"));
  json two = packed(4, "group", true);
  two["config_groups"]["group_1"] = packed(8, "group", true)["config_groups"]["group_0"];
  EXPECT_THAT(error(two), HasSubstr("group_1"));
  two["config_groups"] = json::object();
  EXPECT_THAT(error(two), HasSubstr("config_groups"));
  json sparse = packed(4, "group", true);
  sparse["sparsity_config"] = {{"format", "sparse-24-bitmask"}};
  EXPECT_THAT(error(sparse), HasSubstr("sparsity_config"));
}

/// Scales of either name of their type.
TEST(CompressedTensors, ReadsMxfp4OfEachMatrixByItself) {
  for (const char* type : {"U8", "F8_E8M0"}) {
    const test::SmallDirectory dir;
    std::vector<SmallTensor> tensors = {test::small_tensor("x.weight_packed", "U8", {2, 32}),
                                        test::small_tensor("x.weight_scale", type, {2, 2})};
    tensors[0].data.assign(64, '\xf1');
    tensors[1].data = "\x80\x80\x80\x7e";
    const auto source = dir.open(tensors);
    const auto format = read_stored_format(ConfigReader(mxfp4_rows(), "config.json"));
    const StoredMatrix matrix = find_matrix(*source, format.get(), {"x.weight", 2, 64});
    EXPECT_TRUE(matrix.holds(WeightType::mxfp4));
    std::vector<float> found(64);
    matrix.read_rows(1, 1, DType::f32, reinterpret_cast<std::byte*>(found.data()));
    for (std::size_t i = 0; i < 64; ++i)
      EXPECT_EQ(found[i], (i % 2 == 0 ? 0.5F : -6.0F) * (i < 32 ? 2.0F : 0.5F)) << type << i;
  }
}

TEST(CompressedTensors, AShapeThatIsAnotherIsRefused) {
  const test::SmallDirectory dir;
  std::vector<SmallTensor> tensors = {test::small_tensor("x.weight_packed", "I32", {3, 8}),
                                      test::small_tensor("x.weight_scale", "F32", {3, 2}),
                                      test::small_tensor("x.weight_shape", "I64", {2})};
  const std::array<std::int64_t, 2> shape = {3, 63};
  std::memcpy(tensors[2].data.data(), shape.data(), sizeof shape);
  const auto source = dir.open(tensors);
  const auto format = read_stored_format(ConfigReader(packed(4, "group", true), "config.json"));
  EXPECT_THAT(test::message_of<ModelError>([&] {
                find_matrix(*source, format.get(), {"x.weight", 3, 64});
              }),
              HasSubstr("expected 3 x 64, found 3 x 63"));
}

TEST(ColumnWords, RefusesWhatItDoesNotRead) {
  const auto error = [](const json& config) {
    return test::message_of<ModelError>(
        [&] { read_stored_format(ConfigReader(config, "config.json")); });
  };
  EXPECT_THAT(error(gptq({{"group_size", 32}, {"bits", 3}})), HasSubstr("bits"));
  EXPECT_THAT(error(gptq({{"group_size", 0}})), HasSubstr("group_size"));
  EXPECT_THAT(error(gptq(json::object())), HasSubstr("group_size"));
  EXPECT_THAT(error(gptq({{"group_size", 32}, {"checkpoint_format", "marlin"}})),
              HasSubstr("checkpoint_format"));
  EXPECT_THAT(error(gptq({{"group_size", 32}, {"dynamic", {{"+:x", {{"bits", 8}}}}}})),
              HasSubstr("dynamic"));
  const auto awq = [&](const char* field, const json& value) {
    json config = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 32}};
    config[field] = value;
    return error(config);
  };
  EXPECT_THAT(awq("bits", 8), HasSubstr("bits"));
  EXPECT_THAT(awq("version", "gemv"), HasSubstr("version"));
  EXPECT_THAT(awq("zero_point", false), HasSubstr("zero_point"));
  EXPECT_THAT(awq("group_size", -1), HasSubstr("group_size"));
}

TEST(ColumnWords, GroupsThatThereAreNotAreRefused) {
  const test::SmallDirectory dir;
  std::vector<SmallTensor> tensors = {test::small_tensor("x.qweight", "I32", {4, 8}),
                                      test::small_tensor("x.qzeros", "I32", {2, 1}),
                                      test::small_tensor("x.scales", "F16", {2, 8}),
                                      test::small_tensor("x.g_idx", "I32", {32})};
  for (const std::int32_t group : {-1, 2, 1 << 30}) {
    // An order that is stored counts, also where the config denies it.
    const auto format = read_stored_format(
        ConfigReader(gptq({{"group_size", 16}, {"desc_act", group == 2}}), "config.json"));
    std::ranges::fill(tensors[3].data, '\0');
    std::memcpy(tensors[3].data.data() + 20, &group, sizeof group);
    const auto source = dir.open(tensors);
    EXPECT_THAT(test::message_of<ModelError>([&] {
                  find_matrix(*source, format.get(), {"x.weight", 8, 32});
                }),
                HasSubstr("x.g_idx: expected groups below 2"));
  }
}

}  // namespace
}  // namespace ferry
