#include "ferry/checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "ferry/core/error.h"
#include "support/files.h"

namespace ferry {
namespace {

using testing::HasSubstr;

/// A safetensors file from a header and data; the length field says what is true unless given.
std::string file_of(const std::string& header,
                    std::size_t data_bytes,
                    std::int64_t claimed_length = -1) {
  const auto length =
      claimed_length < 0 ? header.size() : static_cast<std::uint64_t>(claimed_length);
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xff);
  bytes += header;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

class Safetensors : public testing::Test {
 protected:
  SafetensorsFile open(const std::string& bytes) {
    test::write_file(path_, bytes);
    return SafetensorsFile(path_);
  }

  std::string error(const std::string& bytes) {
    std::string message = test::message_of<ModelError>([&] { open(bytes); });
    EXPECT_THAT(message, HasSubstr("t.safetensors"));
    return message;
  }

  test::TempDir dir_;
  std::filesystem::path path_ = dir_.path() / "t.safetensors";
};

constexpr const char* kTwo =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},)"
    R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})";

TEST_F(Safetensors, ListsTensorsInTheOrderOfTheirData) {
  const SafetensorsFile file = open(file_of(kTwo, 14));
  ASSERT_EQ(file.entries().size(), 2U);
  EXPECT_EQ(file.entries()[0].name, "a");
  EXPECT_EQ(file.entries()[1].name, "b");
  const TensorView view = file.view(*file.find("b"));
  EXPECT_EQ(view.dtype, DType::bf16);
  EXPECT_EQ(view.shape, std::vector<std::int64_t>{3});
  EXPECT_EQ(view.bytes, 6U);
  EXPECT_EQ(std::to_integer<int>(view.data[0]), 8);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST_F(Safetensors, EmptyAndScalarTensorsAreLegal) {
  const SafetensorsFile file =
      open(file_of(R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]},)"
                   R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                   4));
  EXPECT_EQ(file.view(*file.find("s")).bytes, 4U);
  EXPECT_EQ(file.view(*file.find("e")).bytes, 0U);
}

TEST_F(Safetensors, ListsButDoesNotLoadOtherTypes) {
  const SafetensorsFile file =
      open(file_of(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                   R"("b":{"dtype":"Q9_K","shape":[7],"data_offsets":[8,11]}})",
                   11));
  EXPECT_EQ(file.entries()[1].dtype_name, "Q9_K");
  EXPECT_THAT(test::message_of<ModelError>([&] { file.view(file.entries()[0]); }),
              HasSubstr("tensor a: expected F32, BF16 or F16, found I64"));
  EXPECT_THAT(test::message_of<ModelError>([&] { file.view(file.entries()[1]); }),
              HasSubstr("found Q9_K"));
}

TEST_F(Safetensors, RefusesFilesThatAreNoFiles) {
  EXPECT_THAT(test::message_of<ModelError>([&] { SafetensorsFile f(path_); }),
              HasSubstr("cannot be opened"));
  EXPECT_THAT(test::message_of<ModelError>([&] { SafetensorsFile f(dir_.path()); }),
              HasSubstr("expected a file"));
}

TEST_F(Safetensors, RefusesHeadersThatDoNotFit) {
  EXPECT_THAT(error(""), HasSubstr("found 0 bytes"));
  EXPECT_THAT(error("1234567"), HasSubstr("found 7 bytes"));
  EXPECT_THAT(error(file_of(kTwo, 14, 1000)), HasSubstr("found one of 1000"));
  EXPECT_THAT(error(file_of(kTwo, 14, std::numeric_limits<std::int64_t>::max())),
              HasSubstr("found one of 9223372036854775807"));
  EXPECT_THAT(error(std::string(8, '\xff') + kTwo), HasSubstr("18446744073709551615"));
}

TEST_F(Safetensors, RefusesHeadersThatAreNoObjects) {
  for (const char* header :
       {"", "{", "[]", "7", "null", "\"x\"", "{\"a\":\"\xff\"}", "{\"a\":1e999}"}) {
    error(file_of(header, 4));
  }
  EXPECT_THAT(error(file_of(std::string(100000, '['), 0)), HasSubstr("nests deeper"));
  std::string deep;
  for (int i = 0; i < 10000; ++i) deep += "{\"a\":";
  EXPECT_THAT(error(file_of(deep, 0)), HasSubstr("nests deeper"));
}

TEST_F(Safetensors, RefusesDamagedEntries) {
  const auto entry_error = [&](const std::string& fields) {
    return error(file_of("{\"x\":" + fields + "}", 8));
  };
  EXPECT_THAT(entry_error("3"), HasSubstr("tensor x: expected an object"));
  EXPECT_THAT(entry_error("{}"), HasSubstr("expected dtype, found nothing"));
  EXPECT_THAT(entry_error(R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("dtype to be a string"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","data_offsets":[0,8]})"), HasSubstr("expected shape"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":{},"data_offsets":[0,8]})"),
              HasSubstr("shape to be a list"));
  for (const char* d :
       {"-2", "2.0", "\"2\"", "null", "1e3", "99999999999999999999", "281474976710657"}) {
    EXPECT_THAT(
        entry_error(fmt::format(R"({{"dtype":"F32","shape":[{}],"data_offsets":[0,8]}})", d)),
        HasSubstr("expected dimensions"));
  }
  for (const char* offsets : {"[0]", "[0,4,8]", "8", "[-8,0]", "[0,8.0]", "[\"0\",8]"}) {
    EXPECT_THAT(
        entry_error(fmt::format(R"({{"dtype":"F32","shape":[2],"data_offsets":{}}})", offsets)),
        HasSubstr("data_offsets"));
  }
}

TEST_F(Safetensors, RefusesRangesThatLie) {
  const auto range_error = [&](const char* shape, const char* offsets) {
    return error(file_of(
        fmt::format(R"({{"x":{{"dtype":"F32","shape":{},"data_offsets":{}}}}})", shape, offsets),
        8));
  };
  EXPECT_THAT(range_error("[3]", "[0,12]"), HasSubstr("within the 8 bytes"));
  EXPECT_THAT(range_error("[2]", "[8,0]"), HasSubstr("found [8, 0)"));
  EXPECT_THAT(range_error("[2]", "[0,18446744073709551615]"), HasSubstr("within the 8 bytes"));
  EXPECT_THAT(range_error("[3]", "[0,8]"), HasSubstr("expected 12 bytes for F32 [3], found 8"));
  EXPECT_THAT(range_error("[281474976710656,281474976710656]", "[0,8]"), HasSubstr("2^61"));
  EXPECT_THAT(range_error("[4611686018427387904,2]", "[0,8]"), HasSubstr("dimensions"));
  EXPECT_THAT(range_error("[1]", "[0,4]"), HasSubstr("fill 8 bytes of data, found 4"));
  EXPECT_THAT(range_error("[1]", "[4,8]"), HasSubstr("a gap before it"));
}

TEST_F(Safetensors, RefusesOverlapsAndDoubleNames) {
  EXPECT_THAT(error(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                            R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                            12)),
              HasSubstr("overlaps"));
  EXPECT_THAT(error(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                            R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                            8)),
              HasSubstr("appears twice"));
}

TEST_F(Safetensors, TruncationAnywhereIsNoticed) {
  const std::string whole = file_of(kTwo, 14);
  for (std::size_t n = 0; n < whole.size(); ++n) error(whole.substr(0, n));
}

TEST_F(Safetensors, FlippedBytesLoadOrThrow) {
  const std::string whole = file_of(kTwo, 14);
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    const auto flips = 1 + random() % 3;
    for (unsigned k = 0; k < flips; ++k) {
      bytes[random() % (whole.size() - 14)] ^= static_cast<char>(1 + random() % 255);
    }
    try {
      const SafetensorsFile file = open(bytes);
      for (const auto& entry : file.entries()) {
        const TensorView view = file.view(entry);
        unsigned sum = 0;
        for (const std::byte b : view.span()) sum += std::to_integer<unsigned>(b);
        EXPECT_LE(sum, 14U * 14U);
      }
    } catch (const ModelError&) {  // the other allowed end
    }
  }
}

}  // namespace
}  // namespace ferry
