// Which attention heads each member of a group computes that shares out attention.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "ferry/compute/tensor_group.h"
#include "ferry/core/types.h"

namespace ferry {

/// Heads [begin, end).
struct HeadRange {
  int begin = 0;
  int end = 0;

  int size() const { return end - begin; }
};

/// One member's query heads, and the key-value heads that these read.
struct HeadShare {
  HeadRange query;
  HeadRange kv;
};

/// Members take whole key-value heads with the query heads that read them, as evenly as these
/// allow. Where there are fewer key-value heads than members, query heads are dealt out instead,
/// and members that read the same key-value head each keep it. A member may have none. Query heads
/// of consecutive members follow each other. REQUIRES: heads % kv_heads == 0.
HeadShare head_share(int heads, int kv_heads, const GroupMember& who);

/// The panels that hold any of these columns, which rise; a panel that two ranges touch belongs to
/// the first.
template <std::size_t N>
std::array<PanelRange, N> covering_panels(const std::array<ColumnRange, N>& columns) {
  std::array<PanelRange, N> panels;
  std::int64_t end = 0;
  for (std::size_t i = 0; i < N; ++i) {
    panels[i].begin = std::max(end, columns[i].begin / kPanelColumns);
    panels[i].end = panels[i].begin;
    if (columns[i].size() > 0)
      panels[i].end = std::max(panels[i].end, ceil_div(columns[i].end, kPanelColumns));
    end = panels[i].end;
  }
  return panels;
}

/// The panels of a matrix of all query heads', all keys' and all values' columns in which this
/// share has any.
std::array<PanelRange, 3> head_panels(const HeadShare& share,
                                      int heads,
                                      int kv_heads,
                                      std::int64_t head_dim);

}  // namespace ferry
