// Which attention heads each member of a group computes that shares out attention.
#pragma once

#include <array>
#include <cstdint>

#include "ferry/compute/tensor_group.h"

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

/// The columns of this share in a matrix of all query heads', all keys' and all values' columns.
std::array<ColumnRange, 3> head_columns(const HeadShare& share,
                                        int heads,
                                        int kv_heads,
                                        std::int64_t head_dim);

}  // namespace ferry
