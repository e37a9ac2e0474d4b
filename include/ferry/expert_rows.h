// The rows that dispatch hands to experts, and where they write: the one argument of every expert
// computation, ours or a caller's.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "ferry/memory_kind.h"
#include "ferry/types.h"
#include "ferry/wire.h"

namespace ferry {

/// How the rows of the local slots lie in what the dispatcher hands over. Row i of slot l is row
/// offsets[l] + i in every one of them.
enum class DispatchFormat : std::uint8_t {
  padded,        ///< [L, cap, H]: offsets[l] = l * cap
  ragged,        ///< expert-major, slots packed one behind the other (aligned)
  row_pointers,  ///< nothing copied: a pointer per row, into peers' memory
};

/// What some experts can work with. The default is what ferry's own can, and any ExpertFn that goes
/// by ExpertRows.
struct ExpertsContract {
  std::string_view name = "experts";
  bool padded = true;
  bool ragged = true;
  bool row_pointers = true;
  bool in_tiles = true;  ///< may be called several times an exchange
};

/// The one argument of every expert computation: rows in, rows out. Borrowed for the call.
struct ExpertRows {
  DispatchFormat format = DispatchFormat::padded;
  /// Where everything below lies. With a queue: valid for work on that queue; the host may read it
  /// once the plane is synchronised.
  MemoryPlace place = {};
  std::span<const std::int32_t> counts = {};   ///< [L] rows of each local slot
  std::span<const std::int64_t> offsets = {};  ///< [L] row index of each slot's first row
  RowsView in;                                 ///< [.., hidden] of in_type
  WireType in_type = WireType::f32;            ///< quantised rows as wire.h describes them
  /// A number for each row, same indices, by which the expert multiplies it before anything else;
  /// empty: none.
  std::span<const float> weights = {};
  MutableRowsView out;  ///< [.., columns of a result] of out_type, same row indices
  DType out_type = DType::f32;
  int hidden = 0;
};

}  // namespace ferry
