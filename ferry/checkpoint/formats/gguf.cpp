// GGUF: matrices in ggml's blocks, each of a type of its own, and matrices whose rows llama.cpp
// wants in another order than everybody else, or in two tensors. Such a matrix gets a reader; what
// lies as plain elements in the usual order is none of this form's.
#include <fmt/core.h>

#include <array>
#include <utility>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/gguf/gguf_heads.h"
#include "ferry/checkpoint/gguf/gguf_types.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Rows of one tensor, plain or in blocks.
struct GgufRows {
  const GgufType* type = nullptr;
  const std::byte* data = nullptr;
  std::int64_t columns = 0;

  explicit GgufRows(const TensorView& part)
      : type(find_gguf_type(part.type)), data(part.data), columns(part.shape.back()) {}

  void read(std::int64_t row, float* out) const {
    type->read_row(data + row * type->row_bytes(columns), columns, out);
  }
};

/// A matrix in two tensors: their names are its own with another ending.
struct InTwo {
  std::string_view whole, first, second;

  std::string first_name(std::string_view name) const { return named(name, first); }

  std::string second_name(std::string_view name) const { return named(name, second); }

 private:
  std::string named(std::string_view name, std::string_view ending) const {
    return std::string(name.substr(0, name.size() - whole.size())).append(ending);
  }
};

constexpr InTwo kLatentUp = {"kv_b_proj.weight", "k_b_proj.weight", "v_b_proj.weight"};
constexpr InTwo kDeltaIn = {"in_proj_qkvz.weight", "in_proj_qkv.weight", "in_proj_z.weight"};

/// Null where a matrix of this name lies in one.
const InTwo* in_two(std::string_view name) {
  for (const InTwo* pair : {&kLatentUp, &kDeltaIn})
    if (name.ends_with(pair->whole)) return pair;
  return nullptr;
}

/// Rows of queries and keys whose halves turn as pairs, in the order in which neighbours do:
/// within each head, row i of the first half lies at 2 i, that of the second behind it.
std::int64_t turned_row(std::int64_t row, std::int64_t head_dim) {
  const std::int64_t in_head = row % head_dim;
  const std::int64_t half = head_dim / 2;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

/// In what order a matrix of one tensor lies there: where the file has its row, and its column.
struct GgufOrder {
  std::int64_t turned_head = 0;  // of queries and keys that turn as neighbours; 0: none do
  // Rows of heads of values, `each` a head, behind `before` others; or columns, with none before.
  ValueHeads heads = {};
  std::int64_t each = 0;
  std::int64_t before = 0;
  bool columns = false;

  bool usual() const { return turned_head == 0 && heads.key_heads == 0; }

  std::int64_t row(std::int64_t i) const {
    if (turned_head != 0) return turned_row(i, turned_head);
    if (heads.key_heads == 0 || columns || i < before) return i;
    return before + heads.stored(i - before, each);
  }
};

/// For a matrix whose columns lie in their order.
CodeReader straight_codes(const GgufType& type, const GgufOrder& order) {
  return [&type, order](const StoredMatrix& m, std::int64_t row, std::byte* codes, float* scales) {
    type.read_codes(m.row(order.row(row)), m.columns, codes, scales);
  };
}

/// `type` is one of the table's, which stay.
RowReader straight_reader(const GgufType& type, const GgufOrder& order) {
  return [&type, order](const StoredMatrix& m, std::int64_t first, std::int64_t count, float* out) {
    std::vector<float> stored(static_cast<std::size_t>(order.columns ? m.columns : 0));
    for (std::int64_t i = first; i < first + count; ++i, out += m.columns) {
      type.read_row(m.row(order.row(i)), m.columns, order.columns ? stored.data() : out);
      for (std::int64_t c = 0; order.columns && c < m.columns; ++c)
        out[c] = stored[static_cast<std::size_t>(order.heads.stored(c, order.each))];
    }
  };
}

/// Keys [heads, rank, plain_dim], the other way round, and values [heads, value_dim, rank]: rows of
/// a head's keys and then of its values make the matrix. REQUIRES: shapes that fit.
RowReader latent_reader(const TensorView& keys, const TensorView& values) {
  const std::int64_t plain = keys.shape[2];
  const std::int64_t value = values.shape[1];
  return [key_rows = GgufRows(keys), value_rows = GgufRows(values), plain, value](
             const StoredMatrix& m, std::int64_t first, std::int64_t count, float* out) {
    const std::int64_t rank = m.columns;
    std::vector<float> head_keys(static_cast<std::size_t>(rank * plain));
    std::int64_t read_head = -1;
    for (std::int64_t i = first; i < first + count; ++i, out += rank) {
      const std::int64_t head = i / (plain + value);
      const std::int64_t row = i % (plain + value);
      if (row >= plain) {
        value_rows.read(head * value + row - plain, out);
        continue;
      }
      for (std::int64_t r = 0; head != read_head && r < rank; ++r)
        key_rows.read(head * rank + r, head_keys.data() + r * plain);
      read_head = head;
      for (std::int64_t r = 0; r < rank; ++r)
        out[r] = head_keys[static_cast<std::size_t>(r * plain + row)];
    }
  };
}

/// Of a gated delta net: rows for one key head's query and key each, those for all its values.
struct DeltaRows {
  std::int64_t key_heads = 0;
  std::int64_t key = 0;
  std::int64_t values = 0;  // of all heads

  std::int64_t of_head() const { return 2 * key + 2 * value(); }

  std::int64_t value() const { return values / key_heads; }

  std::int64_t in_first() const { return 2 * key_heads * key + values; }
};

/// All queries, all keys and all values in one tensor, gates in another; the matrix has those of
/// each key head together.
RowReader delta_reader(const TensorView& first, const TensorView& second, const DeltaRows& delta) {
  return [mixed = GgufRows(first), gates = GgufRows(second), delta](
             const StoredMatrix& m, std::int64_t from, std::int64_t count, float* out) {
    for (std::int64_t i = from; i < from + count; ++i, out += m.columns) {
      const std::int64_t head = i / delta.of_head();
      const std::int64_t row = i % delta.of_head();
      const std::int64_t behind_keys = row - 2 * delta.key;
      if (row < delta.key)
        mixed.read(head * delta.key + row, out);
      else if (behind_keys < 0)
        mixed.read((delta.key_heads + head - 1) * delta.key + row, out);
      else if (behind_keys < delta.value())
        mixed.read(2 * delta.key_heads * delta.key + head * delta.value() + behind_keys, out);
      else
        gates.read((head - 1) * delta.value() + behind_keys, out);
    }
  };
}

class Gguf final : public StoredFormat {
 public:
  Gguf(std::string blocks,
       std::int64_t turned_head,
       const DeltaRows& delta,
       const GgufOrder& values)
      : blocks_(std::move(blocks)), turned_head_(turned_head), delta_(delta), values_(values) {}

  std::string_view name() const override { return "gguf"; }

  QuantSpec spec() const override { return {.code = Code::own}; }

  bool holds_each() const override { return true; }

  std::string note() const override {
    if (blocks_.empty()) return {};
    return fmt::format(
        "blocks of {} are held as they are; matrices whose columns lie in another order become "
        "elements",
        blocks_);
  }

  bool stores(const TensorSource& source, const MatrixPlace& place) const override {
    if (place.stack) return false;
    if (const SourceTensor* tensor = source.find(place.name); tensor != nullptr)
      return !tensor->dtype || !order_of(place).usual();
    const InTwo* pair = in_two(place.name);
    return pair != nullptr && source.find(pair->first_name(place.name)) != nullptr;
  }

  std::vector<StoredPart> parts(const TensorSource& source,
                                const MatrixPlace& place) const override {
    const auto part = [&](std::string name, std::vector<std::int64_t> shape) {
      const SourceTensor* tensor = source.find(name);
      const std::string_view type = tensor == nullptr ? "F32" : std::string_view(tensor->type);
      return StoredPart{std::move(name), std::move(shape), type};
    };
    if (source.find(place.name) != nullptr) return {part(place.name, {place.rows, place.columns})};
    const InTwo& pair = *in_two(place.name);
    std::string first = pair.first_name(place.name);
    std::string second = pair.second_name(place.name);
    if (&pair == &kDeltaIn) {
      return {part(std::move(first), {delta_.in_first(), place.columns}),
              part(std::move(second), {delta_.values, place.columns})};
    }
    // Keys say how many heads there are and how wide; values are then what is left of the rows.
    const std::vector<std::int64_t>& keys = source.find(first)->shape;
    const bool whole = keys.size() == 3 && keys.front() > 0;
    const std::int64_t heads = whole ? keys.front() : 1;
    const std::int64_t plain = whole ? keys.back() : 0;
    const std::int64_t values = place.rows / heads - plain;
    return {part(std::move(first), {heads, place.columns, plain}),
            part(std::move(second), {heads, values, place.columns})};
  }

  StoredMatrix assemble(const MatrixPlace& place,
                        std::span<const TensorView> parts) const override {
    for (const TensorView& part : parts) check_blocks(place, part);
    StoredMatrix matrix{.quant = spec(),
                        .rows = place.rows,
                        .columns = place.columns,
                        .data = parts[0].span(),
                        .scales = {}};
    if (parts.size() == 1) {
      const GgufOrder order = order_of(place);
      const std::int64_t in_heads = order.columns ? place.columns : place.rows - order.before;
      check(place, order.turned_head == 0 || place.rows % order.turned_head == 0, parts);
      check(place,
            order.heads.key_heads == 0 || in_heads == order.heads.value_heads * order.each,
            parts);
      const GgufType& type = *find_gguf_type(parts[0].type);
      matrix.reader = straight_reader(type, order);
      matrix.reads_views_alone = true;
      if (type.held && !order.columns) {
        matrix.code_reader = straight_codes(type, order);
        matrix.held = *type.held;
      }
      return matrix;
    }
    matrix.reader_bytes = parts[1].bytes;
    if (in_two(place.name) == &kDeltaIn) {
      check(place,
            delta_.key_heads > 0 && delta_.values % delta_.key_heads == 0 &&
                place.rows == delta_.in_first() + delta_.values,
            parts);
      matrix.reader = delta_reader(parts[0], parts[1], delta_);
      return matrix;
    }
    check(place, parts[0].shape[0] * (parts[0].shape[2] + parts[1].shape[1]) == place.rows, parts);
    matrix.reader = latent_reader(parts[0], parts[1]);
    return matrix;
  }

 private:
  GgufOrder order_of(const MatrixPlace& place) const {
    const auto is = [&](std::string_view ending) { return place.name.ends_with(ending); };
    if (turned_head_ != 0 && (is(".self_attn.q_proj.weight") || is(".self_attn.k_proj.weight")))
      return {.turned_head = turned_head_};
    GgufOrder order = values_;
    if (is(".linear_attn.in_proj_qkv.weight")) return order;
    order.before = 0;
    if (is(".linear_attn.in_proj_z.weight")) return order;
    order.columns = true;
    if (is(".linear_attn.out_proj.weight")) return order;
    order.columns = false;
    order.each = 1;
    if (is(".linear_attn.in_proj_b.weight") || is(".linear_attn.in_proj_a.weight")) return order;
    return {};
  }

  /// A source of another kind than GGUF may call its tensors what it likes.
  static void check_blocks(const MatrixPlace& place, const TensorView& part) {
    const GgufType* type = find_gguf_type(part.type);
    const bool known = type != nullptr && type->bytes > 0;
    std::int64_t bytes = known ? type->row_bytes(part.shape.back()) : 0;
    for (std::size_t i = 0; i + 1 < part.shape.size(); ++i) bytes *= part.shape[i];
    if (known && part.shape.back() % type->elements == 0 &&
        bytes == static_cast<std::int64_t>(part.bytes))
      return;
    fail<ModelError>("tensor {}: expected whole blocks of a type that GGUF has, found {}",
                     place.name,
                     part.type);
  }

  static void check(const MatrixPlace& place, bool fits, std::span<const TensorView> parts) {
    if (fits) return;
    fail<ModelError>("tensor {}: expected {} rows of whole heads, found {} rows in {}",
                     place.name,
                     place.rows,
                     parts[0].shape[0],
                     parts.size() == 1 ? "one tensor" : "the first of two tensors");
  }

  std::string blocks_;        // which there are, for people
  std::int64_t turned_head_;  // as GgufOrder has it
  DeltaRows delta_;
  GgufOrder values_;  // of the rows of queries, keys and values
};

std::unique_ptr<StoredFormat> make(const ConfigReader& quantization) {
  const int head = quantization.size_or("turned_head", kMaxWidth, 0);
  if (head % 2 != 0) quantization.refuse("turned_head", "an even number");
  DeltaRows delta;
  if (quantization.has("delta")) {
    const ConfigReader rows = quantization.object("delta");
    delta = {.key_heads = rows.size("key_heads", kMaxWidth),
             .key = rows.size("key_rows", kMaxWidth),
             .values = rows.size("value_rows", kMaxWidth)};
  }
  GgufOrder values;
  if (quantization.has("value_heads")) {
    const ConfigReader heads = quantization.object("value_heads");
    values = {.heads = {.key_heads = heads.size("key_heads", kMaxWidth),
                        .value_heads = heads.size("value_heads", kMaxWidth)},
              .each = heads.size("head_rows", kMaxWidth),
              .before = heads.size("rows_before", kMaxWidth)};
    if (values.heads.value_heads % values.heads.key_heads != 0)
      heads.refuse("value_heads", "a multiple of key_heads");
  }
  return std::make_unique<Gguf>(quantization.text_or("blocks", ""), head, delta, values);
}

}  // namespace

FormatEntry gguf_format() { return {.method = "gguf", .make = make}; }

}  // namespace ferry
