#include "ferry/model/packer.h"

#include <algorithm>

#include "ferry/checkpoint/mapped_file.h"
#include "ferry/model/family.h"
#include "ferry/model/head_share.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 64;

std::int64_t panels_of(std::int64_t columns) { return ceil_div(columns, kPanelColumns); }

std::size_t packed_bytes(WeightType type, std::int64_t k, std::int64_t panels) {
  return PackedMatrix::packed_panel_bytes(type, k) * static_cast<std::size_t>(panels);
}

std::byte* as_bytes(float* x) { return reinterpret_cast<std::byte*>(x); }

}  // namespace

std::size_t FfnLayout::gate_up_bytes() const {
  return packed_bytes(type, hidden, 2 * panels_of(inter));
}

std::size_t FfnLayout::down_bytes() const { return packed_bytes(type, inter, panels_of(hidden)); }

GatedFfnWeights FfnLayout::view(const std::byte* gate_up, const std::byte* down) const {
  return {.gate_up = {.type = type, .k = hidden, .n = 2 * inter, .data = gate_up},
          .down = {.type = type, .k = inter, .n = hidden, .data = down},
          .biased = biased};
}

Packer::Packer(const Checkpoint& checkpoint,
               const WeightChoice& weights,
               ThreadPool& pool,
               const LoadProgress& progress,
               std::uint64_t total,
               const GroupMember& member)
    : checkpoint_(checkpoint),
      weights_(weights),
      pool_(pool),
      progress_(progress),
      member_(member),
      total_(total) {
  report(0);
}

void Packer::at(int layer, int expert) {
  layer_ = layer;
  expert_ = expert;
}

std::vector<float> Packer::vector(
    std::initializer_list<std::pair<std::string_view, std::int64_t>> names_and_sizes) {
  std::vector<float> out;
  for (const auto& [name, n] : names_and_sizes) {
    const StoredMatrix column = find(name, {n});
    out.resize(out.size() + static_cast<std::size_t>(n));
    column.read_rows(0, n, DType::f32, as_bytes(out.data() + out.size() - n));
    done_with(column);
  }
  return out;
}

OwnedMatrix Packer::matrix(NamesAndRows names_and_rows,
                           std::int64_t k,
                           std::optional<WeightType> wanted,
                           std::span<const PanelRange> panels) {
  std::vector<StoredMatrix> sources;
  std::int64_t columns = 0;
  for (const auto& [name, rows] : names_and_rows) {
    sources.push_back(find_matrix(name, rows, k));
    columns += rows;
  }
  const WeightType type = wanted.value_or(type_for(sources));
  OwnedMatrix matrix;
  matrix.memory = Buffer(packed_bytes(type, k, panels_of(columns)));
  matrix.view = {.type = type, .k = k, .n = columns, .data = matrix.memory.data()};
  pack(sources, {.type = type, .data = matrix.memory.data(), .panels = panels});
  return matrix;
}

std::pair<HeadMatrices, HeadMatrices> Packer::latent_head_matrices(std::string_view name,
                                                                   int num_heads,
                                                                   const LatentConfig& latent) {
  const std::int64_t plain = latent.plain_dim;
  const std::int64_t value = latent.value_dim;
  const std::int64_t rank = latent.rank;
  const StoredMatrix source = find_matrix(name, num_heads * (plain + value), rank);
  HeadMatrices keys = head_matrices(num_heads, plain, rank);
  HeadMatrices values = head_matrices(num_heads, rank, value);
  const HeadRange own = latent_heads(num_heads, member_);
  pool_.parallel_for(own.size(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> rows(static_cast<std::size_t>((plain + value) * rank));
    std::vector<float> turned(static_cast<std::size_t>(plain * rank));
    for (std::int64_t h = own.begin + begin; h < own.begin + end; ++h) {
      source.read_rows(h * (plain + value), plain + value, DType::f32, as_bytes(rows.data()));
      for (std::int64_t i = 0; i < plain; ++i)
        for (std::int64_t j = 0; j < rank; ++j)
          turned[static_cast<std::size_t>(j * plain + i)] =
              rows[static_cast<std::size_t>(i * rank + j)];
      pack_f32(turned.data(), keys.views[static_cast<std::size_t>(h)]);
      pack_f32(rows.data() + plain * rank, values.views[static_cast<std::size_t>(h)]);
    }
  });
  done_with(source);
  return {std::move(keys), std::move(values)};
}

OwnedMatrix Packer::shared_out(NamesAndRows names_and_rows, std::int64_t k) {
  std::int64_t columns = 0;
  for (const auto& [name, rows] : names_and_rows) columns += rows;
  const PanelRange own = member_.panels(columns);
  return matrix(names_and_rows, k, {}, {&own, 1});
}

void Packer::ffn(const FfnNames& names,
                 const FfnLayout& layout,
                 std::byte* gate_up,
                 std::byte* down) {
  const std::size_t panel = PackedMatrix::packed_panel_bytes(layout.type, layout.hidden);
  const StoredMatrix gate = find_matrix(names.gate, layout.inter, layout.hidden);
  const StoredMatrix up = find_matrix(names.up, layout.inter, layout.hidden);
  const PanelRange own_inter = member_.panels(layout.inter);
  const PanelRange own_hidden = member_.panels(layout.hidden);
  pack({&gate, 1}, {layout.type, gate_up, 2, {&own_inter, 1}});
  pack({&up, 1}, {layout.type, gate_up + panel, 2, {&own_inter, 1}});
  const StoredMatrix source = find_matrix(names.down, layout.hidden, layout.inter);
  pack({&source, 1}, {layout.type, down, 1, {&own_hidden, 1}});
}

void Packer::ffn_biases(const FfnNames& names, const FfnLayout& layout, float* out) {
  const auto gate = vector({{names.gate_bias, layout.inter}});
  const auto up = vector({{names.up_bias, layout.inter}});
  const auto down = vector({{names.down_bias, layout.hidden}});
  float* const down_out = out + 2 * panels_of(layout.inter) * kPanelColumns;
  std::fill(out, down_out + panels_of(layout.hidden) * kPanelColumns, 0.0F);
  for (std::int64_t c = 0; c < layout.inter; ++c) {
    float* place = out + 2 * (c / kPanelColumns) * kPanelColumns + c % kPanelColumns;
    place[0] = gate[static_cast<std::size_t>(c)];
    place[kPanelColumns] = up[static_cast<std::size_t>(c)];
  }
  std::ranges::copy(down, down_out);
}

OwnedFfn Packer::ffn(const FfnNames& names, std::int64_t inter) {
  const std::int64_t hidden = checkpoint_.config().hidden;
  const StoredMatrix gate = find_matrix(names.gate, inter, hidden);
  const FfnLayout layout{type_for({&gate, 1}), hidden, inter};
  OwnedFfn owned{Buffer(layout.gate_up_bytes()), Buffer(layout.down_bytes()), {}};
  ffn(names, layout, owned.gate_up.data(), owned.down.data());
  owned.view = layout.view(owned.gate_up.data(), owned.down.data());
  return owned;
}

Buffer Packer::rows(std::string_view name, std::int64_t rows, std::int64_t width) {
  const StoredMatrix source = find_matrix(name, rows, width);
  const DType dtype = activation_type(weights_.type);
  const auto row_bytes = width * static_cast<std::ptrdiff_t>(dtype_bytes(dtype));
  Buffer out(static_cast<std::size_t>(rows * row_bytes));
  pool_.parallel_for(rows, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    source.read_rows(begin, end - begin, dtype, out.data() + begin * row_bytes);
  });
  done_with(source);
  return out;
}

StoredMatrix Packer::find(std::string_view name, std::vector<std::int64_t> shape) const {
  StoredMatrix matrix = checkpoint_.matrix(
      {.name = named(name), .shape = std::move(shape), .layer = layer_, .expert = expert_});
  advise_read_soon(matrix.data);
  return matrix;
}

void Packer::done_with(const StoredMatrix& matrix) {
  advise_read_done(matrix.data);
  report(matrix.bytes());
}

WeightType Packer::type_for(std::span<const StoredMatrix> sources) const {
  const bool plain = std::ranges::all_of(sources, &StoredMatrix::is_plain);
  return plain && weights_.plain_stays ? weight_type(activation_type(weights_.type))
                                       : weights_.type;
}

HeadMatrices Packer::head_matrices(std::int64_t num_heads, std::int64_t k, std::int64_t n) const {
  const WeightType type = weight_type(activation_type(weights_.type));
  const std::size_t bytes = packed_bytes(type, k, panels_of(n));
  HeadMatrices heads{Buffer(bytes * static_cast<std::size_t>(num_heads)), {}};
  for (std::size_t h = 0; h < static_cast<std::size_t>(num_heads); ++h) {
    heads.views.push_back({.type = type, .k = k, .n = n, .data = heads.memory.data() + h * bytes});
  }
  return heads;
}

void Packer::pack_f32(const float* source, const PackedMatrix& matrix) {
  pack_matrix({.type = matrix.type,
               .source = reinterpret_cast<const std::byte*>(source),
               .k = matrix.k,
               .n = matrix.n,
               .out = const_cast<std::byte*>(matrix.data)});
}

void Packer::pack(std::span<const StoredMatrix> sources, const PackTarget& target) {
  pack_stored(sources, target, pool_);
  for (const StoredMatrix& source : sources) done_with(source);
}

void Packer::report(std::size_t bytes) {
  done_ += bytes;
  if (progress_) progress_(done_, total_);
}

}  // namespace ferry
