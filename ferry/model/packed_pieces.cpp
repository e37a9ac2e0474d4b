#include "ferry/model/packed_pieces.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/model/family.h"

namespace ferry {

namespace {

constexpr std::size_t kCopyBytes = std::size_t{1} << 21;  // at a time: a huge page

[[noreturn]] void refuse(const Checkpoint& checkpoint,
                         const std::string& name,
                         const PackedPiece* found) {
  fail<ModelError>(
      "{}: tensor {}: expected panels as this version and {} want them, found {}; `ferry pack` "
      "makes them anew of the checkpoint",
      checkpoint.source().packed()->path(),
      name,
      checkpoint.source().described_by(),
      found == nullptr ? "none" : "those of other matrices");
}

struct Bytes {
  std::size_t begin = 0;
  std::size_t size = 0;
};

Bytes panel_bytes(const PanelRange& panels, std::int64_t each, std::size_t panel) {
  return {static_cast<std::size_t>(panels.begin * each) * panel,
          static_cast<std::size_t>((panels.end - panels.begin) * each) * panel};
}

}  // namespace

std::vector<const PackedPiece*> packed_matrix(const Checkpoint& checkpoint,
                                              const TensorList& tensors,
                                              std::int64_t k,
                                              const TensorPlace& at) {
  std::vector<const PackedPiece*> pieces;
  for (std::size_t i = 0; i < tensors.size();) {
    const std::string first =
        tensor_name(checkpoint.config(), tensors[i].pattern, at.layer, at.expert);
    const PackedPiece* piece = checkpoint.source().packed()->find(PackedForm::matrix, first);
    if (piece == nullptr || piece->names.size() > tensors.size() - i || piece->shape.back() != k)
      refuse(checkpoint, first, piece);
    for (std::size_t j = 0; j < piece->names.size(); ++j, ++i) {
      const auto& [pattern, rows] = tensors[i];
      const std::string name = tensor_name(checkpoint.config(), pattern, at.layer, at.expert);
      if (piece->names[j] != name || piece->shape[j] != rows) refuse(checkpoint, name, piece);
    }
    pieces.push_back(piece);
  }
  return pieces;
}

const PackedPiece* packed_block(const Checkpoint& checkpoint,
                                const FfnPart& part,
                                const TensorPlace& at) {
  if (checkpoint.source().packed() == nullptr) return nullptr;
  std::vector<std::string> names;
  for (const std::string_view pattern : {part.names.gate, part.names.up, part.names.down})
    names.push_back(tensor_name(checkpoint.config(), pattern, at.layer, at.expert));
  const PackedPiece* piece = checkpoint.source().packed()->find(PackedForm::block, names.front());
  if (piece == nullptr || piece->names != names ||
      piece->shape != std::vector{part.inter, part.hidden})
    refuse(checkpoint, names.front(), piece);
  if (piece->biased != part.biased) {
    fail<ModelError>("{}: tensor {}: expected a block {} biases",
                     checkpoint.source().packed()->path(),
                     names.front(),
                     part.biased ? "with" : "without");
  }
  return piece;
}

void copy_on_all(const std::byte* from, std::byte* to, std::size_t bytes, ThreadPool& pool) {
  const auto parts = static_cast<std::int64_t>((bytes + kCopyBytes - 1) / kCopyBytes);
  pool.parallel_for(parts, 1, [&](std::int64_t begin, std::int64_t end, int) {
    const std::size_t first = static_cast<std::size_t>(begin) * kCopyBytes;
    const std::size_t last = std::min(bytes, static_cast<std::size_t>(end) * kCopyBytes);
    std::memcpy(to + first, from + first, last - first);
  });
}

void copy_block(const PackedPiece& piece,
                const FfnLayout& layout,
                const GroupMember& member,
                std::byte* gate_up,
                std::byte* down,
                ThreadPool& pool) {
  FERRY_CHECK(piece.type == layout.gate_up_type && piece.down_type == layout.down_type,
              "a block of {} and {} for one of {} and {}",
              weight_type_name(piece.type),
              weight_type_name(piece.down_type),
              weight_type_name(layout.gate_up_type),
              weight_type_name(layout.down_type));
  const bool sliced = layout.slice.tp > 1;
  const GroupMember& own = sliced ? layout.slice : member;
  const Bytes inter =
      panel_bytes(own.panels(layout.inter),
                  2,
                  PackedMatrix::packed_panel_bytes(layout.gate_up_type, layout.hidden));
  const Bytes hidden =
      panel_bytes(own.panels(layout.hidden),
                  1,
                  PackedMatrix::packed_panel_bytes(layout.down_type, layout.inter));
  const std::byte* const from_down = piece.data.data() + piece.gate_up_bytes();
  copy_on_all(
      piece.data.data() + inter.begin, gate_up + (sliced ? 0 : inter.begin), inter.size, pool);
  copy_on_all(from_down + hidden.begin, down + (sliced ? 0 : hidden.begin), hidden.size, pool);
}

void copy_block_biases(const PackedPiece& piece, const FfnLayout& layout, std::byte* out) {
  constexpr std::size_t kPanelBiases = kPanelColumns * sizeof(float);
  const auto all = static_cast<std::size_t>(2 * ceil_div(layout.inter, kPanelColumns) +
                                            ceil_div(layout.hidden, kPanelColumns)) *
                   kPanelBiases;
  const Bytes inter = panel_bytes(layout.slice.panels(layout.inter), 2, kPanelBiases);
  const Bytes hidden = panel_bytes(layout.slice.panels(layout.hidden), 1, kPanelBiases);
  const std::byte* const gate_up = piece.data.data() + piece.data.size() - all;
  const std::byte* const down =
      gate_up + static_cast<std::size_t>(2 * ceil_div(layout.inter, kPanelColumns)) * kPanelBiases;
  std::memcpy(out, gate_up + inter.begin, inter.size);
  std::memcpy(out + inter.size, down + hidden.begin, hidden.size);
}

}  // namespace ferry
