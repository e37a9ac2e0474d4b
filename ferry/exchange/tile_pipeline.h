// The fused pipeline: experts start on the rows that are there while others are still on their way,
// and results leave as tiles finish. Rows and sums are those of the phases, bit for bit: only the
// order in which rows are computed differs.
#pragma once

#include <cstdint>
#include <vector>

#include "ferry/exchange/result_sender.h"
#include "ferry/exchange/row_receiver.h"
#include "ferry/function_ref.h"

namespace ferry {

/// Of a plane that runs steps at once: how rows are cut into tiles is read from their counts.
class TilePipeline {
 public:
  TilePipeline(LaneState& lane,
               DispatchMessages& messages,
               RowReceiver& receiver,
               ResultSender& results);

  /// Behind RowReceiver::receive_messages(): takes the rows and calls `experts` for one tile after
  /// the other.
  void run(FunctionRef<void(const ExpertRows&)> experts);

 private:
  bool worth_own_tile() const;
  void run_tile(FunctionRef<void(const ExpertRows&)> experts, std::size_t first, std::size_t end);
  ExpertRows rows_with(std::span<const std::int32_t> counts) const;

  LaneState& lane_;
  DispatchMessages& messages_;
  RowReceiver& receiver_;
  ResultSender& results_;
  std::vector<std::int32_t> counts_;          // [L] rows not computed yet
  std::vector<std::int32_t> counts_of_tile_;  // [L]
  std::vector<std::int64_t> offsets_;         // [L]
};

}  // namespace ferry
