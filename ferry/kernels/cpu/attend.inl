// Attention of some queries over the keys and values that they share, one source for every
// instruction set. Keys and values pass by in blocks of positions that stay in the L1 cache while
// all queries use them; of each block, registers hold the sums of a few queries at a time. Each sum
// has the order that a query by itself has, and no query meets a position that it does not see
// (but for scores that nobody reads).
// Included after gemm_common.inl, inside an anonymous namespace whose `struct Tiling` has:
//   kQueries: queries whose sums are held in registers together
//   kSums: sums of 16 lanes held in registers; both powers of two, no more than 16

constexpr std::int64_t kBlockPositions = 128;

struct Positions {
  std::int64_t begin;
  std::int64_t end;
};

inline Positions common(const Positions& a, const Positions& b) {
  return {larger(a.begin, b.begin), smaller(a.end, b.end)};
}

inline Positions seen(const AttendQuery& query) { return {query.begin, query.end}; }

/// Those that any of the queries sees; REQUIRES: at least one query.
inline Positions seen_by_any(const AttendQuery* queries, std::int64_t count) {
  Positions all = seen(queries[0]);
  for (std::int64_t q = 1; q < count; ++q)
    all = {smaller(all.begin, queries[q].begin), larger(all.end, queries[q].end)};
  return all;
}

/// Positions whose keys, and whose values, follow each other in memory; the rows of the first.
struct Run {
  Positions positions;
  const std::byte* keys;
  const std::byte* values;
};

/// A block's positions as few runs. Pages that follow each other in memory are one.
class Runs {
 public:
  Runs(const AttendArgs& args, const Positions& block) {
    for (std::int64_t p = block.begin; p < block.end;) {
      const std::int64_t page = p >> args.page_shift;
      const std::int64_t first = page << args.page_shift;
      const std::int64_t end = smaller(block.end, first + (std::int64_t{1} << args.page_shift));
      const std::byte* keys = row(args.keys, page, p - first);
      const std::byte* values = row(args.values, page, p - first);
      if (count_ > 0 && follows(args, runs_[count_ - 1], keys, values))
        runs_[count_ - 1].positions.end = end;
      else
        runs_[count_++] = {{p, end}, keys, values};
      p = end;
    }
  }

  const Run* begin() const { return runs_; }

  const Run* end() const { return runs_ + count_; }

 private:
  static const std::byte* row(const PagedRows& rows, std::int64_t page, std::int64_t i) {
    return rows.pages[page] + rows.offset + i * rows.stride;
  }

  static bool follows(const AttendArgs& args,
                      const Run& run,
                      const std::byte* keys,
                      const std::byte* values) {
    const std::int64_t n = run.positions.end - run.positions.begin;
    return keys == run.keys + n * args.keys.stride && values == run.values + n * args.values.stride;
  }

  Run runs_[kBlockPositions];
  int count_ = 0;
};

/// The scores of the args' query number `query`, that of position `first` at [0].
struct ScoreRows {
  float* scores;
  std::int64_t first;
  std::int64_t stride;

  float* at(std::int64_t query, std::int64_t position) const {
    return scores + query * stride + (position - first);
  }
};

inline ScoreRows score_rows(const AttendArgs& args) {
  return {args.scores, seen_by_any(args.queries, args.num_queries).begin, args.score_stride};
}

/// Sums before their lanes are folded: query r with key u goes to sums[r * sum_step + u].
template <class Format, int R, int N>
void dots(const AttendArgs& args,
          std::int64_t query,
          const std::byte* const* keys,
          F32x16* sums,
          int sum_step) {
  F32x16 sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < N; ++u) sum[r][u] = splat(0.0F);
  const std::int64_t block = Format::block(args.head_dim);
  for (std::int64_t first = 0; first < args.head_dim; first += block) {
    typename Format::Reader reader[N];
    for (int u = 0; u < N; ++u) reader[u] = typename Format::Reader(keys[u], args.head_dim, first);
    for_sixteens(smaller(block, args.head_dim - first), [&](std::int64_t i, int count) {
      F32x16 x[R];
      for (int r = 0; r < R; ++r)
        x[r] = F32Row::load_at(bytes_of(args.queries[query + r].query), first + i, count);
      for (int u = 0; u < N; ++u) {
        const F32x16 key = reader[u].load_at(first + i, count);
        for (int r = 0; r < R; ++r) sum[r][u] = fma(x[r], key, sum[r][u]);
      }
    });
  }
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < N; ++u) sums[r * sum_step + u] = sum[r][u];
}

/// Scores of R queries from `query` on at positions [first, first + 16 / R) of a run; those from
/// `end` on are the last position's once more: of the next run, which comes later, or in the room
/// behind each row of scores.
template <class Format, int R>
void score_sixteen(const AttendArgs& args,
                   const ScoreRows& rows,
                   std::int64_t query,
                   const Run& run,
                   std::int64_t first,
                   std::int64_t end) {
  constexpr int kPositions = 16 / R;
  constexpr int kAtOnce = Tiling::kSums / R;
  const std::byte* keys[kPositions];
  for (int u = 0; u < kPositions; ++u)
    keys[u] = run.keys + (smaller(first + u, end - 1) - run.positions.begin) * args.keys.stride;
  F32x16 sums[16];
  for (int u = 0; u < kPositions; u += kAtOnce)
    dots<Format, R, kAtOnce>(args, query, keys + u, sums + u, kPositions);
  alignas(64) float scores[16];
  store(scores, mul(fold_add_sixteen(sums), splat(args.scale)));
  for (int r = 0; r < R; ++r)
    std::memcpy(rows.at(query + r, first), scores + r * kPositions, kPositions * sizeof(float));
}

/// Of a quantised row, that share a scale. V sixteens begin at a multiple of V of them, so that a
/// scale ends within them at multiples of this, if at all.
constexpr int kSixteensOfBlock = static_cast<int>(kWireBlock / 16);

/// Adds the values of `part` to elements [first, first + 16 * V) of R queries' results; `last` of
/// them in the last sixteen.
template <class Format, int R, int V>
// NOLINTNEXTLINE(readability-function-size): a bundle of them would be made for each call
void add_some_values(const AttendArgs& args,
                     const ScoreRows& rows,
                     std::int64_t query,
                     const Runs& runs,
                     const Positions& part,
                     std::int64_t first,
                     int last) {
  const auto count = [&](int v) { return v + 1 < V ? 16 : last; };
  F32x16 sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v)
      sum[r][v] = F32Row::load_at(bytes_of(args.queries[query + r].out), first + 16 * v, count(v));
  }
  for (const Run& run : runs) {
    const Positions here = common(part, run.positions);
    for (std::int64_t p = here.begin; p < here.end; ++p) {
      const std::byte* value = run.values + (p - run.positions.begin) * args.values.stride;
      F32x16 weight[R];
      for (int r = 0; r < R; ++r) weight[r] = splat(*rows.at(query + r, p));
      typename Format::Reader reader;
      for (int v = 0; v < V; ++v) {
        if (v % kSixteensOfBlock == 0)
          reader = typename Format::Reader(value, args.value_row, first + 16 * v);
        const F32x16 x = reader.load_at(first + 16 * v, count(v));
        for (int r = 0; r < R; ++r) sum[r][v] = fma(weight[r], x, sum[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v)
      F32Row::store_at(bytes_of(args.queries[query + r].out), first + 16 * v, sum[r][v], count(v));
  }
}

/// All elements from `first` on, V sixteens at a time while there are as many.
template <class Format, int R, int V>
void add_values(const AttendArgs& args,
                const ScoreRows& rows,
                std::int64_t query,
                const Runs& runs,
                const Positions& part,
                std::int64_t first = 0) {
  if (part.begin >= part.end) return;
  for (; first + 16 * V <= args.value_dim; first += 16 * V)
    add_some_values<Format, R, V>(args, rows, query, runs, part, first, 16);
  if constexpr (V > 1)
    add_values<Format, R, V / 2>(args, rows, query, runs, part, first);
  else if (first < args.value_dim)
    add_some_values<Format, R, 1>(
        args, rows, query, runs, part, first, static_cast<int>(args.value_dim - first));
}

/// R queries' part of a block: positions that all of them see together, what lies before and
/// behind query by query.
template <class Format, int R>
void add_block(const AttendArgs& args,
               const ScoreRows& rows,
               std::int64_t query,
               const Runs& runs,
               const Positions& block) {
  Positions all = block;
  for (int r = 0; r < R; ++r) all = common(all, seen(args.queries[query + r]));
  if (all.begin >= all.end) all = {block.end, block.end};
  for (int r = 0; R > 1 && r < R; ++r)
    add_values<Format, 1, Tiling::kSums>(
        args,
        rows,
        query + r,
        runs,
        common(seen(args.queries[query + r]), {block.begin, all.begin}));
  add_values<Format, R, Tiling::kSums / R>(args, rows, query, runs, all);
  for (int r = 0; R > 1 && r < R; ++r)
    add_values<Format, 1, Tiling::kSums>(
        args, rows, query + r, runs, common(seen(args.queries[query + r]), {all.end, block.end}));
}

/// Calls body(number of queries, first of them), as many queries at a time as registers hold.
template <int R, class Body>
void for_queries(std::int64_t first, std::int64_t count, Body body) {
  for (; first + R <= count; first += R) body(std::integral_constant<int, R>{}, first);
  if constexpr (R > 1) for_queries<R / 2>(first, count, body);
}

template <class Format>
void attend_rows(const AttendArgs& args) {
  const ScoreRows rows = score_rows(args);
  const Positions all = seen_by_any(args.queries, args.num_queries);
  const auto for_blocks = [&](auto body) {
    for (std::int64_t p = all.begin; p < all.end; p += kBlockPositions) {
      const Positions block{p, smaller(p + kBlockPositions, all.end)};
      const Runs runs(args, block);
      for_queries<Tiling::kQueries>(
          0, args.num_queries, [&](auto r, std::int64_t query) { body(r, query, block, runs); });
    }
  };
  for_blocks([&]<int R>(std::integral_constant<int, R>,
                        std::int64_t query,
                        const Positions& block,
                        const Runs& runs) {
    const Positions seen_here = common(block, seen_by_any(args.queries + query, R));
    for (const Run& run : runs) {
      const Positions part = common(seen_here, run.positions);
      for (std::int64_t p = part.begin; p < part.end; p += 16 / R)
        score_sixteen<Format, R>(args, rows, query, run, p, part.end);
    }
  });
  for (std::int64_t q = 0; q < args.num_queries; ++q) {
    const AttendQuery& query = args.queries[q];
    softmax_with_sink(rows.at(q, query.begin), query.end - query.begin, query.sink);
    for_sixteens(args.value_dim, [&](std::int64_t i, int count) {
      F32Row::store_at(bytes_of(query.out), i, splat(0.0F), count);
    });
  }
  for_blocks(
      [&]<int R>(std::integral_constant<int, R>,
                 std::int64_t query,
                 const Positions& block,
                 const Runs& runs) { add_block<Format, R>(args, rows, query, runs, block); });
}

inline void attend(const AttendArgs& args) {
  if (args.num_queries == 0) return;
  if (args.kv_type == WireType::f32)
    attend_rows<Plain<F32Row>>(args);
  else if (args.kv_type == WireType::bf16)
    attend_rows<Plain<Bf16Row>>(args);
  else if (args.kv_type == WireType::fp8)
    attend_rows<Quantized<Fp8Bytes, F32Scales, false>>(args);
  else
    attend_rows<Quantized<Int8Bytes, F32Scales, false>>(args);
}
