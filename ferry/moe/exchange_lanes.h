// The loop around exchanges: tokens out, experts, results home; in chunks where tokens are many, on
// two lanes where one half shall travel while the experts compute the other.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/dispatcher.h"
#include "ferry/function_ref.h"

namespace ferry {

/// One rank's lanes and the routing of the tokens that they carry. Construction is collective.
/// Threads: one at a time. Allocates only in the constructor.
class ExchangeLanes {
 public:
  /// Tokens [first, first + count) of a call, which one lane carries. Where their routing goes.
  struct Part {
    int first = 0;
    int count = 0;
    int in_chunk = 0;             ///< of the tokens of the same chunk, below max_tokens
    std::span<ExpertId> experts;  ///< [count, K]
    std::span<SlotId> slots;      ///< [count, K]
    /// [count, K]. With the option row_weights they go with the rows to the experts, and results
    /// are added up as they are.
    std::span<float> weights;
  };

  /// As MoeTokens.
  struct Call {
    MemoryPlace place = {};
    RowsView rows = {};
    DType type = DType::f32;
    bool encoded = false;
    int tokens = 0;
    MutableRowsView out = {};
    DType out_type = DType::f32;
    int layer = -1;
    std::optional<std::chrono::nanoseconds> timeout = {};
  };

  /// What a caller does in an exchange, in this order.
  struct Work {
    /// Fills in slots and weights.
    FunctionRef<void(const Part& part)> route;
    /// While the tokens of a chunk, [first, first + count), are on their way. Whether `out` now
    /// holds something that results are added to.
    FunctionRef<bool(int first, int count)> meanwhile;
    FunctionRef<void(const ExpertRows& rows)> experts;
  };

  ExchangeLanes(const DispatcherOptions& options,
                int lanes,
                Transport& transport,
                ThreadPool& pool);

  /// Collective; as many exchanges as the rank with the most tokens needs.
  void run(const Call& call, const Work& work);

  /// Tokens of the last call that needed a masked rank, rising within a lane.
  std::span<const int> lost_tokens() const { return lost_tokens_; }

  /// Where the rows of the next call's tokens may be written so that they are not copied; none
  /// where they travel in another form than `type`, or on several lanes.
  std::optional<MutableRowsView> registered_input(DType type, int tokens) const;

  void mask(Rank rank);
  bool is_masked(Rank rank) const;

  bool masks() const;

  const Dispatcher& first() const { return lanes_.front()->dispatcher; }

  Dispatcher& first() { return lanes_.front()->dispatcher; }

  /// Over all lanes.
  ExchangeStats stats() const;
  /// [R], by source rank.
  std::vector<SourceStats> source_stats() const;

  /// That this rank has spent in dispatch and combine, waits included, experts' work not.
  std::chrono::nanoseconds time() const { return time_; }

  /// Bytes of a lane's scratch.
  static std::size_t scratch_bytes(const DispatcherOptions& options);

 private:
  struct Lane {
    Lane(const DispatcherOptions& options, Transport& transport, ThreadPool& pool);

    /// By which home adds up `part`: its weights, or ones.
    std::span<const float> result_weights() const;

    Dispatcher dispatcher;
    Part part;
    std::vector<ExpertId> experts;  // [max_tokens, K]
    std::vector<SlotId> slots;
    std::vector<float> weights;
    std::vector<float> ones;  // [max_tokens, K] where weights go with the rows
  };

  void exchange(const Call& call, const Work& work, int first, int tokens, int chunks);
  void deal_out(int first, int tokens);
  void share_masks();

  const DispatcherOptions options_;  // of all lanes together
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<int> lost_tokens_;
  std::chrono::nanoseconds time_{};
};

}  // namespace ferry
