// What sampling does with sixteen integers in four NEON registers; sampling_scalar.inl says what
// each operation means. Included after int_neon.inl, inside an anonymous namespace.

struct Sums {
  uint64x2_t v;
};

struct Lanes {
  uint32x4_t q0, q1, q2, q3;  // all ones where it holds
};

inline Sums no_sums() { return {vdupq_n_u64(0)}; }

inline uint32x4_t without_sign(int32x4_t x) { return vreinterpretq_u32_s32(x); }

inline Sums add_integers(Sums sums, I32x16 x) {
  uint64x2_t v = vpadalq_u32(sums.v, without_sign(x.q0));
  v = vpadalq_u32(v, without_sign(x.q1));
  v = vpadalq_u32(v, without_sign(x.q2));
  return {vpadalq_u32(v, without_sign(x.q3))};
}

inline std::uint64_t fold_sums(Sums sums) { return vaddvq_u64(sums.v); }

inline I32x16 splat_integer(std::uint32_t x) {
  const int32x4_t all = vreinterpretq_s32_u32(vdupq_n_u32(x));
  return {all, all, all, all};
}

inline I32x16 load_integers(const std::uint32_t* p) {
  const auto four = [&](int i) { return vreinterpretq_s32_u32(vld1q_u32(p + i)); };
  return {four(0), four(4), four(8), four(12)};
}

inline void store_integers(std::uint32_t* p, I32x16 x) {
  vst1q_u32(p, without_sign(x.q0));
  vst1q_u32(p + 4, without_sign(x.q1));
  vst1q_u32(p + 8, without_sign(x.q2));
  vst1q_u32(p + 12, without_sign(x.q3));
}

inline I32x16 to_integers(F32x16 x) {
  return {vcvtnq_s32_f32(x.q0), vcvtnq_s32_f32(x.q1), vcvtnq_s32_f32(x.q2), vcvtnq_s32_f32(x.q3)};
}

inline F32x16 from_integers(I32x16 x) { return to_floats(x); }

inline Lanes where_greater(I32x16 a, I32x16 b) {
  return {
      vcgtq_s32(a.q0, b.q0), vcgtq_s32(a.q1, b.q1), vcgtq_s32(a.q2, b.q2), vcgtq_s32(a.q3, b.q3)};
}

inline Lanes without(Lanes a, Lanes b) {
  return {
      vbicq_u32(a.q0, b.q0), vbicq_u32(a.q1, b.q1), vbicq_u32(a.q2, b.q2), vbicq_u32(a.q3, b.q3)};
}

inline I32x16 only(Lanes lanes, I32x16 x) {
  const auto both = [](uint32x4_t a, int32x4_t b) {
    return vandq_s32(vreinterpretq_s32_u32(a), b);
  };
  return {both(lanes.q0, x.q0), both(lanes.q1, x.q1), both(lanes.q2, x.q2), both(lanes.q3, x.q3)};
}

inline I32x16 count_lanes(I32x16 counts, Lanes lanes) {
  const auto less = [](int32x4_t a, uint32x4_t b) {
    return vsubq_s32(a, vreinterpretq_s32_u32(b));
  };
  return {less(counts.q0, lanes.q0),
          less(counts.q1, lanes.q1),
          less(counts.q2, lanes.q2),
          less(counts.q3, lanes.q3)};
}

/// For each set of four lanes: the bytes of those that come first, and how many they are.
struct Packing {
  std::uint8_t from[16][16];
  std::uint8_t count[16];
};

constexpr Packing packing_of_four() {
  Packing all{};
  for (int set = 0; set < 16; ++set) {
    std::uint8_t n = 0;
    for (int j = 0; j < 4; ++j) {
      if ((set >> j & 1) == 0) continue;
      for (int byte = 0; byte < 4; ++byte)
        all.from[set][4 * n + byte] = static_cast<std::uint8_t>(4 * j + byte);
      ++n;
    }
    all.count[set] = n;
  }
  return all;
}

constexpr Packing kPacking = packing_of_four();

inline int store_only_four(std::uint32_t* p, uint32x4_t lanes, int32x4_t x) {
  constexpr std::uint32_t kBits[4] = {1, 2, 4, 8};
  const std::uint32_t set = vaddvq_u32(vandq_u32(lanes, vld1q_u32(kBits)));
  const uint8x16_t packed = vqtbl1q_u8(vreinterpretq_u8_s32(x), vld1q_u8(kPacking.from[set]));
  vst1q_u32(p, vreinterpretq_u32_u8(packed));
  return kPacking.count[set];
}

inline int store_only(std::uint32_t* p, Lanes lanes, I32x16 x) {
  int n = store_only_four(p, lanes.q0, x.q0);
  n += store_only_four(p + n, lanes.q1, x.q1);
  n += store_only_four(p + n, lanes.q2, x.q2);
  return n + store_only_four(p + n, lanes.q3, x.q3);
}
