// Ranks that hold the same tokens and share out their matrix products (tensor parallelism): each
// computes some columns of a product, with the whole sum for each, then all gather all columns. No
// sum is ever split, so the bits do not depend on how many members there are.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/compute/parallel_gemm.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/function_ref.h"
#include "ferry/transport/group_gather.h"

namespace ferry {

/// One member of a group.
struct GroupMember {
  int member = 0;
  int tp = 1;

  /// Its columns where `n` are shared out, whole panels of them.
  ColumnRange columns(std::int64_t n) const;
  /// The panels of a product with so many columns that hold them.
  PanelRange panels(std::int64_t n) const;
};

/// One rank's end. Products split at panels, as evenly as these allow; a member may have none.
/// Members make the same calls in the same order. Threads: one at a time. Allocates only in the
/// constructors. Errors: as GroupGather.
class TensorGroup {
 public:
  /// A group of one: computes everything, gathers nothing.
  explicit TensorGroup(ThreadPool& pool) : pool_(pool), bounds_(2) {}

  /// Collective over all ranks of the transport.
  TensorGroup(const GroupGather::Options& options, Transport& transport, ThreadPool& pool);

  int tp() const { return gather_ ? gather_->tp() : 1; }

  int member() const { return gather_ ? gather_->member() : 0; }

  GroupMember self() const { return {member(), tp()}; }

  /// The threads that this rank computes with.
  ThreadPool& pool() const { return pool_; }

  /// This rank's columns where `n` are shared out.
  ColumnRange own_columns(std::int64_t n) const { return self().columns(n); }

  /// This rank's columns of the product; the others' stay as they are. Fills in panels and scratch.
  void multiply(const GemmScratch& scratch, const GemmArgs& args) const;

  /// The same with a matrix that lies in strips (parallel_gemm.h). A strip that ends inside a panel
  /// may have this rank write some columns next to its own.
  void multiply(const GemmScratch& scratch,
                const GemmArgs& args,
                std::span<const PackedMatrix> strips) const;

  /// Every member has its own_columns(n) of `count` rows of n elements of `type`; afterwards all.
  void gather_columns(const MutableRowsView& rows,
                      std::int64_t count,
                      std::int64_t n,
                      DType type,
                      const GatherPhase& phase);

  /// The same where member m has the bytes from first_byte(m) to first_byte(m + 1).
  void gather_bytes(const MutableRowsView& rows,
                    std::int64_t count,
                    FunctionRef<std::int64_t(int member)> first_byte,
                    const GatherPhase& phase);

 private:
  ThreadPool& pool_;
  std::optional<GroupGather> gather_;  // none in a group of one
  std::vector<std::int64_t> bounds_;   // [tp + 1]
};

}  // namespace ferry
