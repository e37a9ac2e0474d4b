#include "ferry/balance/block_domain.h"

#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

std::size_t spare_blocks(const std::vector<ExpertBlocks>& layers) {
  std::size_t spare = layers.front().size();
  for (const ExpertBlocks& blocks : layers)
    spare += static_cast<std::size_t>(std::count(blocks.begin(), blocks.end(), nullptr));
  return spare;
}

BlockDomain::BlockDomain(const ExpertHolding& holding,
                         std::span<const std::uint64_t> nodes,
                         std::size_t block_bytes,
                         Transport& transport)
    : blocks_(nodes.size()) {
  for (std::size_t rank = 0; rank < nodes.size(); ++rank)
    domain_of_.push_back(holding.memory ? nodes[rank] : rank);
  if (holding.memory) {
    share(holding, block_bytes, transport);
  } else {
    blocks_[static_cast<std::size_t>(transport.rank())] = holding.blocks;
    spare_ = holding.spare;
  }
  if (!has_all()) touch_spare(holding.memory, block_bytes);
}

/// Finds the blocks of every rank of the domain in its memory.
void BlockDomain::share(const ExpertHolding& holding,
                        std::size_t block_bytes,
                        Transport& transport) {
  const std::size_t layers = holding.placements.size();
  const std::size_t slots = holding.blocks.front().size();
  for (Rank rank = 0; rank < transport.size(); ++rank) {
    if (!together(rank, transport.rank())) continue;
    std::byte* next = transport.peer_window(*holding.memory, rank).data();
    std::vector<ExpertBlocks>& held = blocks_[static_cast<std::size_t>(rank)];
    held.assign(layers, ExpertBlocks(slots, nullptr));
    for (std::size_t i = 0; i < (layers + 1) * slots; ++i, next += block_bytes) {
      const std::size_t layer = i / slots;
      const auto slot = static_cast<SlotId>(static_cast<std::size_t>(rank) * slots + i % slots);
      if (layer < layers && holding.placements[layer].expert_of(slot) >= 0)
        held[layer][i % slots] = next;
      else
        spare_.push_back(next);
    }
  }
  FERRY_CHECK(blocks(transport.rank()) == holding.blocks,
              "blocks do not lie in the shared memory as they should");
}

/// The kernel clears new pages, which takes longer than the copies: not while steps wait for it.
void BlockDomain::touch_spare(const Region* memory, std::size_t block_bytes) const {
  for (std::byte* const block : spare_) {
    const bool own = !memory || (block >= memory->local().data() &&
                                 block < std::to_address(memory->local().end()));
    if (own) std::memset(block, 0, block_bytes);
  }
}

std::byte* BlockDomain::take_spare() {
  FERRY_CHECK(!spare_.empty(), "no spare block is left");
  std::byte* const block = spare_.back();
  spare_.pop_back();
  return block;
}

void BlockDomain::switch_layer(std::size_t layer, std::vector<ExpertBlocks> after) {
  std::set<std::byte*> kept;
  for (const ExpertBlocks& blocks : after) kept.insert(blocks.begin(), blocks.end());
  for (std::size_t rank = 0; rank < blocks_.size(); ++rank) {
    if (blocks_[rank].empty()) continue;
    for (std::byte* block : blocks_[rank][layer])
      if (block && kept.insert(block).second) spare_.push_back(block);
    blocks_[rank][layer] = std::move(after[rank]);
  }
}

}  // namespace ferry
