// Attention of one query head, one source for every instruction set.
// Included after row_ops.inl, inside an anonymous namespace.

/// Scores of N positions from `first` on: several at once hide the latency of the chains.
template <class Row, int N>
void score_positions(const AttendArgs& args, std::int64_t first) {
  const std::byte* keys[N];
  F32x16 sum[N];
  for (int u = 0; u < N; ++u) {
    keys[u] = row_of(args.keys, first + u);
    sum[u] = splat(0.0F);
  }
  for_sixteens(args.head_dim, [&](std::int64_t i, int count) {
    const F32x16 query = F32Row::load_at(bytes_of(args.query), i, count);
    for (int u = 0; u < N; ++u) sum[u] = fma(query, Row::load_at(keys[u], i, count), sum[u]);
  });
  for (int u = 0; u < N; ++u) args.scores[first + u] = fold_add(sum[u]) * args.scale;
}

/// Elements [first, first + 16 * V) of the output; `last` of them in the last sixteen.
template <class Row, int V>
void sum_values(const AttendArgs& args, std::int64_t first, int last) {
  F32x16 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = splat(0.0F);
  for (std::int64_t p = 0; p < args.length; ++p) {
    const F32x16 weight = splat(args.scores[p]);
    const std::byte* value = row_of(args.values, p);
    for (int v = 0; v < V; ++v)
      sum[v] = fma(weight, Row::load_at(value, first + 16 * v, v + 1 < V ? 16 : last), sum[v]);
  }
  for (int v = 0; v < V; ++v)
    F32Row::store_at(bytes_of(args.out), first + 16 * v, sum[v], v + 1 < V ? 16 : last);
}

inline void attend(const AttendArgs& args) {
  with_row_type(args.kv_type, [&]<class Row>(Row) {
    std::int64_t p = 0;
    for (; p + 4 <= args.length; p += 4) score_positions<Row, 4>(args, p);
    for (; p < args.length; ++p) score_positions<Row, 1>(args, p);
    softmax_with_sink(args.scores, args.length, args.sink);
    std::int64_t i = 0;
    for (; i + 128 <= args.value_dim; i += 128) sum_values<Row, 8>(args, i, 16);
    for (; i + 64 <= args.value_dim; i += 64) sum_values<Row, 4>(args, i, 16);
    for (; i + 32 <= args.value_dim; i += 32) sum_values<Row, 2>(args, i, 16);
    for_sixteens(args.value_dim - i,
                 [&](std::int64_t j, int count) { sum_values<Row, 1>(args, i + j, count); });
  });
}
