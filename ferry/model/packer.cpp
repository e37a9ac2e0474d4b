#include "ferry/model/packer.h"

#include <algorithm>
#include <utility>

#include "ferry/checkpoint/mapped_file.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/model/family.h"
#include "ferry/model/packed_pieces.h"

namespace ferry {

namespace {

std::int64_t panels_of(std::int64_t columns) { return ceil_div(columns, kPanelColumns); }

std::size_t packed_bytes(WeightType type, std::int64_t k, std::int64_t panels) {
  return PackedMatrix::packed_panel_bytes(type, k) * static_cast<std::size_t>(panels);
}

std::byte* as_bytes(float* x) { return reinterpret_cast<std::byte*>(x); }

StoredMatrix stored(const Checkpoint& checkpoint,
                    std::string_view pattern,
                    std::vector<std::int64_t> shape,
                    const TensorPlace& at) {
  return checkpoint.matrix({.name = tensor_name(checkpoint.config(), pattern, at.layer, at.expert),
                            .shape = std::move(shape),
                            .layer = at.layer,
                            .expert = at.expert});
}

/// What the matrix of a product is made of.
struct Sources {
  std::vector<StoredMatrix> gate_up, down;

  void add(const Checkpoint& checkpoint, const FfnPart& part, const TensorPlace& at) {
    gate_up.push_back(stored(checkpoint, part.names.gate, {part.inter, part.hidden}, at));
    gate_up.push_back(stored(checkpoint, part.names.up, {part.inter, part.hidden}, at));
    down.push_back(stored(checkpoint, part.names.down, {part.hidden, part.inter}, at));
  }
};

}  // namespace

std::size_t FfnLayout::gate_up_bytes() const {
  return packed_bytes(gate_up_type, hidden, 2 * panels_of(slice.columns(inter).size()));
}

std::size_t FfnLayout::down_bytes() const {
  return packed_bytes(down_type, inter, panels_of(slice.columns(hidden).size()));
}

GatedFfnWeights FfnLayout::view(const std::byte* gate_up, const std::byte* down) const {
  const std::int64_t own_inter = slice.columns(inter).size();
  const std::int64_t own_hidden = slice.columns(hidden).size();
  return {.gate_up = {.type = gate_up_type, .k = hidden, .n = 2 * own_inter, .data = gate_up},
          .down = {.type = down_type, .k = inter, .n = own_hidden, .data = down},
          .biased = biased};
}

namespace {

WeightType elements_of(const WeightChoice& choice) {
  return weight_type(activation_type(choice.type));
}

/// How one tensor is held.
WeightType held_type(const WeightChoice& choice, const StoredMatrix& source) {
  if (choice.as_stored) {
    const WeightType held = source.held_as().value_or(elements_of(choice));
    return choice.int8_rows ? with_int8_rows(held) : held;
  }
  return source.is_plain() && choice.plain_stays ? elements_of(choice) : choice.type;
}

}  // namespace

WeightType type_for(const WeightChoice& choice, std::span<const StoredMatrix> sources) {
  const WeightType first = held_type(choice, sources.front());
  const bool alike = std::ranges::all_of(
      sources, [&](const StoredMatrix& source) { return held_type(choice, source) == first; });
  return alike ? first : elements_of(choice);
}

std::size_t StripPlan::bytes() const {
  return packed_bytes(type, sources.front().columns, panels_of(columns));
}

std::vector<StripPlan> plan_strips(const WeightChoice& choice,
                                   const MatrixPacking& how,
                                   std::span<const StoredMatrix> sources) {
  const auto type_of = [&](const StoredMatrix& source) {
    if (how.elements) return elements_of(choice);
    return how.type ? *how.type : held_type(choice, source);
  };
  std::vector<StripPlan> strips;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const WeightType type = type_of(sources[i]);
    if (strips.empty() || strips.back().type != type)
      strips.push_back({.type = type, .sources = sources.subspan(i, 0)});
    StripPlan& strip = strips.back();
    strip.sources = {strip.sources.data(), strip.sources.size() + 1};
    strip.columns += sources[i].rows;
  }
  return strips;
}

FfnLayout ffn_layout(const Checkpoint& checkpoint,
                     const WeightChoice& choice,
                     const FfnPart& part,
                     const TensorPlace& at) {
  if (const PackedPiece* piece = packed_block(checkpoint, part, at))
    return {piece->type, piece->down_type, part.hidden, part.inter, part.biased};
  Sources sources;
  sources.add(checkpoint, part, at);
  return {type_for(choice, sources.gate_up),
          type_for(choice, sources.down),
          part.hidden,
          part.inter,
          part.biased};
}

FfnLayout expert_layout(const Checkpoint& checkpoint,
                        const WeightChoice& choice,
                        const FfnPart& expert,
                        int layer,
                        const GroupMember& slice) {
  FfnLayout layout{choice.type, choice.type, expert.hidden, expert.inter, expert.biased, slice};
  if (checkpoint.source().packed() != nullptr) {
    for (int e = 0; e < checkpoint.config().moe.experts; ++e) {
      const PackedPiece& piece = *packed_block(checkpoint, expert, {layer, e});
      if (e == 0) layout.gate_up_type = piece.type;
      if (e == 0) layout.down_type = piece.down_type;
      if (piece.type == layout.gate_up_type && piece.down_type == layout.down_type) continue;
      fail<ModelError>("{}: tensor {}: expected the types of the layer's other experts",
                       checkpoint.source().packed()->path(),
                       piece.names.front());
    }
    return layout;
  }
  if (!choice.as_stored) return layout;
  Sources sources;
  for (int e = 0; e < checkpoint.config().moe.experts; ++e)
    sources.add(checkpoint, expert, {layer, e});
  layout.gate_up_type = type_for(choice, sources.gate_up);
  layout.down_type = type_for(choice, sources.down);
  return layout;
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

std::vector<float> Packer::vector(const TensorList& tensors, const TensorPlace& at) {
  std::vector<float> out;
  for (const auto& [pattern, n] : tensors) {
    const StoredMatrix column = find(pattern, n, std::nullopt, at);
    out.resize(out.size() + static_cast<std::size_t>(n));
    column.read_rows(0, n, DType::f32, as_bytes(out.data() + out.size() - n));
    done_with(column);
  }
  return out;
}

std::vector<float> Packer::taps(const TensorRows& tensor,
                                std::int64_t taps,
                                const TensorPlace& at) {
  const StoredMatrix source =
      find(tensor.pattern, std::vector<std::int64_t>{tensor.rows, 1, taps}, at);
  std::vector<float> out(static_cast<std::size_t>(tensor.rows * taps));
  source.read_rows(0, tensor.rows, DType::f32, as_bytes(out.data()));
  done_with(source);
  return out;
}

OwnedMatrix Packer::matrix(const TensorList& tensors,
                           std::int64_t k,
                           const MatrixPacking& how,
                           const TensorPlace& at) {
  std::vector<StoredMatrix> sources;
  std::int64_t columns = 0;
  for (const auto& [pattern, rows] : tensors) {
    sources.push_back(find(pattern, rows, k, at));
    columns += rows;
  }
  const ColumnRange all{0, columns};
  const ColumnRange own = member_.columns(columns);
  std::span<const ColumnRange> wanted = how.columns.empty() ? std::span(&all, 1) : how.columns;
  if (how.shared_out) wanted = {&own, 1};
  if (checkpoint_.source().packed() != nullptr) {
    OwnedMatrix matrix = packed(packed_matrix(checkpoint_, tensors, k, at), how, wanted);
    for (const StoredMatrix& source : sources) done_with(source);
    return matrix;
  }
  const std::vector<StripPlan> plan = plan_strips(weights_, how, sources);
  std::size_t bytes = 0;
  for (const StripPlan& strip : plan) bytes += strip.bytes();
  OwnedMatrix matrix{Buffer(bytes), {}};
  std::byte* next = matrix.memory.data();
  std::int64_t first = 0;
  for (const StripPlan& strip : plan) {
    StripPanels cover(first, strip.columns);
    std::vector<PanelRange> panels;
    for (const ColumnRange& range : wanted) panels.push_back(cover.next(range));
    pack(strip.sources, {.type = strip.type, .data = next, .panels = panels});
    matrix.strips.push_back({.type = strip.type, .k = k, .n = strip.columns, .data = next});
    next += strip.bytes();
    first += strip.columns;
  }
  return matrix;
}

OwnedMatrix Packer::packed(std::span<const PackedPiece* const> pieces,
                           const MatrixPacking& how,
                           std::span<const ColumnRange> wanted) {
  std::size_t bytes = 0;
  for (const PackedPiece* piece : pieces) bytes += piece->data.size();
  OwnedMatrix matrix;
  if (!in_place()) matrix.memory = Buffer(bytes);
  std::byte* next = matrix.memory.data();
  std::int64_t first = 0;
  for (const PackedPiece* piece : pieces) {
    const WeightType type = how.elements ? type_of_elements() : how.type.value_or(piece->type);
    if (type != piece->type) {
      fail<ModelError>("{}: tensor {}: expected panels of {}, found {}",
                       checkpoint_.source().packed()->path(),
                       piece->names.front(),
                       weight_type_name(type),
                       weight_type_name(piece->type));
    }
    PackedMatrix strip{
        .type = type, .k = piece->shape.back(), .n = piece->columns(), .data = piece->data.data()};
    if (!in_place()) {
      strip.data = next;
      StripPanels cover(first, strip.n);
      for (const ColumnRange& range : wanted) {
        const PanelRange panels = cover.next(range);
        const std::size_t begin = static_cast<std::size_t>(panels.begin) * strip.panel_bytes();
        const std::size_t end = static_cast<std::size_t>(panels.end) * strip.panel_bytes();
        copy_on_all(piece->data.data() + begin, next + begin, end - begin, pool_);
      }
      next += piece->data.size();
    }
    matrix.strips.push_back(strip);
    first += strip.n;
  }
  return matrix;
}

void Packer::own_way(const TensorRows& tensor,
                     std::int64_t k,
                     FunctionRef<void(const StoredMatrix&, Packer&)> pack,
                     const TensorPlace& at) {
  const StoredMatrix source = find(tensor.pattern, tensor.rows, k, at);
  pack(source, *this);
  done_with(source);
}

void Packer::ffn(const FfnPart& part,
                 const TensorPlace& at,
                 const FfnLayout& layout,
                 std::byte* gate_up,
                 std::byte* down) {
  if (const PackedPiece* piece = packed_block(checkpoint_, part, at)) {
    copy_block(*piece, layout, member_, gate_up, down, pool_);
    return done_with(part, at);
  }
  const std::size_t panel = PackedMatrix::packed_panel_bytes(layout.gate_up_type, layout.hidden);
  const StoredMatrix gate = find(part.names.gate, part.inter, part.hidden, at);
  const StoredMatrix up = find(part.names.up, part.inter, part.hidden, at);
  const bool sliced = layout.slice.tp > 1;
  const GroupMember& member = sliced ? layout.slice : member_;
  const PanelRange own_inter = member.panels(layout.inter);
  const PanelRange own_hidden = member.panels(layout.hidden);
  const std::int64_t first_inter = sliced ? own_inter.begin : 0;
  const std::int64_t first_hidden = sliced ? own_hidden.begin : 0;
  pack({&gate, 1}, {layout.gate_up_type, gate_up, 2, {&own_inter, 1}, first_inter});
  pack({&up, 1}, {layout.gate_up_type, gate_up + panel, 2, {&own_inter, 1}, first_inter});
  const StoredMatrix source = find(part.names.down, part.hidden, part.inter, at);
  pack({&source, 1}, {layout.down_type, down, 1, {&own_hidden, 1}, first_hidden});
}

void Packer::block(const FfnPart& part,
                   const TensorPlace& at,
                   const FfnLayout& layout,
                   std::byte* block) {
  std::byte* const down = block + layout.gate_up_bytes();
  ffn(part, at, layout, block, down);
  if (layout.biased)
    ffn_biases(part, at, layout, reinterpret_cast<float*>(down + layout.down_bytes()));
}

bool Packer::in_place() const {
  return weights_.in_place && checkpoint_.source().packed() != nullptr;
}

const std::byte* Packer::block_in_place(const FfnPart& part, const TensorPlace& at) {
  done_with(part, at);
  return packed_block(checkpoint_, part, at)->data.data();
}

void Packer::ffn_biases(const FfnPart& part,
                        const TensorPlace& at,
                        const FfnLayout& layout,
                        float* out) {
  if (const PackedPiece* piece = packed_block(checkpoint_, part, at))
    return copy_block_biases(*piece, layout, reinterpret_cast<std::byte*>(out));
  const auto gate = vector({{part.names.gate_bias, part.inter}}, at);
  const auto up = vector({{part.names.up_bias, part.inter}}, at);
  const auto down = vector({{part.names.down_bias, part.hidden}}, at);
  const ColumnRange inter = layout.slice.columns(part.inter);
  const ColumnRange hidden = layout.slice.columns(part.hidden);
  float* const down_out = out + 2 * panels_of(inter.size()) * kPanelColumns;
  std::fill(out, down_out + panels_of(hidden.size()) * kPanelColumns, 0.0F);
  for (std::int64_t c = 0; c < inter.size(); ++c) {
    float* place = out + 2 * (c / kPanelColumns) * kPanelColumns + c % kPanelColumns;
    place[0] = gate[static_cast<std::size_t>(inter.begin + c)];
    place[kPanelColumns] = up[static_cast<std::size_t>(inter.begin + c)];
  }
  std::copy(down.begin() + hidden.begin, down.begin() + hidden.end, down_out);
}

OwnedFfn Packer::ffn(const FfnPart& part, const TensorPlace& at) {
  const FfnLayout layout = ffn_layout(checkpoint_, weights_, part, at);
  if (in_place()) {
    const std::byte* const block = block_in_place(part, at);
    return {Buffer(), Buffer(), layout.view(block, block + layout.gate_up_bytes())};
  }
  OwnedFfn owned{Buffer(layout.gate_up_bytes()), Buffer(layout.down_bytes()), {}};
  ffn(part, at, layout, owned.gate_up.data(), owned.down.data());
  owned.view = layout.view(owned.gate_up.data(), owned.down.data());
  return owned;
}

HeldRows Packer::rows(const TensorRows& tensor, std::int64_t width, const TensorPlace& at) {
  const StoredMatrix source = find(tensor.pattern, tensor.rows, width, at);
  const DType type = activation_type(weights_.type);
  HeldRows rows = in_place() && source.is_plain() ? HeldRows::in_place(source, type)
                                                  : HeldRows(source, type, pool_);
  done_with(source);
  return rows;
}

StoredMatrix Packer::find(std::string_view pattern,
                          std::int64_t rows,
                          std::optional<std::int64_t> columns,
                          const TensorPlace& at) const {
  std::vector<std::int64_t> shape{rows};
  if (columns) shape.push_back(*columns);
  return find(pattern, std::move(shape), at);
}

StoredMatrix Packer::find(std::string_view pattern,
                          std::vector<std::int64_t> shape,
                          const TensorPlace& at) const {
  StoredMatrix matrix = stored(checkpoint_, pattern, std::move(shape), at);
  // A packed file is read in by huge pages, which this would keep from it.
  if (checkpoint_.source().packed() == nullptr) advise_read_soon(matrix.data);
  return matrix;
}

void Packer::done_with(const StoredMatrix& matrix) {
  if (!in_place()) advise_read_done(matrix.data);
  report(matrix.bytes());
}

void Packer::done_with(const FfnPart& part, const TensorPlace& at) {
  const auto [names, hidden, inter, biased] = part;
  for (const std::string_view pattern : {names.gate, names.up})
    done_with(stored(checkpoint_, pattern, {inter, hidden}, at));
  done_with(stored(checkpoint_, names.down, {hidden, inter}, at));
  if (!biased) return;
  for (const std::string_view pattern : {names.gate_bias, names.up_bias})
    done_with(stored(checkpoint_, pattern, {inter}, at));
  done_with(stored(checkpoint_, names.down_bias, {hidden}, at));
}

HeadMatrices Packer::head_matrices(std::int64_t num_heads, std::int64_t k, std::int64_t n) const {
  const WeightType type = type_of_elements();
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
