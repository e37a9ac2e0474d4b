// The wire between rank 0's plan and the ranks' steps: records out, results back, over put and
// counted signal, so any transport will do. Strictly in turn: a rank sends the result of a step
// before it gets the next record, and rank 0 has all results before it sends one. So one buffer
// each way is enough, and a buffer is written again only after its last reader has answered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/engine/step_record.h"
#include "ferry/transport.h"

namespace ferry {

/// One rank's end. Construction is collective. Threads: one at a time. Errors: TransportError.
class StepLink {
 public:
  /// `record_bytes`, `result_bytes`: greatest size of one message, the same on all ranks.
  StepLink(Transport& transport, std::size_t record_bytes, std::size_t result_bytes);

  /// Rank 0 only: one record to `peer`, which may be 0.
  void send_record(Rank peer, const StepRecord& record);
  /// Rank 0 only, once for each record that `peer` was sent. `step`: the record's.
  StepResult receive_result(Rank peer, std::uint64_t step, std::chrono::nanoseconds timeout);

  /// Waits for as long as the peers live.
  StepRecord receive_record();
  void send_result(const StepResult& result);

 private:
  std::span<std::byte> part(std::size_t offset, std::size_t bytes) const {
    return region_->local().subspan(offset, bytes);
  }

  Transport& transport_;
  std::uint64_t records_ = 0;           // that came
  std::vector<std::uint64_t> results_;  // on rank 0: that came from each rank
  std::size_t record_bytes_;
  std::size_t result_bytes_;
  // Where things lie in each rank's part: the record it received, the result it sends; and used
  // on rank 0 only: records to send and results received, one a rank.
  std::size_t result_out_;
  std::size_t records_out_;
  std::size_t results_in_;
  std::unique_ptr<Region> region_;
};

}  // namespace ferry
