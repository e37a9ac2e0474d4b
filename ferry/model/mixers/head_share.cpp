#include "ferry/model/mixers/head_share.h"

#include "ferry/core/types.h"

namespace ferry {

HeadShare head_share(int heads, int kv_heads, const GroupMember& who) {
  const int readers = heads / kv_heads;  // of one key-value head
  const auto part = [&](int n) {
    return HeadRange{n * who.member / who.tp, n * (who.member + 1) / who.tp};
  };
  if (kv_heads >= who.tp) {
    const HeadRange kv = part(kv_heads);
    return {{kv.begin * readers, kv.end * readers}, kv};
  }
  const HeadRange query = part(heads);
  if (query.size() == 0) return {query, {}};
  return {query, {query.begin / readers, static_cast<int>(ceil_div(query.end, readers))}};
}

std::array<ColumnRange, 3> head_columns(const HeadShare& share,
                                        int heads,
                                        int kv_heads,
                                        std::int64_t head_dim) {
  const auto columns = [&](std::int64_t first_head, const HeadRange& own) {
    return ColumnRange{(first_head + own.begin) * head_dim, (first_head + own.end) * head_dim};
  };
  return {columns(0, share.query),
          columns(heads, share.kv),
          columns(std::int64_t{heads} + kv_heads, share.kv)};
}

}  // namespace ferry
