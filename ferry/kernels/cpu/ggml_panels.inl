// Panels of ggml's blocks (packed_matrix.h). One source for every instruction set: included after
// gemm_common.inl and the integers, inside an anonymous namespace. Each number becomes what ggml
// makes of it, rounded once to f32, and then bf16: everything behind this is bf16's.
//
// code * scale is exact in f32 whatever the type, so that one fused operation rounds once.

/// What 16 columns' codes are multiplied by, and what is then taken off; for one or two parts of
/// kBf16KBlock.
template <int Parts>
struct GgmlFactor {
  F32x16 scale[Parts];
  F32x16 least[Parts];
};

static_assert(kGgmlGroup == kBf16KBlock);

/// Rounded to bf16, nearest even, as f32: what is left of 16 bits more when they are taken off
/// again (Veltkamp's splitting). Two operations less than with integers. REQUIRES: below 2^111, and
/// no denormal.
inline F32x16 as_bf16(F32x16 x) {
  const F32x16 more = mul(x, splat(65537.0F));
  return sub(more, sub(more, x));
}

/// Codes of four bits. kPairs: loaded at once.
struct FourBits {
  static constexpr int kPairs = 4;

  static std::int64_t bytes(std::int64_t k) { return k * (kPanelColumns / 2); }

  static void load(const std::byte* p, Pairs (&out)[kPairs]) {
    for (int pair = 0; pair < kPairs; ++pair) {
      const I32x16 both = widen_bytes(p + pair * kPanelColumns);
      out[pair] = {to_floats(masked(both, 15)), to_floats(moved<-4>(both))};
    }
  }
};

/// The same, which stand for other numbers.
struct NonLinearFourBits {
  static constexpr int kPairs = 4;

  static std::int64_t bytes(std::int64_t k) { return FourBits::bytes(k); }

  static void load(const std::byte* p, Pairs (&out)[kPairs]) {
    alignas(64) static constexpr float kNumbers[16] = {
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    for (int pair = 0; pair < kPairs; ++pair) {
      const I32x16 both = widen_bytes(p + pair * kPanelColumns);
      out[pair] = {look_up(kNumbers, masked(both, 15)), look_up(kNumbers, moved<-4>(both))};
    }
  }
};

struct FiveBits {
  static constexpr int kPairs = 4;

  static std::int64_t bytes(std::int64_t k) { return k / 8 * (5 * kPanelColumns); }

  static void load(const std::byte* p, Pairs (&out)[kPairs]) {
    const I32x16 fifth = widen_bytes(p + kPairs * kPanelColumns);
    out[0] = pair<4, 3>(p, fifth);
    out[1] = pair<2, 1>(p + kPanelColumns, fifth);
    out[2] = pair<0, -1>(p + 2 * kPanelColumns, fifth);
    out[3] = pair<-2, -3>(p + 3 * kPanelColumns, fifth);
  }

 private:
  template <int Even, int Odd>
  static Pairs pair(const std::byte* p, I32x16 fifth) {
    const I32x16 both = widen_bytes(p);
    return {to_floats(either(masked(both, 15), masked(moved<Even>(fifth), 16))),
            to_floats(either(moved<-4>(both), masked(moved<Odd>(fifth), 16)))};
  }
};

struct SixBits {
  static constexpr int kPairs = 2;

  static std::int64_t bytes(std::int64_t k) { return k / 4 * (3 * kPanelColumns); }

  static void load(const std::byte* p, Pairs (&out)[kPairs]) {
    const I32x16 upper = widen_bytes(p + kPairs * kPanelColumns);
    out[0] = pair<4, 2>(p, upper);
    out[1] = pair<0, -2>(p + kPanelColumns, upper);
  }

 private:
  template <int Even, int Odd>
  static Pairs pair(const std::byte* p, I32x16 upper) {
    const I32x16 both = widen_bytes(p);
    return {to_floats(either(masked(both, 15), masked(moved<Even>(upper), 48))),
            to_floats(either(moved<-4>(both), masked(moved<Odd>(upper), 48)))};
  }
};

struct EightBits {
  static constexpr int kPairs = 2;

  static std::int64_t bytes(std::int64_t k) { return k * kPanelColumns; }

  static void load(const std::byte* p, Pairs (&out)[kPairs]) {
    for (int pair = 0; pair < kPairs; ++pair) {
      const std::byte* even = p + pair * (2 * kPanelColumns);
      out[pair] = {load_int8(even), load_int8(even + kPanelColumns)};
    }
  }
};

constexpr std::int64_t kHalfRow = 2 * kPanelColumns;  // bytes of 16 columns' f16

/// An f16 for each group. Middle: of the codes.
template <int Middle>
struct GroupScales {
  static constexpr int kParts = 1;
  static constexpr bool kTakesOff = Middle != 0;

  static std::int64_t bytes(std::int64_t k) { return k / kGgmlGroup * kHalfRow; }

  static GgmlFactor<1> factor(const std::byte* scales, std::int64_t block) {
    const F32x16 scale = load_f16(scales + bytes(block));
    return {{scale}, {mul(scale, splat(static_cast<float>(Middle)))}};
  }
};

/// An f16 for each group, and one to take off.
struct GroupScalesAndLeasts {
  static constexpr int kParts = 1;
  static constexpr bool kTakesOff = true;

  static std::int64_t bytes(std::int64_t k) { return k / kGgmlGroup * (2 * kHalfRow); }

  static GgmlFactor<1> factor(const std::byte* scales, std::int64_t block) {
    const std::byte* own = scales + bytes(block);
    return {{load_f16(own)}, {load_f16(own + kHalfRow)}};
  }
};

/// The same where both are bytes times an f16 that eight groups share.
struct SuperScalesAndLeasts {
  static constexpr int kParts = 1;
  static constexpr bool kTakesOff = true;
  static constexpr std::int64_t kGroups = kGgmlSuper / kGgmlGroup;

  static std::int64_t bytes(std::int64_t k) {
    return k / kGgmlSuper * (2 * kHalfRow + 2 * kGroups * kPanelColumns);
  }

  static GgmlFactor<1> factor(const std::byte* scales, std::int64_t block) {
    const std::byte* own = scales + bytes(block);
    const std::byte* group = own + 2 * kHalfRow + block % kGgmlSuper / kGgmlGroup * kPanelColumns;
    const F32x16 scale = to_floats(widen_bytes(group));
    const F32x16 least = to_floats(widen_bytes(group + kGroups * kPanelColumns));
    return {{mul(load_f16(own), scale)}, {mul(load_f16(own + kHalfRow), least)}};
  }
};

/// Bytes with a sign for 16 k each, times an f16 that sixteen of them share.
struct SuperScales {
  static constexpr int kParts = 2;
  static constexpr bool kTakesOff = true;
  static constexpr int kMiddle = 32;
  static constexpr std::int64_t kGroup = kBf16KBlock / kParts;

  static std::int64_t bytes(std::int64_t k) {
    return k / kGgmlSuper * (kHalfRow + kGgmlSuper / kGroup * kPanelColumns);
  }

  static GgmlFactor<2> factor(const std::byte* scales, std::int64_t block) {
    const std::byte* own = scales + bytes(block);
    const std::byte* group = own + kHalfRow + block % kGgmlSuper / kGroup * kPanelColumns;
    const F32x16 all = load_f16(own);
    const F32x16 middle = splat(static_cast<float>(kMiddle));
    const F32x16 first = mul(all, load_int8(group));
    const F32x16 second = mul(all, load_int8(group + kPanelColumns));
    return {{first, second}, {mul(first, middle), mul(second, middle)}};
  }
};

/// As PairSums reads panels; k is whole blocks.
template <class Codes, class Scales>
struct GgmlPairs {
  static constexpr int kPairs = Codes::kPairs;
  static constexpr std::int64_t kGroup = 0;
  static constexpr bool kUnpacks = false;
  static constexpr std::int64_t kFewestBlockRows = 8;

  using Factor = GgmlFactor<Scales::kParts>;

  static std::int64_t bytes(std::int64_t k) { return Codes::bytes(k); }

  static std::int64_t panel_bytes(std::int64_t k) {
    constexpr std::int64_t kLine = 64;
    return round_up_to(Codes::bytes(k) + Scales::bytes(k), kLine);
  }

  static Factor factor(const std::byte* panel, std::int64_t k, std::int64_t block) {
    return Scales::factor(panel + Codes::bytes(k), block);
  }

  static void load(const std::byte* p,
                   const Factor& factor,
                   std::int64_t at,
                   Pairs (&out)[kPairs]) {
    const std::int64_t part = Scales::kParts == 1 ? 0 : at / (kBf16KBlock / Scales::kParts);
    Codes::load(p, out);
    for (Pairs& pair : out)
      pair = {number(pair.even, factor, part), number(pair.odd, factor, part)};
  }

 private:
  static F32x16 number(F32x16 code, const Factor& factor, std::int64_t part) {
    if constexpr (Scales::kTakesOff)
      return as_bf16(fms(code, factor.scale[part], factor.least[part]));
    else
      return as_bf16(mul(code, factor.scale[part]));
  }
};

/// Calls body with the pairs of these weights. REQUIRES: ggml's.
template <class Body>
void with_ggml_pairs(WeightType weights, Body body) {
  switch (weights) {
    case WeightType::q8_0:
      return body(GgmlPairs<EightBits, GroupScales<0>>{});
    case WeightType::q4_0:
      return body(GgmlPairs<FourBits, GroupScales<8>>{});
    case WeightType::iq4_nl:
      return body(GgmlPairs<NonLinearFourBits, GroupScales<0>>{});
    case WeightType::q4_1:
      return body(GgmlPairs<FourBits, GroupScalesAndLeasts>{});
    case WeightType::q4_k:
      return body(GgmlPairs<FourBits, SuperScalesAndLeasts>{});
    case WeightType::q5_k:
      return body(GgmlPairs<FiveBits, SuperScalesAndLeasts>{});
    default:
      return body(GgmlPairs<SixBits, SuperScales>{});
  }
}

/// One panel as bf16.
template <class Pairs16>
void unpack_ggml(const std::byte* panel, std::int64_t k, std::byte* out) {
  constexpr std::int64_t kPairBytes = 4 * kPanelColumns;
  constexpr int kPairs = Pairs16::kPairs;
  for (std::int64_t block = 0; block < k; block += kBf16KBlock) {
    const auto factor = Pairs16::factor(panel, k, block);
    for (std::int64_t i = 0; i < kBf16KBlock; i += 2 * kPairs) {
      Pairs pairs[kPairs];
      Pairs16::load(panel + Pairs16::bytes(block + i), factor, i, pairs);
      for (int pair = 0; pair < kPairs; ++pair, out += kPairBytes)
        store_bf16_pairs(out, pairs[pair]);
    }
  }
}
