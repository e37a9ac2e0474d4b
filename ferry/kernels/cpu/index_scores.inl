// How much each position matters to one token of a model with an indexer: the heads' products with
// the keys as attention has them (attend.inl), then a chain over the heads.
// Included after attend.inl, inside an anonymous namespace.

/// Positions of a block for one head, and room for what score_sixteen writes behind them.
constexpr std::int64_t kIndexStride = kBlockPositions + 16;

/// scores += weight * max(0, products), position by position.
inline void add_head(const float* products, float weight, std::int64_t n, float* scores) {
  const F32x16 w = splat(weight);
  for_sixteens(n, [&](std::int64_t i, int count) {
    const F32x16 product = max(splat(0.0F), F32Row::load_at(bytes_of(products), i, count));
    const F32x16 sum = F32Row::load_at(bytes_of(scores), i, count);
    F32Row::store_at(bytes_of(scores), i, fma(w, product, sum), count);
  });
}

template <class Format>
void index_block(const IndexArgs& args, const Positions& block, float* scores) {
  AttendQuery heads[Tiling::kQueries];
  AttendArgs products;
  products.queries = heads;
  products.keys = args.keys;
  products.values = args.keys;
  products.page_shift = args.page_shift;
  products.head_dim = args.dim;
  products.scale = args.scale;
  const Runs runs(products, block);
  const std::int64_t n = block.end - block.begin;
  for (std::int64_t i = 0; i < n; ++i) scores[i] = 0.0F;
  alignas(64) float room[Tiling::kQueries * kIndexStride];
  const ScoreRows rows{room, block.begin, kIndexStride};
  for_queries<Tiling::kQueries>(
      0, args.heads, [&]<int R>(std::integral_constant<int, R>, std::int64_t first) {
        for (int r = 0; r < R; ++r) heads[r].query = args.queries + (first + r) * args.dim;
        for (const Run& run : runs) {
          const Positions& part = run.positions;
          for (std::int64_t p = part.begin; p < part.end; p += 16 / R)
            score_sixteen<Format, R>(products, rows, 0, run, p, part.end);
        }
        for (int r = 0; r < R; ++r)
          add_head(room + r * kIndexStride, args.weights[first + r], n, scores);
      });
}

inline void index_scores(const IndexArgs& args) {
  with_row_type(args.key_type, [&]<class Row>(Row) {
    for (std::int64_t p = args.begin; p < args.end; p += kBlockPositions)
      index_block<Plain<Row>>(
          args, {p, smaller(p + kBlockPositions, args.end)}, args.scores + (p - args.begin));
  });
}
