// A GGUF header that lies is one clear line.
#include "ferry/checkpoint/gguf/gguf_file.h"

#include <gmock/gmock.h>

#include <array>
#include <bit>
#include <cmath>
#include <functional>

#include "ferry/core/error.h"
#include "gguf_bytes.h"
#include "support/files.h"

namespace ferry {
namespace {

using test::GgufBytes;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class GgufHeader : public testing::Test {
 protected:
  GgufFile open(const std::string& bytes) const {
    const auto path = dir_.path() / "x.gguf";
    test::write_file(path, bytes);
    return GgufFile(path);
  }

  std::string error(const std::string& bytes) const {
    return test::message_of<ModelError>([&] { open(bytes); });
  }

  std::string error(const std::function<void(GgufBytes&)>& change) const {
    GgufBytes file = test::small_gguf();
    change(file);
    return error(file.bytes());
  }

 private:
  test::TempDir dir_;
};

TEST_F(GgufHeader, HasMetadataAndTensorsRowsFirst) {
  GgufBytes bytes = test::small_gguf();
  bytes.flag("a.flag", true)
      .texts("a.texts", {"x", ""})
      .integers("a.integers", {-1, 7})
      .numbers("a.numbers", {0.5F})
      .number("a.number", 0.707F)
      .value("a.byte", 0, GgufBytes::raw(std::uint8_t{200}))
      .value("a.wide", 10, GgufBytes::raw(std::uint64_t{1} << 40))
      .value("a.double", 12, GgufBytes::raw(0.25));
  const GgufFile file = open(bytes.bytes());
  EXPECT_EQ(std::get<bool>(*file.find("a.flag")), true);
  EXPECT_THAT(std::get<std::vector<std::string_view>>(*file.find("a.texts")), ElementsAre("x", ""));
  EXPECT_THAT(std::get<std::vector<std::int64_t>>(*file.find("a.integers")), ElementsAre(-1, 7));
  EXPECT_THAT(std::get<std::vector<double>>(*file.find("a.numbers")), ElementsAre(0.5));
  EXPECT_EQ(std::get<double>(*file.find("a.number")), 0.707) << "as it was meant";
  EXPECT_EQ(std::get<std::int64_t>(*file.find("a.byte")), 200);
  EXPECT_EQ(std::get<std::int64_t>(*file.find("a.wide")), std::int64_t{1} << 40);
  EXPECT_EQ(std::get<double>(*file.find("a.double")), 0.25);
  EXPECT_EQ(file.find("a.nothing"), nullptr);
  const GgufFile::Tensor& experts = file.tensors()[12];
  EXPECT_EQ(experts.name, "blk.0.ffn_gate_exps.weight");
  EXPECT_EQ(experts.type->name, "Q8_0");
  EXPECT_THAT(experts.shape, ElementsAre(3, 32, 32));
  EXPECT_EQ(experts.data.size(), std::size_t{3 * 32 * 34});
}

TEST_F(GgufHeader, TruncatedAnywhereIsRefused) {
  const std::string whole = test::small_gguf().bytes();
  EXPECT_THAT(error(""), HasSubstr("GGUF"));
  EXPECT_THAT(error("GGU"), HasSubstr("expected a GGUF file"));
  for (std::size_t size = 4; size < whole.size(); size += size < 1500 ? 7 : 997)
    EXPECT_THAT(error(whole.substr(0, size)), HasSubstr("truncated file?")) << size;
}

TEST_F(GgufHeader, OtherFilesAndVersionsAreRefused) {
  EXPECT_THAT(error([](GgufBytes& f) { f.magic = "GGML"; }), HasSubstr("expected a GGUF file"));
  for (const std::uint32_t version : {0U, 1U, 4U, 0x03000000U}) {
    EXPECT_THAT(error([&](GgufBytes& f) { f.version = version; }),
                HasSubstr("expected version 2 or 3, of little endian"));
  }
}

TEST_F(GgufHeader, AbsurdCountsAndLengthsAreRefused) {
  EXPECT_THAT(error([](GgufBytes& f) { f.num_values = ~std::uint64_t{0}; }),
              HasSubstr("truncated file?"));
  const std::string huge = GgufBytes::raw(~std::uint64_t{0});
  EXPECT_THAT(error([&](GgufBytes& f) { f.value("k", 8, huge + "x"); }),
              AllOf(HasSubstr(": k: expected 18446744073709551615 bytes"), HasSubstr("found")));
  for (const std::uint32_t type : {0U, 5U, 8U, 10U, 12U}) {
    EXPECT_THAT(error([&](GgufBytes& f) { f.value("k", 9, GgufBytes::raw(type) + huge); }),
                HasSubstr(": k: expected 18446744073709551615 values"));
  }
  std::string file = test::small_gguf().bytes();
  file.replace(8, 8, huge);
  EXPECT_THAT(error(file), HasSubstr("header: expected 18446744073709551615 values"));
}

TEST_F(GgufHeader, WrongValuesAreRefused) {
  const auto of_value = [&](std::uint32_t type, const std::string& bytes) {
    return error([&](GgufBytes& f) { f.value("k", type, bytes); });
  };
  EXPECT_THAT(of_value(13, "x"), HasSubstr(": k: expected a type from 0 to 12, found 13"));
  EXPECT_THAT(of_value(7, "\2"), HasSubstr(": k: expected a flag of 0 or 1, found 2"));
  EXPECT_THAT(of_value(10, GgufBytes::raw(~std::uint64_t{0})), HasSubstr("an integer below 2^63"));
  EXPECT_THAT(of_value(9, GgufBytes::raw(std::uint32_t{9}) + std::string(20, '\0')),
              HasSubstr("a list of plain values, found a list of lists"));
  EXPECT_THAT(error([](GgufBytes& f) { f.integer("k", 1).integer("k", 1); }),
              HasSubstr(": k: expected one value, found two"));
  EXPECT_THAT(error([](GgufBytes& f) { f.integer("a\nb", 1); }),
              HasSubstr("expected a name of printable letters"));
  EXPECT_THAT(error([](GgufBytes& f) { f.integer(std::string(300, 'x'), 1); }),
              HasSubstr("expected a name of printable letters, found one of 300 bytes"));
  for (const std::uint32_t alignment : {0U, 3U, 1U << 21}) {
    EXPECT_THAT(error([&](GgufBytes& f) { f.integer("general.alignment", alignment); }),
                HasSubstr("general.alignment: expected a power of two up to 2^20"));
  }
  EXPECT_THAT(error([](GgufBytes& f) { f.text("general.alignment", "32"); }),
              HasSubstr("general.alignment: expected an integer"));
}

TEST_F(GgufHeader, WrongTensorsAreRefused) {
  const auto of_first = [&](const std::function<void(GgufBytes::Tensor&)>& change) {
    return error([&](GgufBytes& f) { change(f.tensors.front()); });
  };
  using Tensor = GgufBytes::Tensor;
  const std::string name = "tensor token_embd.weight: ";
  EXPECT_THAT(of_first([](Tensor& t) { t.dimensions = {}; }),
              HasSubstr(name + "expected 1 to 4 dimensions, found 0"));
  EXPECT_THAT(of_first([](Tensor& t) { t.dimensions.assign(5, 1); }), HasSubstr("found 5"));
  EXPECT_THAT(of_first([](Tensor& t) {
                t.dimensions = {32, 0};
              }),
              HasSubstr(name + "expected dimensions from 1 to 2^48, found 0"));
  EXPECT_THAT(of_first([](Tensor& t) { t.dimensions = {std::uint64_t{1} << 60}; }),
              HasSubstr("dimensions from 1 to 2^48"));
  EXPECT_THAT(of_first([](Tensor& t) { t.dimensions.assign(4, std::uint64_t{1} << 40); }),
              HasSubstr("fewer than 2^64 bytes"));
  EXPECT_THAT(of_first([](Tensor& t) {
                t.dimensions = {32, 100000};
              }),
              AllOf(HasSubstr(name + "expected data within"), HasSubstr("at offset 0")));
  EXPECT_THAT(of_first([](Tensor& t) { t.offset = ~std::uint64_t{31}; }),
              HasSubstr(name + "expected data within"));
  EXPECT_THAT(of_first([](Tensor& t) { t.offset = 4; }),
              HasSubstr(name + "expected an offset that 32 divides"));
  EXPECT_THAT(
      of_first([](Tensor& t) { t.type = 999; }),
      AllOf(HasSubstr(name + "expected elements of F32, F16, BF16"), HasSubstr("found type 999")));
  EXPECT_THAT(of_first([](Tensor& t) { t.type = 16; }), HasSubstr("found IQ2_XXS"));
  EXPECT_THAT(of_first([](Tensor& t) {
                t.type = 8;
                t.dimensions = {33, 10};
              }),
              HasSubstr(name + "expected rows that 32 divides, of Q8_0, found 33 columns"));
  EXPECT_THAT(of_first([](Tensor& t) { t.name = "output.weight"; }),
              HasSubstr("tensor output.weight: expected one of this name, found two"));
  EXPECT_THAT(error([](GgufBytes& f) { f.tensors[1].offset = f.tensors[0].offset + 32; }),
              HasSubstr("tensor output_norm.weight: expected data of its own, found it overlaps "
                        "tensor token_embd.weight"));
}

TEST_F(GgufHeader, OtherAlignmentsArePossible) {
  GgufBytes bytes;
  bytes.alignment = 4096;
  bytes.integer("general.alignment", 4096).tensor("a", {3}, 0, 12).tensor("b", {1}, 0, 4);
  const GgufFile file = open(bytes.bytes());
  EXPECT_EQ(file.tensors()[1].data.data() - file.tensors()[0].data.data(), 4096);
}

/// The file has blocks of random codes of every type, and what the package gguf makes of them.
TEST(GgufBlocks, AreReadAsThePackageReadsThem) {
  const GgufFile file(test::data_dir("gguf") / "blocks.gguf");
  std::size_t checked = 0;
  for (const GgufFile::Tensor& tensor : file.tensors()) {
    if (tensor.name.ends_with(".f32")) continue;
    const auto expected =
        std::ranges::find(file.tensors(), tensor.name + ".f32", &GgufFile::Tensor::name);
    ASSERT_NE(expected, file.tensors().end()) << tensor.name;
    const std::int64_t columns = tensor.shape[1];
    std::vector<float> row(static_cast<std::size_t>(columns));
    for (std::int64_t i = 0; i < tensor.shape[0]; ++i) {
      tensor.type->read_row(
          tensor.data.data() + i * tensor.type->row_bytes(columns), columns, row.data());
      EXPECT_EQ(std::memcmp(row.data(),
                            expected->data.data() + i * columns * 4,
                            static_cast<std::size_t>(columns) * 4),
                0)
          << tensor.name << " row " << i;
    }
    ++checked;
  }
  std::size_t supported = 0;
  for (const GgufType& type : gguf_types()) supported += type.bytes > 0 ? 1 : 0;
  EXPECT_EQ(checked, supported);
}

/// All 256 scales; 2^-127 aside, which a thread may flush while it reads.
TEST(GgufTypes, Mxfp4IsReadAsWeightsHaveIt) {
  constexpr std::array<double, 8> kMagnitudes = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const GgufType& type = *find_gguf_type("MXFP4");
  ASSERT_EQ(type.held, WeightType::mxfp4);
  constexpr std::int64_t kColumns = 64;
  std::vector<std::byte> row(static_cast<std::size_t>(type.row_bytes(kColumns)));
  std::vector<std::byte> codes(kColumns / 2);
  std::vector<float> scales(2);
  std::vector<float> numbers(kColumns);
  for (int exponent = 1; exponent < 256; ++exponent) {
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::byte>(i * 37 + 11);
    row[0] = static_cast<std::byte>(exponent);
    row[17] = static_cast<std::byte>(256 - exponent);
    type.read_row(row.data(), kColumns, numbers.data());
    type.read_codes(row.data(), kColumns, codes.data(), scales.data());
    for (std::size_t i = 0; i < kColumns; ++i) {
      const auto code = std::to_integer<unsigned>(codes[i / 2] >> (i % 2 * 4) & std::byte{15});
      const double magnitude =
          std::ldexp(kMagnitudes.at(code % 8), power_exponent(scales[i / 32]) - 127);
      EXPECT_EQ(numbers[i], static_cast<float>(code < 8 ? magnitude : -magnitude)) << exponent;
    }
  }
}

/// As they are, for packing.
TEST(GgufTypes, EveryKindOfBlockIsHeld) {
  for (const GgufType& type : gguf_types()) {
    if (type.bytes == 0 || type.dtype) continue;
    ASSERT_TRUE(type.held) << type.name;
    if (type.held == WeightType::mxfp4) continue;
    EXPECT_EQ(ggml_block(*type.held).k, type.elements) << type.name;
    EXPECT_EQ(ggml_block(*type.held).bytes, type.bytes) << type.name;
    std::vector<std::byte> row(static_cast<std::size_t>(type.bytes));
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<std::byte>(i * 37);
    std::vector<std::byte> codes(row.size());
    type.read_codes(row.data(), type.elements, codes.data(), nullptr);
    EXPECT_EQ(codes, row) << type.name;
  }
}

}  // namespace
}  // namespace ferry
