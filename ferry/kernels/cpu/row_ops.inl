// The row operations of the kernel table, one source for every instruction set.
// Included after math.inl, inside an anonymous namespace.

inline void scale(const float* x, float factor, float* out, std::int64_t n) {
  const F32x16 f = splat(factor);
  for_sixteens(n, [&](std::int64_t i, int count) {
    F32Row::store_at(bytes_of(out), i, mul(F32Row::load_at(bytes_of(x), i, count), f), count);
  });
}

inline void sigmoid_row(const float* x, float* out, std::int64_t n) {
  for_sixteens(n, [&](std::int64_t i, int count) {
    F32Row::store_at(bytes_of(out), i, sigmoid(F32Row::load_at(bytes_of(x), i, count)), count);
  });
}

inline void add_row(std::byte* x, DType type, const float* y, std::int64_t n) {
  with_row_type(type, [&]<class Row>(Row) {
    for_sixteens(n, [&](std::int64_t i, int count) {
      const F32x16 sum = add(Row::load_at(x, i, count), F32Row::load_at(bytes_of(y), i, count));
      Row::store_at(x, i, sum, count);
    });
  });
}

inline void convert(
    const std::byte* in, DType in_type, std::byte* out, DType out_type, std::int64_t n) {
  if (n <= 0) return;
  if (in_type == out_type) {
    std::memmove(out, in, static_cast<std::size_t>(n) * (in_type == DType::f32 ? 4 : 2));
    return;
  }
  with_row_type(in_type, [&]<class In>(In) {
    with_row_type(out_type, [&]<class Out>(Out) {
      for_sixteens(n, [&](std::int64_t i, int count) {
        Out::store_at(out, i, In::load_at(in, i, count), count);
      });
    });
  });
}

/// Whole lines of the target only, so that each leaves the core in one piece.
inline void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  if (bytes < head + kLine) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  std::size_t done = head;
  for (; done + kLine <= bytes; done += kLine) stream_line(to + done, from + done);
  std::memcpy(to + done, from + done, bytes - done);
}

inline void rms_norm(const std::byte* x,
                     DType type,
                     const float* weight,
                     float eps,
                     std::byte* out,
                     std::int64_t n) {
  with_row_type(type, [&]<class Row>(Row) {
    F32x16 squares = splat(0.0F);
    for_sixteens(n, [&](std::int64_t i, int count) {
      const F32x16 v = Row::load_at(x, i, count);
      squares = fma(v, v, squares);
    });
    const F32x16 mean = div(splat(fold_add(squares)), splat(static_cast<float>(n)));
    const F32x16 inverse = div(splat(1.0F), square_root(add(mean, splat(eps))));
    for_sixteens(n, [&](std::int64_t i, int count) {
      const F32x16 normed = mul(Row::load_at(x, i, count), inverse);
      Row::store_at(out, i, mul(normed, F32Row::load_at(bytes_of(weight), i, count)), count);
    });
  });
}

inline void rope(float* x, const float* cos, const float* sin, std::int64_t n) {
  std::byte* low = bytes_of(x);
  std::byte* high = bytes_of(x + n / 2);
  for_sixteens(n / 2, [&](std::int64_t i, int count) {
    const F32x16 c = F32Row::load_at(bytes_of(cos), i, count);
    const F32x16 s = F32Row::load_at(bytes_of(sin), i, count);
    const F32x16 x0 = F32Row::load_at(low, i, count);
    const F32x16 x1 = F32Row::load_at(high, i, count);
    F32Row::store_at(low, i, fms(x0, c, mul(x1, s)), count);
    F32Row::store_at(high, i, fma(x1, c, mul(x0, s)), count);
  });
}

/// Over n numbers and `sink`, of which the n come back; kNoSink changes nothing.
inline void softmax_with_sink(float* x, std::int64_t n, float sink) {
  if (n <= 0) return;
  std::byte* row = bytes_of(x);
  F32x16 peak = splat(x[0]);
  for_sixteens(n, [&](std::int64_t i, int count) {
    peak = max(first_lanes(count, F32Row::load_at(row, i, count), peak), peak);
  });
  peak = max(splat(sink), splat(fold_max(peak)));
  F32x16 sum = splat(0.0F);
  for_sixteens(n, [&](std::int64_t i, int count) {
    const F32x16 e = exp(sub(F32Row::load_at(row, i, count), peak));
    sum = add(sum, first_lanes(count, e, splat(0.0F)));
    F32Row::store_at(row, i, e, count);
  });
  sum = add(splat(fold_add(sum)), exp(sub(splat(sink), peak)));
  for_sixteens(n, [&](std::int64_t i, int count) {
    F32Row::store_at(row, i, div(F32Row::load_at(row, i, count), sum), count);
  });
}

inline void softmax(float* x, std::int64_t n) { softmax_with_sink(x, n, kNoSink); }
