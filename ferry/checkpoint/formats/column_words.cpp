#include "ferry/checkpoint/formats/column_words.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kWordBits = 32;
constexpr std::int64_t kWordBytes = 4;

/// What is left of "x.weight" without its end.
std::string base_of(const std::string& name) {
  constexpr std::string_view kEnd = "weight";
  return name.ends_with(kEnd) ? name.substr(0, name.size() - kEnd.size()) : name + ".";
}

/// What a reader has to know; it may live longer than the format.
struct Reader {
  ColumnWords::Options options;
  std::int64_t rows = 0;  // n
  std::int64_t num_groups = 0;
  std::span<const std::byte> zeros;
  std::vector<std::int32_t> group_of;  // of each of k

  std::int64_t codes_a_word() const { return kWordBits / options.bits; }

  std::int64_t words(std::int64_t codes) const { return ceil_div(codes, codes_a_word()); }

  unsigned code(const std::byte* words, std::int64_t word, std::int64_t place) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, words + word * kWordBytes, sizeof bits);
    return bits >> (place * options.bits) & ((1U << options.bits) - 1);
  }

  /// In a word of neighbours in n.
  std::int64_t place_in_row(std::int64_t n) const {
    return options.place[static_cast<std::size_t>(n % codes_a_word())];
  }

  float zero(std::int64_t group, std::int64_t n) const {
    const std::int64_t word = group * words(rows) + n / codes_a_word();
    return static_cast<float>(static_cast<int>(code(zeros.data(), word, place_in_row(n))) +
                              options.zero_offset);
  }

  float element(const StoredMatrix& m, std::int64_t n, std::int64_t k) const {
    if (options.words_along_k) {
      return static_cast<float>(
          code(m.data.data(), k / codes_a_word() * rows + n, k % codes_a_word()));
    }
    return static_cast<float>(
        code(m.data.data(), k * words(rows) + n / codes_a_word(), place_in_row(n)));
  }

  /// Along k outside, since neighbours in n lie beside each other.
  void read(const StoredMatrix& m, std::int64_t first, std::int64_t count, float* out) const {
    const auto bytes = static_cast<std::int64_t>(dtype_bytes(m.scales.dtype));
    std::vector<float> scales(static_cast<std::size_t>(num_groups * count));
    std::vector<float> zero_points(scales.size());
    for (std::int64_t g = 0; g < num_groups; ++g) {
      kernels().convert(m.scales.data + (g * rows + first) * bytes,
                        m.scales.dtype,
                        reinterpret_cast<std::byte*>(scales.data() + g * count),
                        DType::f32,
                        count);
      for (std::int64_t i = 0; i < count; ++i)
        zero_points[static_cast<std::size_t>(g * count + i)] = zero(g, first + i);
    }
    for (std::int64_t k = 0; k < m.columns; ++k) {
      const std::int64_t group = group_of[static_cast<std::size_t>(k)] * count;
      for (std::int64_t i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(group + i);
        out[i * m.columns + k] = (element(m, first + i, k) - zero_points[at]) * scales[at];
      }
    }
  }
};

std::int64_t groups(const ColumnWords::Options& options, std::int64_t columns) {
  return options.group == 0 ? 1 : ceil_div(columns, options.group);
}

/// Of each column.
std::vector<std::int32_t> groups_of(const ColumnWords::Options& options,
                                    const MatrixPlace& place,
                                    std::span<const TensorView> parts) {
  std::vector<std::int32_t> group_of(static_cast<std::size_t>(place.columns));
  if (parts.size() < 4) {
    for (std::size_t k = 0; k < group_of.size(); ++k)
      group_of[k] = options.group == 0
                        ? 0
                        : static_cast<std::int32_t>(k / static_cast<std::size_t>(options.group));
    return group_of;
  }
  std::memcpy(group_of.data(), parts[3].data, parts[3].bytes);
  const std::int64_t most = groups(options, place.columns);
  for (const std::int32_t group : group_of) {
    if (group < 0 || group >= most) {
      fail<ModelError>(
          "tensor {}g_idx: expected groups below {}, found {}", base_of(place.name), most, group);
    }
  }
  return group_of;
}

}  // namespace

bool ColumnWords::stores(const TensorSource& source, const MatrixPlace& place) const {
  return !place.stack && source.find(base_of(place.name) + "qweight") != nullptr;
}

std::vector<StoredPart> ColumnWords::parts(const TensorSource& source,
                                           const MatrixPlace& place) const {
  const std::string base = base_of(place.name);
  const std::int64_t in_word = kWordBits / options_.bits;
  const std::int64_t num_groups = groups(options_, place.columns);
  std::vector<std::int64_t> codes = {place.columns, ceil_div(place.rows, in_word)};
  if (options_.words_along_k) codes = {ceil_div(place.columns, in_word), place.rows};
  std::vector<StoredPart> parts = {
      {base + "qweight", codes, "I32"},
      {base + "qzeros", {num_groups, ceil_div(place.rows, in_word)}, "I32"},
      {base + "scales", {num_groups, place.rows}}};
  // An order counts where it is stored, whatever the config says of it.
  if (options_.order || source.find(base + "g_idx") != nullptr)
    parts.push_back({base + "g_idx", {place.columns}, "I32"});
  return parts;
}

StoredMatrix ColumnWords::assemble(const MatrixPlace& place,
                                   std::span<const TensorView> parts) const {
  Reader reader{.options = options_,
                .rows = place.rows,
                .num_groups = groups(options_, place.columns),
                .zeros = parts[1].span(),
                .group_of = groups_of(options_, place, parts)};
  std::size_t bytes = 0;
  for (const TensorView& part : parts.subspan(1)) bytes += part.bytes;
  return {.quant = spec(),
          .rows = place.rows,
          .columns = place.columns,
          .data = parts[0].span(),
          .scales = parts[2],
          .reader = [reader = std::move(reader)](const StoredMatrix& m,
                                                 std::int64_t first,
                                                 std::int64_t count,
                                                 float* out) { reader.read(m, first, count, out); },
          .reader_bytes = bytes - parts[2].bytes};
}

}  // namespace ferry
