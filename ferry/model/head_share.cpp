#include "ferry/model/head_share.h"

#include "ferry/core/types.h"

namespace ferry {

HeadShare head_share(int heads, int kv_heads, const GroupMember& who) {
  const int readers = heads / kv_heads;  // of one key-value head
  const auto part = [&](int n) {
    return HeadRange{n * who.member / who.members, n * (who.member + 1) / who.members};
  };
  if (kv_heads >= who.members) {
    const HeadRange kv = part(kv_heads);
    return {{kv.begin * readers, kv.end * readers}, kv};
  }
  const HeadRange query = part(heads);
  if (query.size() == 0) return {query, {}};
  return {query, {query.begin / readers, static_cast<int>(ceil_div(query.end, readers))}};
}

std::array<PanelRange, 3> head_panels(const HeadShare& share,
                                      int heads,
                                      int kv_heads,
                                      std::int64_t head_dim) {
  const auto columns = [&](std::int64_t first_head, const HeadRange& own) {
    return ColumnRange{(first_head + own.begin) * head_dim, (first_head + own.end) * head_dim};
  };
  return covering_panels(std::array{columns(0, share.query),
                                    columns(heads, share.kv),
                                    columns(std::int64_t{heads} + kv_heads, share.kv)});
}

HeadRange latent_heads(int heads, const GroupMember& who) {
  return head_share(heads, heads, who).query;
}

std::array<PanelRange, 2> latent_down_panels(const ModelConfig& config, const HeadRange& own) {
  const LatentConfig& latent = config.latent;
  const std::int64_t head_dim = config.head_dim;
  const bool compressed = latent.query_rank > 0;
  const std::int64_t queries = compressed ? latent.query_rank : config.heads * head_dim;
  const ColumnRange own_queries =
      compressed ? ColumnRange{0, queries} : ColumnRange{own.begin * head_dim, own.end * head_dim};
  return covering_panels(
      std::array{own_queries, ColumnRange{queries, queries + latent.rank + config.rope.dim}});
}

std::array<PanelRange, 1> latent_query_panels(const ModelConfig& config, const HeadRange& own) {
  const std::int64_t head_dim = config.head_dim;
  return covering_panels(std::array{ColumnRange{own.begin * head_dim, own.end * head_dim}});
}

}  // namespace ferry
