// BlockDomain: ranks that map one another's blocks on one NUMA node hand an expert over as a
// pointer. Weights do not change, so slots may share a block, and one is spare when no slot of
// those ranks has it any more. Each rank keeps the books of all of its domain, in the same order,
// so that nothing has to be said about blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ferry/placement.h"
#include "ferry/transport.h"

namespace ferry {

/// Where a layer's experts lie on a rank: [slots_per_rank], null where a slot is empty.
using ExpertBlocks = std::vector<std::byte*>;

/// The experts that a rank holds; the memory stays its owner's, who keeps all of it until the end.
struct ExpertHolding {
  std::vector<Placement> placements;  ///< [layer], of equal shape, the same on all ranks
  std::vector<ExpertBlocks> blocks;   ///< [layer]
  ExpertBlocks spare;                 ///< as many as spare_blocks() says; none with `memory`
  /// Where every rank's blocks lie, if peers map it: [layer][local], then spare blocks, one for
  /// each local slot. Null: in memory of this rank alone.
  Region* memory = nullptr;
};

/// Spare blocks that a rank with such layers needs: those of a layer, and one for each empty slot.
std::size_t spare_blocks(const std::vector<ExpertBlocks>& layers);

/// Threads: one at a time.
class BlockDomain {
 public:
  /// `nodes`: [R] the NUMA node that each rank's memory is on. Has the pages of this rank's spare
  /// blocks where bytes may come into them.
  BlockDomain(const ExpertHolding& holding,
              std::span<const std::uint64_t> nodes,
              std::size_t block_bytes,
              Transport& transport);

  /// Whether one hands blocks over to the other; also true of ranks outside this domain.
  bool together(Rank a, Rank b) const {
    return domain_of_[static_cast<std::size_t>(a)] == domain_of_[static_cast<std::size_t>(b)];
  }

  bool has(Rank rank) const { return !blocks_[static_cast<std::size_t>(rank)].empty(); }

  bool has_all() const {
    return std::none_of(blocks_.begin(), blocks_.end(), [](const auto& of) { return of.empty(); });
  }

  /// [layer] of a rank of the domain.
  const std::vector<ExpertBlocks>& blocks(Rank rank) const {
    return blocks_[static_cast<std::size_t>(rank)];
  }

  std::byte* take_spare();

  void give_back(std::byte* block) { spare_.push_back(block); }

  /// `after`: [R], what the slots of each rank of the domain have from now on. Blocks that none has
  /// any more are spare.
  void switch_layer(std::size_t layer, std::vector<ExpertBlocks> after);

 private:
  void share(const ExpertHolding& holding, std::size_t block_bytes, Transport& transport);
  void touch_spare(const Region* memory, std::size_t block_bytes) const;

  std::vector<std::uint64_t> domain_of_;           // [R]
  std::vector<std::vector<ExpertBlocks>> blocks_;  // [R][layer], none outside the domain
  ExpertBlocks spare_;                             // of the domain
};

}  // namespace ferry
