// What sampling does with sixteen integers at a time, without any vector instruction: the meaning
// of every operation. sampling_avx2.inl and sampling_avx512.inl offer the same names. Included
// after int_scalar.inl, inside an anonymous namespace.

/// Sums of 64 bits; which lane goes into which does not matter, as they are exact.
struct Sums {
  std::uint64_t sum;
};

/// For each lane whether something holds.
struct Lanes {
  bool lane[16];
};

inline Sums no_sums() { return {0}; }

/// Adds lanes without sign.
inline Sums add_integers(Sums sums, I32x16 x) {
  for (const std::int32_t one : x.lane) sums.sum += static_cast<std::uint32_t>(one);
  return sums;
}

inline std::uint64_t fold_sums(Sums sums) { return sums.sum; }

inline I32x16 splat_integer(std::uint32_t x) {
  I32x16 out;
  for (std::int32_t& one : out.lane) one = static_cast<std::int32_t>(x);
  return out;
}

inline I32x16 load_integers(const std::uint32_t* p) {
  I32x16 out;
  std::memcpy(out.lane, p, sizeof out.lane);
  return out;
}

inline void store_integers(std::uint32_t* p, I32x16 x) { std::memcpy(p, x.lane, sizeof x.lane); }

/// Nearest even. REQUIRES: magnitudes below 2^31.
inline I32x16 to_integers(F32x16 x) {
  I32x16 out;
  for (int j = 0; j < 16; ++j)
    out.lane[j] = static_cast<std::int32_t>(std::nearbyint(static_cast<double>(x.lane[j])));
  return out;
}

/// Nearest even.
inline F32x16 from_integers(I32x16 x) {
  return each_lane([&](int j) { return static_cast<float>(x.lane[j]); });
}

/// Where a > b, both with a sign.
inline Lanes where_greater(I32x16 a, I32x16 b) {
  Lanes out;
  for (int j = 0; j < 16; ++j) out.lane[j] = a.lane[j] > b.lane[j];
  return out;
}

/// Where `a` holds and `b` does not.
inline Lanes without(Lanes a, Lanes b) {
  for (int j = 0; j < 16; ++j) a.lane[j] = a.lane[j] && !b.lane[j];
  return a;
}

/// Lanes where it does not hold are 0.
inline I32x16 only(Lanes lanes, I32x16 x) {
  for (int j = 0; j < 16; ++j) x.lane[j] = lanes.lane[j] ? x.lane[j] : 0;
  return x;
}

/// One more where it holds.
inline I32x16 count_lanes(I32x16 counts, Lanes lanes) {
  for (int j = 0; j < 16; ++j) counts.lane[j] += lanes.lane[j] ? 1 : 0;
  return counts;
}

/// Writes the lanes where it holds one behind the other and returns how many; up to sixteen
/// elements behind `p` may be overwritten.
inline int store_only(std::uint32_t* p, Lanes lanes, I32x16 x) {
  int n = 0;
  for (int j = 0; j < 16; ++j)
    if (lanes.lane[j]) p[n++] = static_cast<std::uint32_t>(x.lane[j]);
  return n;
}
