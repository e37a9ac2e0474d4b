// Every form of quantised matrices, and two more that only this test knows, through the same table:
// what they read, and what is said about files that do not fit.
#include "ferry/checkpoint/stored_format.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/held_rows.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
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

/// Four bits with zero points, in groups of a size that the config says; modules that the config
/// lists are plain.
class Grouped final : public StoredFormat {
 public:
  Grouped(std::int64_t group, std::vector<std::string> plain)
      : group_(group), plain_(std::move(plain)) {}

  std::string_view name() const override { return "grouped"; }

  QuantSpec spec() const override {
    return {.code = Code::uint4, .group_k = group_, .zero = ZeroPoint::stored};
  }

  bool stores(const TensorSource& /*source*/, const MatrixPlace& place) const override {
    return std::ranges::none_of(
        plain_, [&](const std::string& m) { return place.name.starts_with(m + "."); });
  }

  std::vector<StoredPart> parts(const TensorSource& /*source*/,
                                const MatrixPlace& place) const override {
    const std::int64_t groups = spec().groups(place.columns);
    return {{place.name + "_packed", {place.rows, spec().row_bytes(place.columns)}, "U8"},
            {place.name + "_scale", {place.rows, groups}},
            {place.name + "_zero", {place.rows, groups}, "U8"}};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    return {.quant = spec(),
            .rows = place.rows,
            .columns = place.columns,
            .data = parts[0].span(),
            .scales = parts[1],
            .zeros = parts[2].span()};
  }

 private:
  std::int64_t group_;
  std::vector<std::string> plain_;
};

/// Blocks of a bf16 scale and 32 signed bytes, and columns in an order that a tensor says.
class Blocks final : public StoredFormat {
 public:
  static constexpr std::int64_t kColumns = 32;
  static constexpr std::int64_t kBytes = kColumns + 2;

  std::string_view name() const override { return "blocks"; }

  QuantSpec spec() const override { return {.code = Code::own}; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    return source.find(place.name + "_blocks") != nullptr;
  }

  std::vector<StoredPart> parts(const TensorSource& /*source*/,
                                const MatrixPlace& place) const override {
    return {{place.name + "_blocks", {place.rows, place.columns / kColumns, kBytes}, "U8"},
            {place.name + "_order", {place.columns}, "I32"}};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    std::vector<std::int32_t> order(static_cast<std::size_t>(place.columns));
    std::memcpy(order.data(), parts[1].data, parts[1].bytes);
    for (const std::int32_t to : order) {
      if (to < 0 || to >= place.columns)
        fail<ModelError>(
            "tensor {}_order: expected columns of {}, found {}", place.name, place.columns, to);
    }
    return {.quant = spec(),
            .rows = place.rows,
            .columns = place.columns,
            .data = parts[0].span(),
            .scales = {},
            .reader = [order = std::move(order)](const StoredMatrix& m,
                                                 std::int64_t first,
                                                 std::int64_t count,
                                                 float* out) { read(order, m, first, count, out); },
            .reader_bytes = parts[1].bytes};
  }

  std::int64_t column_unit() const override { return kColumns; }

 private:
  static void read(const std::vector<std::int32_t>& order,
                   const StoredMatrix& matrix,
                   std::int64_t first,
                   std::int64_t count,
                   float* out) {
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < matrix.columns; ++j) {
        const std::byte* block = matrix.row(first + i) + j / kColumns * kBytes;
        const auto bits = static_cast<std::uint32_t>(std::to_integer<unsigned>(block[0]) |
                                                     std::to_integer<unsigned>(block[1]) << 8)
                          << 16;
        out[i * matrix.columns + order[static_cast<std::size_t>(j)]] =
            std::bit_cast<float>(bits) * static_cast<std::int8_t>(block[2 + j % kColumns]);
      }
    }
  }
};

std::unique_ptr<StoredFormat> make_grouped(const ConfigReader& in) {
  std::vector<std::string> plain;
  if (in.has("modules_to_not_convert"))
    plain = in.value("modules_to_not_convert").get<std::vector<std::string>>();
  return std::make_unique<Grouped>(in.size("group_size", 1 << 10), plain);
}

std::unique_ptr<StoredFormat> make_blocks(const ConfigReader& /*in*/) {
  return std::make_unique<Blocks>();
}

/// The table with two lines more.
std::vector<FormatEntry> more_formats() {
  std::vector<FormatEntry> table(stored_formats().begin(), stored_formats().end());
  table.push_back({.method = "grouped", .make = make_grouped});
  table.push_back({.method = "blocks", .make = make_blocks});
  return table;
}

struct Case {
  const char* name;
  json config;
  std::int64_t rows;
  std::int64_t columns;
  std::optional<StackPlace> stack = {};
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  const StackPlace alternating{.experts = 3, .expert = 2, .all_rows = 14, .first = 1, .step = 2};
  const StackPlace whole{.experts = 3, .expert = 1, .all_rows = 7};
  return {
      {"fp8", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}, 150, 200},
      {"int8", {{"quant_method", "ferry_int8"}}, 9, 70},
      {"int4", {{"quant_method", "ferry_int4"}}, 9, 71},
      {"mxfp4_alternating", {{"quant_method", "mxfp4"}}, 7, 96, alternating},
      {"mxfp4_whole", {{"quant_method", "mxfp4"}}, 7, 32, whole},
      {"mxfp4_rows", mxfp4_rows(), 7, 100},
      {"packed_int4", packed(4, "group", true), 9, 100},
      {"packed_int4_zeros", packed(4, "group", false), 11, 100},
      {"packed_int4_rows", packed(4, "channel", true), 5, 71},
      {"packed_int8_zeros", packed(8, "channel", false), 6, 70},
      {"fp8_rows", bytes("float", "channel"), 9, 70},
      {"fp8_tensor", bytes("float", "tensor"), 9, 70},
      {"fp8_blocks", bytes("float", "block"), 150, 200},
      {"int8_rows", bytes("int", "channel"), 9, 70},
      {"gptq", gptq({{"group_size", 32}}), 16, 96},
      {"gptq_order", gptq({{"group_size", 32}, {"desc_act", true}}), 9, 90},
      {"gptq_int8_rows", gptq({{"group_size", -1}, {"bits", 8}}), 9, 30},
      {"awq", {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 32}}, 24, 70},
      {"grouped32", {{"quant_method", "grouped"}, {"group_size", 32}}, 5, 100},
      {"grouped128", {{"quant_method", "grouped"}, {"group_size", 128}}, 5, 100},
      {"blocks", {{"quant_method", "blocks"}}, 6, 64},
  };
}

class Form : public testing::TestWithParam<Case> {
 protected:
  static constexpr const char* kName = "layer.3.weight";

  Form() : format_(read_stored_format(ConfigReader(GetParam().config, "config.json"), table_)) {}

  MatrixPlace place() const {
    return {kName, GetParam().rows, GetParam().columns, GetParam().stack};
  }

  /// Of the shapes that the form asks for; indices reverse the columns.
  std::vector<SmallTensor> good_parts() const {
    const auto nothing = dir_.open({});
    std::vector<SmallTensor> tensors;
    for (const StoredPart& part : format_->parts(*nothing, place())) {
      std::string type(part.type.empty() ? "F32" : part.type);
      tensors.push_back(test::small_tensor(part.name, type, part.shape));
      std::string& data = tensors.back().data;
      if (part.name.ends_with("g_idx")) {
        std::ranges::fill(data, '\0');
      } else if (type == "I32") {
        for (std::int32_t i = 0; i < part.shape[0]; ++i) {
          const auto to = static_cast<std::int32_t>(part.shape[0]) - 1 - i;
          std::memcpy(data.data() + std::size_t{4} * static_cast<std::size_t>(i), &to, 4);
        }
      }
    }
    return tensors;
  }

  StoredMatrix find(const TensorSource& source) const {
    return find_matrix(source, format_.get(), place());
  }

  std::string error(const std::vector<SmallTensor>& tensors) const {
    std::string message = test::message_of<ModelError>([&] { find(*dir_.open(tensors)); });
    EXPECT_THAT(message, HasSubstr("tensor layer.3."));
    return message;
  }

  std::vector<FormatEntry> table_ = more_formats();
  std::unique_ptr<StoredFormat> format_;
  test::SmallDirectory dir_;
  FlushDenormals flush_;
};

TEST_P(Form, IsFoundInASource) {
  const std::vector<SmallTensor> tensors = good_parts();
  const auto source = dir_.open(tensors);
  const StoredMatrix matrix = find(*source);
  EXPECT_FALSE(matrix.is_plain());
  EXPECT_EQ(matrix.quant, format_->spec());
  std::size_t bytes = 0;
  for (const SmallTensor& tensor : tensors) bytes += tensor.data.size();
  if (const auto& stack = GetParam().stack) {
    bytes = bytes / static_cast<std::size_t>(stack->experts * stack->all_rows) *
            static_cast<std::size_t>(matrix.rows);
  }
  EXPECT_EQ(matrix.bytes(), bytes);
}

TEST_P(Form, PlainMatricesBesideItArePlain) {
  const Case& c = GetParam();
  std::vector<std::int64_t> shape = {c.rows, c.columns};
  if (c.stack) shape = {c.stack->experts, c.columns, c.stack->all_rows};
  const std::string name = "head.weight";
  if (c.config["quant_method"] == "grouped") {  // whose config says which are plain
    json config = c.config;
    config["modules_to_not_convert"] = {"norm", "head"};
    format_ = read_stored_format(ConfigReader(config, "config.json"), table_);
  }
  const auto source = dir_.open({test::small_tensor(name, "BF16", shape)});
  const StoredMatrix matrix =
      find_matrix(*source, format_.get(), {name, c.rows, c.columns, c.stack});
  EXPECT_TRUE(matrix.is_plain());
  EXPECT_EQ(matrix.dtype, DType::bf16);
}

/// Parts in memory that ends with them, so that sanitizers see what is read beside them.
TEST_P(Form, ReadsAnyRowsAndNothingOutsideItsParts) {
  const Case& c = GetParam();
  const std::vector<SmallTensor> tensors = good_parts();
  std::vector<std::vector<std::byte>> memory;
  std::vector<TensorView> views;
  for (const SmallTensor& tensor : tensors) {
    const auto bytes = std::as_bytes(std::span(tensor.data));
    const auto& own = memory.emplace_back(bytes.begin(), bytes.end());
    views.push_back({.shape = tensor.shape, .data = own.data(), .bytes = own.size()});
  }
  const StoredMatrix matrix = format_->assemble(place(), views);
  std::vector<float> all(static_cast<std::size_t>(c.rows * c.columns));
  matrix.read_rows(0, c.rows, DType::f32, reinterpret_cast<std::byte*>(all.data()));
  const auto source = dir_.open(tensors);
  const StoredMatrix in_file = find(*source);
  std::vector<float> row(static_cast<std::size_t>(c.columns));
  std::vector<std::uint16_t> half(row.size());
  std::vector<std::uint16_t> all_half(all.size());
  matrix.read_rows(0, c.rows, DType::bf16, reinterpret_cast<std::byte*>(all_half.data()));
  for (std::int64_t i = 0; i < c.rows; ++i) {
    in_file.read_rows(i, 1, DType::f32, reinterpret_cast<std::byte*>(row.data()));
    matrix.read_rows(i, 1, DType::bf16, reinterpret_cast<std::byte*>(half.data()));
    EXPECT_EQ(std::memcmp(row.data(), all.data() + i * c.columns, row.size() * 4), 0) << i;
    EXPECT_EQ(std::memcmp(half.data(), all_half.data() + i * c.columns, half.size() * 2), 0) << i;
  }
}

/// Also when what they were copied from is gone, and in no more memory than elements take.
TEST_P(Form, HeldRowsAreTheSame) {
  const Case& c = GetParam();
  ThreadPool pool(2);
  for (const DType type : {DType::f32, DType::bf16}) {
    auto source = dir_.open(good_parts());
    const auto row_bytes = static_cast<std::size_t>(c.columns) * dtype_bytes(type);
    std::vector<std::byte> expected(static_cast<std::size_t>(c.rows) * row_bytes);
    std::size_t stored = 0;
    HeldRows held;
    {
      const StoredMatrix matrix = find(*source);
      matrix.read_rows(0, c.rows, type, expected.data());
      held = HeldRows(matrix, type, pool);
      EXPECT_EQ(held.bytes(), HeldRows::bytes_of(matrix, type));
      stored = matrix.bytes();
    }
    source.reset();
    EXPECT_LE(held.bytes(), expected.size());
    if (!c.stack && format_->spec().code != Code::own) {
      EXPECT_EQ(held.bytes(), std::min(stored, expected.size()));
    }
    std::vector<float> scratch(static_cast<std::size_t>(c.columns));
    std::vector<std::byte> row(row_bytes);
    for (std::int64_t i = c.rows - 1; i >= 0; --i) {
      held.read(i, row.data(), scratch.data());
      EXPECT_EQ(std::memcmp(row.data(), expected.data() + i * std::ssize(row), row_bytes), 0) << i;
    }
  }
}

TEST_P(Form, SaysWhichPartIsMissingOrWrong) {
  const std::vector<SmallTensor> good = good_parts();
  for (std::size_t p = 0; p < good.size(); ++p) {
    std::vector<SmallTensor> bad = good;
    bad.erase(bad.begin() + static_cast<std::ptrdiff_t>(p));
    EXPECT_THAT(error(bad), HasSubstr("found no such tensor"));
    for (const std::int64_t change : {-1, 1}) {
      for (std::size_t d = 0; d < good[p].shape.size(); ++d) {
        std::vector<std::int64_t> shape = good[p].shape;
        shape[d] += change;
        bad = good;
        bad[p] = test::small_tensor(good[p].name, good[p].type, shape);
        EXPECT_THAT(error(bad), HasSubstr("as config.json says, found ["));
      }
    }
    bad = good;
    bad[p] = test::small_tensor(good[p].name, "BOOL", good[p].shape);
    error(bad);
    bad[p] = test::small_tensor(good[p].name, good[p].type, {});
    error(bad);
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, Form, testing::ValuesIn(cases()), [](const auto& param) {
  return std::string(param.param.name);
});

TEST(Grouped, ElementIsCodeMinusZeroPointTimesScale) {
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kColumns = 70;
  constexpr std::int64_t kGroup = 32;
  constexpr std::int64_t kGroups = 3;
  const test::SmallDirectory dir;
  std::vector<SmallTensor> tensors = {test::small_tensor("x_packed", "U8", {kRows, 35}),
                                      test::small_tensor("x_scale", "F32", {kRows, kGroups}),
                                      test::small_tensor("x_zero", "U8", {kRows, kGroups})};
  std::vector<float> scales(kRows * kGroups);
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = 0.25F + static_cast<float>(i) / 3;
  std::memcpy(tensors[1].data.data(), scales.data(), scales.size() * 4);
  for (std::size_t i = 0; i < scales.size(); ++i) tensors[2].data[i] = static_cast<char>(2 * i);
  const auto source = dir.open(tensors);
  const json config = {{"quant_method", "grouped"}, {"group_size", kGroup}};
  const auto format = read_stored_format(ConfigReader(config, "config.json"), more_formats());
  const StoredMatrix matrix =
      find_matrix(*source, format.get(), {.name = "x", .rows = kRows, .columns = kColumns});
  EXPECT_FALSE(format->held());
  std::vector<float> found(kRows * kColumns);
  matrix.read_rows(0, kRows, DType::f32, reinterpret_cast<std::byte*>(found.data()));
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kColumns; ++j) {
      const auto group = static_cast<std::size_t>(i * kGroups + j / kGroup);
      const auto byte =
          static_cast<unsigned char>(tensors[0].data[static_cast<std::size_t>(i * 35 + j / 2)]);
      const int code = j % 2 == 0 ? byte & 15 : byte >> 4;
      const int zero = 2 * static_cast<int>(group);
      EXPECT_EQ(found[static_cast<std::size_t>(i * kColumns + j)],
                static_cast<float>(code - zero) * scales[group])
          << i << " " << j;
    }
  }
}

TEST(Blocks, IndicesOutsideTheMatrixAreRefused) {
  const test::SmallDirectory dir;
  for (const std::int32_t index : {-1, 32}) {
    std::vector<SmallTensor> tensors = {test::small_tensor("x_blocks", "U8", {2, 1, 34}),
                                        test::small_tensor("x_order", "I32", {32})};
    tensors[1].data.assign(tensors[1].data.size(), '\0');
    std::memcpy(tensors[1].data.data() + 124, &index, 4);
    const auto source = dir.open(tensors);
    const Blocks format;
    EXPECT_THAT(test::message_of<ModelError>([&] {
                  find_matrix(*source, &format, {.name = "x", .rows = 2, .columns = 32});
                }),
                HasSubstr("x_order: expected columns of 32"));
  }
}

TEST(StoredFormats, ErrorsListTheTable) {
  const auto error = [](const json& config, std::span<const FormatEntry> table) {
    return test::message_of<ModelError>(
        [&] { read_stored_format(ConfigReader(config, "config.json"), table); });
  };
  EXPECT_THAT(error({{"quant_method", "bitsandbytes"}}, stored_formats()),
              HasSubstr("config.json: field quant_method: expected \"fp8\", \"mxfp4\", "
                        "\"compressed-tensors\", \"gptq\", \"awq\", \"gguf\", \"ferry_int8\", "
                        "\"ferry_int4\" or \"ferry_packed\" (no other"));
  EXPECT_THAT(error(json::object(), more_formats()), HasSubstr("\"grouped\" or \"blocks\" (no"));
  EXPECT_THAT(error({{"quant_method", "grouped"}}, more_formats()), HasSubstr("group_size"));
  EXPECT_THAT(error({{"quant_method", "fp8"}}, stored_formats()), HasSubstr("weight_block_size"));
  EXPECT_THAT(error({{"quant_method", "fp8"}, {"fmt", "e5m2"}}, stored_formats()),
              HasSubstr("fmt: expected \"e4m3\""));
}

TEST(StoredFormats, WhatIsWrittenForATypeIsHeldAsIt) {
  for (const WeightType type : weight_types()) {
    const WrittenFormat written = written_format(type);
    EXPECT_EQ(written.format != nullptr, is_quantized(type));
    if (!written.format) continue;
    EXPECT_EQ(written.format->held(), type);
    const json config = json::parse(written.config);
    EXPECT_EQ(read_stored_format(ConfigReader(config, "config.json"))->name(),
              written.format->name());
  }
}

TEST(QuantSpec, SaysSizesAsHeldWeightsHaveThem) {
  for (const WeightType type :
       {WeightType::int8, WeightType::fp8, WeightType::int4, WeightType::mxfp4}) {
    const QuantSpec spec = quant_spec(type);
    for (const std::int64_t n : {1, 63, 64, 65, 127, 128, 129, 500}) {
      EXPECT_EQ(spec.groups(n), weight_groups(type, n));
      EXPECT_EQ(spec.row_bytes(n), code_row_bytes(type, n));
      EXPECT_EQ(spec.scale_rows(n), ceil_div(n, rows_per_scale(type)));
    }
  }
  EXPECT_FALSE(weight_type_of({}));
  EXPECT_FALSE(weight_type_of({.code = Code::uint4, .group_k = 128, .zero = ZeroPoint::middle}));
}

}  // namespace
}  // namespace ferry
