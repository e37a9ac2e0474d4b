#include "ferry/checkpoint/tensor_source.h"

#include <gmock/gmock.h>

#include <array>

#include "ferry/core/error.h"
#include "small_source.h"

namespace ferry {
namespace {

using test::small_tensor;
using test::SmallTensor;
using testing::HasSubstr;

namespace fs = std::filesystem;

class Source : public testing::Test {
 protected:
  std::string error() const {
    return test::message_of<ModelError>([&] { open_source(dir_.path()); });
  }

  void write(const char* name, std::string_view text) const {
    test::write_file(dir_.path() / name, text);
  }

  test::SmallDirectory dir_;
};

TEST_F(Source, ListsTensorsAndFilesOfADirectory) {
  const auto source = dir_.open({small_tensor("b", "BF16", {3}), small_tensor("a", "I32", {2, 1})});
  EXPECT_EQ(source->path(), dir_.path().string());
  ASSERT_EQ(source->files().size(), 1U);
  EXPECT_EQ(source->files()[0].bytes, fs::file_size(dir_.path() / "model.safetensors"));
  ASSERT_EQ(source->tensors().size(), 2U);
  EXPECT_EQ(source->tensors()[0].name, "b");
  EXPECT_EQ(source->tensors()[0].dtype, DType::bf16);
  const SourceTensor* a = source->find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->type, "I32");
  EXPECT_FALSE(a->dtype);
  EXPECT_EQ(a->data.size(), 8U);
  EXPECT_EQ(std::to_integer<int>(a->data[1]), 37 + 8);
  EXPECT_EQ(source->find("c"), nullptr);
}

TEST_F(Source, HasTheTextsOfADirectory) {
  write("generation_config.json", "{\"eos_token_id\": 3}");
  const auto source = dir_.open({});
  EXPECT_EQ(source->text("config.json")->text, "{}");
  EXPECT_EQ(source->text("generation_config.json")->text, "{\"eos_token_id\": 3}");
  EXPECT_EQ(source->text("generation_config.json")->file,
            (dir_.path() / "generation_config.json").string());
  EXPECT_FALSE(source->text("chat_template.jinja"));
}

TEST_F(Source, SaysWhatIsWrongWithATensor) {
  const auto source = dir_.open({small_tensor("x", "F32", {2, 3}), small_tensor("y", "U8", {4})});
  const auto error_of = [&](const auto& ask) { return test::message_of<ModelError>(ask); };
  EXPECT_EQ(source->elements("x", std::array{2L, 3L}).bytes, 24U);
  EXPECT_THAT(error_of([&] {
                source->elements("z", std::array{2L, 3L});
              }),
              HasSubstr("model.safetensors: tensor z: expected [2, 3], found no such tensor"));
  EXPECT_THAT(error_of([&] {
                source->elements("x", std::array{3L, 2L});
              }),
              HasSubstr("tensor x: expected [3, 2] as config.json says, found [2, 3]"));
  EXPECT_THAT(error_of([&] { source->elements("x", std::array{6L}); }), HasSubstr("expected [6]"));
  EXPECT_THAT(error_of([&] { source->elements("y", std::array{4L}); }),
              HasSubstr("tensor y: expected F32, BF16 or F16, found U8"));
  EXPECT_EQ(source->coded("y", std::array{4L}, "U8").bytes, 4U);
  EXPECT_THAT(error_of([&] { source->coded("y", std::array{4L}, "I8"); }),
              HasSubstr("tensor y: expected elements of I8, found U8"));
  EXPECT_THAT(error_of([&] { source->coded("y", std::array{5L}, "U8"); }),
              HasSubstr("expected [5]"));
}

TEST_F(Source, RefusesWhatIsNoCheckpoint) {
  EXPECT_THAT(error(), HasSubstr("config.json: expected a file, found none"));
  write("config.json", "{}");
  EXPECT_THAT(error(), HasSubstr("expected model.safetensors or model.safetensors.index.json"));
  fs::create_directory(dir_.path() / "model.safetensors");
  EXPECT_THAT(error(), HasSubstr("model.safetensors: expected a file"));
  EXPECT_THAT(test::message_of<ModelError>([&] { open_source(dir_.path() / "none"); }),
              HasSubstr("none: expected a checkpoint directory or a file .gguf, found nothing"));
  EXPECT_THAT(
      test::message_of<ModelError>([&] { open_source(dir_.path() / "config.json"); }),
      HasSubstr(
          "config.json: expected a checkpoint directory or a file .gguf, found another file"));
}

/// Both shards hold an x; that of the first is stale.
TEST_F(Source, BelievesTheIndexAboutTensorsThatSeveralShardsHold) {
  write("config.json", "{}");
  write("1.safetensors", test::safetensors_bytes({small_tensor("x", "F32", {1})}));
  write("2.safetensors",
        test::safetensors_bytes({small_tensor("x", "F32", {2}), small_tensor("y", "F32", {3})}));
  write("model.safetensors.index.json",
        R"({"weight_map": {"x": "2.safetensors", "y": "2.safetensors"}})");
  EXPECT_EQ(open_source(dir_.path())->find("x")->shape, std::vector<std::int64_t>{2});
  write("model.safetensors.index.json",
        R"({"weight_map": {"x": "1.safetensors", "y": "2.safetensors"}})");
  const auto source = open_source(dir_.path());
  EXPECT_EQ(source->find("x")->shape, std::vector<std::int64_t>{1});
  EXPECT_EQ(source->tensors().size(), 3U);
  // Of several files, none is named in place of the directory.
  EXPECT_THAT(test::message_of<ModelError>([&] { source->elements("z", std::array{1L}); }),
              HasSubstr(dir_.path().string() + ": tensor z"));
  write("model.safetensors.index.json",
        R"({"weight_map": {"x": "1.safetensors", "y": "1.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("index.json: expected tensor y in"));
}

TEST_F(Source, TruncationOfAnyFileIsNoticed) {
  const std::string whole = test::safetensors_bytes({small_tensor("x", "F32", {5})});
  write("config.json", "{}");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    write("model.safetensors", whole.substr(0, n));
    EXPECT_THAT(error(), HasSubstr("model.safetensors"));
  }
}

TEST_F(Source, FingerprintsTellSourcesApart) {
  std::vector<SmallTensor> tensors = {small_tensor("x", "F32", {5}), small_tensor("y", "U8", {4})};
  const std::uint64_t one = fingerprint(*dir_.open(tensors));
  EXPECT_EQ(fingerprint(*dir_.open(tensors)), one);
  tensors[1].data[3] ^= 1;
  EXPECT_NE(fingerprint(*dir_.open(tensors)), one);
  tensors[1].data[3] ^= 1;
  tensors[0].name = "z";
  EXPECT_NE(fingerprint(*dir_.open(tensors)), one);
  EXPECT_NE(fingerprint(*dir_.open({tensors[1]})), one);
}

}  // namespace
}  // namespace ferry
