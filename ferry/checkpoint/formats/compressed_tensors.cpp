// compressed-tensors, the form of llm-compressor: integers of 4 or 8 bits packed into words
// ("pack-quantized", WNA16), e4m3 ("float-quantized") and bytes ("int-quantized"), with scales for
// a tensor, a row, a group of columns or a block; and mxfp4, a matrix by itself
// ("mxfp4-pack-quantized"). Which matrices are so is what the files say.
// Source: the package compressed-tensors on PyPI, config and compressors.
#include <fmt/format.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/formats/row_format.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// One for the whole tensor.
constexpr std::int64_t kAllRows = kMaxWidth;

constexpr std::string_view kMxfp4 = "mxfp4-pack-quantized";

struct Scheme {
  std::string form;  // "pack-quantized"
  int bits = 0;
  bool floats = false;
  bool symmetric = true;
  std::int64_t group_k = 0;  // as QuantSpec's
  std::int64_t group_n = 1;

  bool operator==(const Scheme&) const = default;
};

void read_strategy(const ConfigReader& weights, Scheme& to) {
  const std::string strategy = weights.text_or("strategy", "");
  if (strategy == "group") {
    to.group_k = weights.size("group_size", kMaxWidth);
  } else if (strategy == "tensor") {
    to.group_n = kAllRows;
  } else if (strategy == "block") {
    const nlohmann::json block = {kFp8Block, kFp8Block};
    if (!weights.has("block_structure") || weights.value("block_structure") != block)
      weights.refuse("block_structure", block.dump());
    to.group_k = to.group_n = kFp8Block;
  } else if (strategy != "channel") {
    weights.refuse("strategy", "\"tensor\", \"channel\", \"group\" or \"block\"");
  }
}

Scheme read_scheme(const ConfigReader& group, const std::string& form) {
  if (!group.has("weights")) group.refuse("weights", "an object");
  const ConfigReader weights = group.object("weights");
  Scheme scheme{.form = group.text_or("format", form), .bits = weights.size("num_bits", 32)};
  scheme.floats = weights.text_or("type", "int") == "float";
  scheme.symmetric = weights.flag_or("symmetric", true);
  read_strategy(weights, scheme);
  if (weights.text_or("actorder", "") == "group")
    weights.refuse("actorder", "another than \"group\" (g_idx is not supported)");
  const bool packed = scheme.form == "pack-quantized" && !scheme.floats &&
                      (scheme.bits == 4 || scheme.bits == 8) && scheme.group_n == 1;
  const bool row_groups = scheme.group_k == 0 || scheme.group_n == kFp8Block;
  const bool bytes = scheme.bits == 8 && scheme.symmetric && row_groups &&
                     scheme.form == (scheme.floats ? "float-quantized" : "int-quantized");
  const bool mxfp4 = scheme.form == kMxfp4 && scheme.floats && scheme.bits == 4 &&
                     scheme.symmetric && scheme.group_k == kMxfp4Group && scheme.group_n == 1;
  if (!packed && !bytes && !mxfp4) {
    weights.refuse("num_bits",
                   "4 or 8 of \"pack-quantized\" for rows or groups, symmetric 8 of "
                   "\"float-quantized\" or \"int-quantized\" for tensors, rows or blocks, or "
                   "floats of 4 of \"mxfp4-pack-quantized\" for groups of 32");
  }
  return scheme;
}

/// x.weight_packed [rows, words] with the earlier code in the lower bits of a word, each plus half
/// their range; x.weight_scale [rows, groups]; where not symmetric, x.weight_zero_point [rows /
/// codes a word, groups], in which the rows are packed likewise.
class PackedFormat final : public StoredFormat {
 public:
  explicit PackedFormat(Scheme scheme) : scheme_(std::move(scheme)) {}

  std::string_view name() const override { return "compressed-tensors"; }

  QuantSpec spec() const override {
    if (scheme_.bits != 4 || !scheme_.symmetric) return {.code = Code::own};
    return {.code = Code::uint4, .group_k = scheme_.group_k, .zero = ZeroPoint::middle};
  }

  /// The form promises rows that are not rounded, which our int4 does.
  std::optional<WeightType> held() const override { return std::nullopt; }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    return !place.stack && source.find(place.name + "_packed") != nullptr;
  }

  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override {
    const std::int64_t words = ceil_div(place.columns, codes_a_word());
    std::vector<StoredPart> parts = {{place.name + "_packed", {place.rows, words}, "I32"},
                                     {place.name + "_scale", {place.rows, groups(place.columns)}}};
    if (!scheme_.symmetric) {
      parts.push_back({place.name + "_zero_point",
                       {ceil_div(place.rows, codes_a_word()), groups(place.columns)},
                       "I32"});
    }
    if (source.find(place.name + "_shape") != nullptr)
      parts.push_back({place.name + "_shape", {2}, "I64"});
    return parts;
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    check_shape(place, parts);
    StoredMatrix matrix{.quant = spec(),
                        .rows = place.rows,
                        .columns = place.columns,
                        .data = parts[0].span(),
                        .scales = parts[1]};
    if (spec().code != Code::own) return matrix;
    const std::span<const std::byte> zeros =
        scheme_.symmetric ? std::span<const std::byte>() : parts[2].span();
    matrix.reader_bytes = zeros.size();
    matrix.reader = [layout = Layout{scheme_.bits, scheme_.group_k}, zeros](
                        const StoredMatrix& m, std::int64_t first, std::int64_t count, float* out) {
      layout.read(m, zeros, first, count, out);
    };
    return matrix;
  }

 private:
  /// What a reader has to know; it may live longer than the format.
  struct Layout {
    int bits = 0;
    std::int64_t group = 0;  // columns; 0: the whole row

    unsigned code(const std::byte* words, std::int64_t i) const {
      const unsigned byte = std::to_integer<unsigned>(words[i * bits / 8]);
      return bits == 8 ? byte : byte >> (i % 2 * 4) & 15U;
    }

    /// Of the packed zero points: those of one column of groups lie in words below each other.
    float zero(std::span<const std::byte> zeros,
               std::int64_t row,
               std::int64_t groups,
               std::int64_t g) const {
      constexpr std::int64_t kWord = 4;
      if (zeros.empty()) return static_cast<float>(1 << (bits - 1));
      const std::int64_t in_word = 32 / bits;
      const std::byte* word = zeros.data() + (row / in_word * groups + g) * kWord;
      return static_cast<float>(code(word, row % in_word));
    }

    void read(const StoredMatrix& m,
              std::span<const std::byte> zeros,
              std::int64_t first,
              std::int64_t count,
              float* out) const {
      const std::int64_t wide = group == 0 ? m.columns : group;
      const std::int64_t groups = ceil_div(m.columns, wide);
      std::vector<float> scales(static_cast<std::size_t>(groups));
      for (std::int64_t i = first; i < first + count; ++i, out += m.columns) {
        const auto element = static_cast<std::int64_t>(dtype_bytes(m.scales.dtype));
        kernels().convert(m.scales.data + i * groups * element,
                          m.scales.dtype,
                          reinterpret_cast<std::byte*>(scales.data()),
                          DType::f32,
                          groups);
        for (std::int64_t j = 0; j < m.columns; ++j) {
          const std::int64_t g = j / wide;
          const float number = static_cast<float>(code(m.row(i), j)) - zero(zeros, i, groups, g);
          out[j] = number * scales[static_cast<std::size_t>(g)];
        }
      }
    }
  };

  std::int64_t codes_a_word() const { return 32 / scheme_.bits; }

  std::int64_t groups(std::int64_t columns) const {
    return scheme_.group_k == 0 ? 1 : ceil_div(columns, scheme_.group_k);
  }

  void check_shape(const MatrixPlace& place, std::span<const TensorView> parts) const {
    const std::size_t last = scheme_.symmetric ? 2 : 3;
    if (parts.size() <= last) return;
    std::array<std::int64_t, 2> shape{};
    std::memcpy(shape.data(), parts[last].data, sizeof shape);
    if (shape != std::array{place.rows, place.columns}) {
      fail<ModelError>("tensor {}_shape: expected {} x {}, found {} x {}",
                       place.name,
                       place.rows,
                       place.columns,
                       shape[0],
                       shape[1]);
    }
  }

  Scheme scheme_;
};

/// A byte a code under the matrix's own name, and x.weight_scale.
class ByteFormat final : public StoredFormat {
 public:
  explicit ByteFormat(Scheme scheme) : scheme_(std::move(scheme)) {}

  std::string_view name() const override { return "compressed-tensors"; }

  QuantSpec spec() const override {
    return {.code = scheme_.floats ? Code::e4m3 : Code::int8,
            .group_k = scheme_.group_k,
            .group_n = scheme_.group_n};
  }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    const SourceTensor* tensor = source.find(place.name);
    return !place.stack && tensor != nullptr && tensor->type == type();
  }

  std::vector<StoredPart> parts(const TensorSource& /*source*/,
                                const MatrixPlace& place) const override {
    std::vector<std::int64_t> scales = {spec().scale_rows(place.rows),
                                        spec().groups(place.columns)};
    if (scheme_.group_n == kAllRows) scales = {1};
    return {{place.name, {place.rows, place.columns}, type()}, {place.name + "_scale", scales}};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    return {.quant = spec(),
            .rows = place.rows,
            .columns = place.columns,
            .data = parts[0].span(),
            .scales = parts[1]};
  }

 private:
  std::string_view type() const { return scheme_.floats ? "F8_E4M3" : "I8"; }

  Scheme scheme_;
};

std::unique_ptr<StoredFormat> make(const ConfigReader& quantization) {
  if (!quantization.has("config_groups")) quantization.refuse("config_groups", "an object");
  if (quantization.has("sparsity_config")) {
    const std::string sparse = quantization.object("sparsity_config").text_or("format", "dense");
    if (sparse != "dense") quantization.refuse("sparsity_config", "format \"dense\"");
  }
  const ConfigReader groups = quantization.object("config_groups");
  const std::string form = quantization.text_or("format", "");
  std::optional<Scheme> scheme;
  for (const auto& [name, fields] : groups.fields().items()) {
    const Scheme each = read_scheme(groups.object(name.c_str()), form);
    if (scheme && *scheme != each)
      groups.refuse(name, "the same form of weights as the groups before it");
    scheme = each;
  }
  if (!scheme) quantization.refuse("config_groups", "one group at least");
  if (scheme->form == "pack-quantized") return std::make_unique<PackedFormat>(*scheme);
  if (scheme->form == kMxfp4) {
    return std::make_unique<RowFormat>(RowFormat::Options{.name = "compressed-tensors mxfp4",
                                                          .code_type = "U8",
                                                          .scale_suffix = "_scale",
                                                          .spec = quant_spec(WeightType::mxfp4),
                                                          .code_suffix = "_packed"});
  }
  return std::make_unique<ByteFormat>(*scheme);
}

}  // namespace

FormatEntry compressed_tensors_format() {
  return {.method = "compressed-tensors",
          .make = make,
          .written_for = WeightType::mxfp4,
          .written_config = R"({"quant_method": "compressed-tensors",
              "format": "mxfp4-pack-quantized", "quantization_status": "compressed",
              "config_groups": {"group_0": {"targets": ["Linear"],
                  "format": "mxfp4-pack-quantized",
                  "weights": {"num_bits": 4, "type": "float", "strategy": "group",
                      "group_size": 32, "symmetric": true, "dynamic": false,
                      "scale_dtype": "torch.uint8"}}}})"};
}

}  // namespace ferry
