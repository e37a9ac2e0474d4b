#include "ferry/compute/tensor_group.h"

#include <algorithm>
#include <array>

namespace ferry {

TensorGroup::TensorGroup(const GroupGather::Options& options,
                         Transport& transport,
                         ThreadPool& pool)
    : pool_(pool), bounds_(static_cast<std::size_t>(std::max(1, options.tp)) + 1) {
  if (options.tp != 1) gather_.emplace(options, transport, pool);
}

PanelRange GroupMember::panels(std::int64_t n) const {
  const std::int64_t all = ceil_div(n, kPanelColumns);
  return {all * member / tp, all * (member + 1) / tp};
}

ColumnRange GroupMember::columns(std::int64_t n) const {
  const PanelRange own = panels(n);
  return {std::min(n, own.begin * kPanelColumns), std::min(n, own.end * kPanelColumns)};
}

void TensorGroup::multiply(const GemmScratch& scratch, const GemmArgs& args) const {
  const bool gated = args.epilogue == Epilogue::gated;
  const PanelRange own = self().panels(gated ? args.weights->n / 2 : args.weights->n);
  const std::int64_t step = gated ? 2 : 1;  // panels that one of the output is made of
  const std::array panels{PanelRange{step * own.begin, step * own.end}};
  parallel_gemm(pool_, scratch, args, panels);
}

void TensorGroup::multiply(const GemmScratch& scratch,
                           const GemmArgs& args,
                           std::span<const PackedMatrix> strips) const {
  const std::array own{own_columns(columns_of(strips))};
  parallel_gemm(pool_, scratch, args, strips, own);
}

void TensorGroup::gather_columns(const MutableRowsView& rows,
                                 std::int64_t count,
                                 std::int64_t n,
                                 DType type,
                                 const GatherPhase& phase) {
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(type));
  const auto first_byte = [&](int m) { return GroupMember{m, tp()}.columns(n).begin * bytes; };
  gather_bytes(rows, count, first_byte, phase);
}

void TensorGroup::gather_bytes(const MutableRowsView& rows,
                               std::int64_t count,
                               FunctionRef<std::int64_t(int member)> first_byte,
                               const GatherPhase& phase) {
  if (!gather_) return;
  for (int m = 0; m <= tp(); ++m) bounds_[static_cast<std::size_t>(m)] = first_byte(m);
  gather_->gather(rows, count, bounds_, phase);
}

}  // namespace ferry
