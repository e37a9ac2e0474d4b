// One token of a gated delta net, one source for every instruction set.
// Included after math.inl, inside an anonymous namespace.

/// `kVectors` times 16 columns from `j` on; of one vector, `count` columns.
template <int kVectors>
void delta_columns(const DeltaArgs& args, std::int64_t j, int count) {
  const F32x16 decay = splat(args.decay);
  const auto held = [&](std::int64_t i, int v) {
    const float* row = args.from + i * args.value_dim;
    return mul(F32Row::load_at(bytes_of(row), j + 16 * v, count), decay);
  };
  F32x16 change[kVectors];
  for (int v = 0; v < kVectors; ++v) change[v] = splat(0.0F);
  for (std::int64_t i = 0; i < args.key_dim; ++i) {
    const F32x16 key = splat(args.key[i]);
    for (int v = 0; v < kVectors; ++v) change[v] = fma(held(i, v), key, change[v]);
  }
  for (int v = 0; v < kVectors; ++v) {
    const F32x16 value = F32Row::load_at(bytes_of(args.value), j + 16 * v, count);
    change[v] = mul(sub(value, change[v]), splat(args.beta));
  }
  F32x16 out[kVectors];
  for (int v = 0; v < kVectors; ++v) out[v] = splat(0.0F);
  for (std::int64_t i = 0; i < args.key_dim; ++i) {
    const F32x16 key = splat(args.key[i]);
    const F32x16 query = splat(args.query[i]);
    for (int v = 0; v < kVectors; ++v) {
      const F32x16 next = fma(key, change[v], held(i, v));
      F32Row::store_at(bytes_of(args.to + i * args.value_dim), j + 16 * v, next, count);
      out[v] = fma(next, query, out[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v)
    F32Row::store_at(bytes_of(args.out), j + 16 * v, out[v], count);
}

inline void delta_rule(const DeltaArgs& args) {
  constexpr int kVectors = 4;
  std::int64_t j = 0;
  for (; j + 16 * kVectors <= args.value_dim; j += 16 * kVectors)
    delta_columns<kVectors>(args, j, 16);
  for (; j < args.value_dim; j += 16)
    delta_columns<1>(args, j, args.value_dim - j < 16 ? static_cast<int>(args.value_dim - j) : 16);
}
