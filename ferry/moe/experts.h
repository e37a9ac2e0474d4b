// Experts: the grouped gated FFN over the slots that this rank holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/wire.h"
#include "ferry/moe/parallel_gemm.h"

namespace ferry {

/// How the rows of the local slots lie in what the dispatcher hands over. Row i of slot l is row
/// offsets[l] + i in every one of them.
enum class DispatchFormat : std::uint8_t {
  padded,        ///< [L, cap, H]: offsets[l] = l * cap
  ragged,        ///< expert-major, slots packed one behind the other (aligned)
  row_pointers,  ///< nothing copied: a pointer per row, into peers' memory
};

/// The one argument of every expert computation: rows in, rows out. Borrowed for the call.
struct ExpertRows {
  DispatchFormat format = DispatchFormat::padded;
  std::span<const std::int32_t> counts = {};   ///< [L] rows of each local slot
  std::span<const std::int64_t> offsets = {};  ///< [L] row index of each slot's first row
  RowsView in;                                 ///< [.., hidden] of in_type
  WireType in_type = WireType::f32;            ///< quantised rows as wire.h describes them
  /// A number for each row, same indices, by which the expert multiplies it before anything else;
  /// empty: none.
  std::span<const float> weights = {};
  MutableRowsView out;  ///< [.., hidden] of out_type, same row indices
  DType out_type = DType::f32;
  int hidden = 0;
};

/// One gated FFN: y = down(silu(gate(x)) * up(x)), or as another Gating has it. Gate and up are
/// packed into one matrix of 2 * inter columns, panels alternating gate, up.
struct GatedFfnWeights {
  PackedMatrix gate_up;
  PackedMatrix down;
  bool biased = false;                  ///< also of an empty slot's shapes
  const float* gate_up_bias = nullptr;  ///< as GemmArgs::bias of a gated product
  const float* down_bias = nullptr;     ///< [H]
};

/// Grouped gated FFN. Threads: one call at a time; uses the rank's pool. Owns its scratch, sized at
/// construction for `max_rows` rows over all slots; more are done in turns. Weights are borrowed.
/// Numerics: a row times its weight is rounded to `dtype` once.
class Experts {
 public:
  struct Options {
    int hidden = 0;
    int inter = 0;
    Gating gating = {};
    DType dtype = DType::f32;  ///< of rows, also of those between the two projections
    std::int64_t max_rows = 0;
    bool row_weights = false;  ///< rows come with weights
  };

  Experts(const Options& options, ThreadPool& pool);

  /// REQUIRES: rows.in_type is that of the options, and the activation type of the weights;
  /// weights[l].gate_up.data is not null for every slot l with rows; rows.weights as the options
  /// say.
  void run(const ExpertRows& rows, std::span<const GatedFfnWeights> weights);

 private:
  /// Rows of one slot that are done in one turn.
  struct Segment {
    std::size_t slot = 0;
    std::int64_t first_row = 0;  // of ExpertRows
    std::int64_t count = 0;
    std::int64_t between = 0;  // first row in between_
  };

  void run_turn(const ExpertRows& rows, std::span<const GatedFfnWeights> weights);
  RowsView weigh(const ExpertRows& rows);
  template <class ArgsOf>
  void project(ArgsOf args_of);

  Options options_;
  ThreadPool& pool_;
  Buffer between_;  // [max_rows, inter] of dtype: what gate and up make
  Buffer weighed_;  // [max_rows, hidden] of dtype: rows times their weights
  GemmScratch scratch_;
  std::vector<Segment> segments_;  // of the turn
};

}  // namespace ferry
