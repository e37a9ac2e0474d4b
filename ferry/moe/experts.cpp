#include "ferry/moe/experts.h"

#include <algorithm>

#include "ferry/compute/parallel_gemm.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Fewest panels worth a task of their own: every task packs its input rows again, and 16 panels
/// are 16 times the bytes of 16 rows.
constexpr std::int64_t kLeastPanels = 16;

constexpr std::int64_t kWeighGrain = 8;  // rows

std::int64_t panels_per_task(std::int64_t panels, int threads) {
  if (threads == 1) return panels;
  // Twice as many tasks as threads, so that one slow thread does not hold up the rest.
  return std::min(panels, std::max(kLeastPanels, round_up(ceil_div(panels, 2 * threads), 2)));
}

}  // namespace

Experts::Experts(const Options& options, ThreadPool& pool, TensorGroup* slices)
    : options_(options),
      pool_(pool),
      alone_(pool),
      slices_(slices != nullptr ? *slices : alone_),
      own_(slices_.own_columns(options.inter)),
      between_(static_cast<std::size_t>(options.max_rows) *
               static_cast<std::size_t>(options.inter) * dtype_bytes(options.dtype)),
      weighed_(options.row_weights
                   ? static_cast<std::size_t>(options.max_rows) *
                         static_cast<std::size_t>(options.hidden) * dtype_bytes(options.dtype)
                   : 0),
      scratch_(pool_, options.dtype, std::max(options.hidden, options.inter)) {
  FERRY_CHECK(options.hidden >= 1 && options.inter >= 1 && options.max_rows >= 1,
              "experts with H {}, inter {}, {} rows",
              options.hidden,
              options.inter,
              options.max_rows);
}

void Experts::run(const ExpertRows& rows,
                  std::span<const GatedFfnWeights> weights,
                  const GatherPhase& phase) {
  FERRY_CHECK(rows.in_type == wire_type(options_.dtype) && rows.hidden == options_.hidden,
              "experts of {} x {} were handed {} x {} rows",
              dtype_name(options_.dtype),
              options_.hidden,
              wire_type_name(rows.in_type),
              rows.hidden);
  FERRY_CHECK(rows.weights.empty() != options_.row_weights,
              "experts were handed {} row weights",
              rows.weights.size());
  std::int64_t in_turn = 0;
  segments_.clear();
  for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
    FERRY_CHECK(
        rows.counts[slot] == 0 || weights[slot].down.data, "rows for the empty slot {}", slot);
    for (std::int64_t done = 0; done < rows.counts[slot];) {
      const std::int64_t count = std::min(rows.counts[slot] - done, options_.max_rows - in_turn);
      segments_.push_back({slot, rows.offsets[slot] + done, count, in_turn});
      done += count;
      in_turn += count;
      if (in_turn == options_.max_rows) {
        run_turn(rows, weights, phase);
        segments_.clear();
        in_turn = 0;
      }
    }
  }
  if (!segments_.empty()) run_turn(rows, weights, phase);
}

/// The turn's rows times their weights, where between_ has what becomes of them.
RowsView Experts::weigh(const ExpertRows& rows) {
  const auto stride = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(options_.hidden) *
                                                  dtype_bytes(options_.dtype));
  const MutableRowsView weighed{weighed_.data(), stride};
  for (const Segment& s : segments_) {
    pool_.parallel_for(s.count, kWeighGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::byte* row = rows.in.row(s.first_row + i);
        kernels_of(pool_).weighted_sum(
            {.rows = &row,
             .weights = &rows.weights[static_cast<std::size_t>(s.first_row + i)],
             .k = 1,
             .n = options_.hidden,
             .in_type = rows.in_type,
             .out = weighed.row(s.between + i),
             .out_type = options_.dtype});
      }
    });
  }
  return {weighed.base, weighed.stride};
}

/// Both projections of the segments, each one parallel region over (segment, columns).
void Experts::run_turn(const ExpertRows& rows,
                       std::span<const GatedFfnWeights> weights,
                       const GatherPhase& phase) {
  const auto stride = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(options_.inter) *
                                                  dtype_bytes(options_.dtype));
  const MutableRowsView between{between_.data(), stride};
  const RowsView between_in{between_.data(), stride};
  const MutableRowsView own{
      between.base + own_.begin * static_cast<std::ptrdiff_t>(dtype_bytes(options_.dtype)), stride};
  const RowsView weighed = options_.row_weights ? weigh(rows) : RowsView{};
  project([&](const Segment& s) {
    return GemmArgs{
        .in = options_.row_weights ? weighed.from(s.between) : rows.in.from(s.first_row),
        .rows = s.count,
        .weights = &weights[s.slot].gate_up,
        .bias = weights[s.slot].gate_up_bias,
        .epilogue = Epilogue::gated,
        .gating = options_.gating,
        .out = own.from(s.between),
        .out_type = options_.dtype};
  });
  const Segment& last = segments_.back();
  slices_.gather_columns(between, last.between + last.count, options_.inter, options_.dtype, phase);
  project([&](const Segment& s) {
    return GemmArgs{.in = between_in.from(s.between),
                    .rows = s.count,
                    .weights = &weights[s.slot].down,
                    .bias = weights[s.slot].down_bias,
                    .out = rows.out.from(s.first_row),
                    .out_type = rows.out_type};
  });
}

template <class ArgsOf>
void Experts::project(ArgsOf args_of) {
  const std::int64_t panels = gemm_panels(args_of(segments_.front()));
  if (panels == 0) return;  // a slice without columns
  const std::int64_t per_task = panels_per_task(panels, pool_.size());
  const std::int64_t tasks_per_segment = ceil_div(panels, per_task);
  const auto num_segments = static_cast<std::int64_t>(segments_.size());
  pool_.parallel_for(
      num_segments * tasks_per_segment, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
        for (std::int64_t task = begin; task < end; ++task) {
          const auto segment = static_cast<std::size_t>(task / tasks_per_segment);
          GemmArgs args = args_of(segments_[segment]);
          args.first_panel = task % tasks_per_segment * per_task;
          args.last_panel = std::min(panels, args.first_panel + per_task);
          args.scratch = scratch_.of(worker);
          kernels_of(pool_).gemm(args);
        }
      });
}

}  // namespace ferry
