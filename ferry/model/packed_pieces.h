// Pieces of packed weights (ferry/checkpoint/packed_file.h) that stand for what tables ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ferry/checkpoint/packed_file.h"
#include "ferry/core/threads.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/packer.h"

namespace ferry {

/// The matrices side by side, in this order: a piece for those that are of one type. REQUIRES: a
/// packed checkpoint. Throws ModelError where it has no such pieces.
std::vector<const PackedPiece*> packed_matrix(const Checkpoint& checkpoint,
                                              const TensorList& tensors,
                                              std::int64_t k,
                                              const TensorPlace& at);

/// The block; null where the checkpoint is not packed. Throws likewise.
const PackedPiece* packed_block(const Checkpoint& checkpoint,
                                const FfnPart& part,
                                const TensorPlace& at);

/// Copies on all threads, each into pages of its own.
void copy_on_all(const std::byte* from, std::byte* to, std::size_t bytes, ThreadPool& pool);

/// What a block of this layout has of a whole one, but for biases: a slice its columns, from the
/// front on, else the member its own, each at its place.
void copy_block(const PackedPiece& piece,
                const FfnLayout& layout,
                const GroupMember& member,
                std::byte* gate_up,
                std::byte* down,
                ThreadPool& pool);

/// The biases of a block of this layout.
void copy_block_biases(const PackedPiece& piece, const FfnLayout& layout, std::byte* out);

}  // namespace ferry
