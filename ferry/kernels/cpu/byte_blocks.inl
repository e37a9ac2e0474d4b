// Panels of blocks that meet rows of int8 (packed_matrix.h: ..._int8), and those rows. One source
// for every instruction set: included after ggml_panels.inl, mxfp4_panels.inl and int_rows.inl,
// inside an anonymous namespace.
//
// A group is 32 k. Its codes are eight lines of bytes without sign, each code more than its value
// by `kMiddle`; what comes of that is the middle times the sum of the row's bytes, which sums of
// products start from. Bytes below 128 go through dot_small(), others through dot_biased().

static_assert(kGgmlGroup == kMxfp4Group);

constexpr int kGroupLines = kGgmlGroup / 4;
constexpr std::int64_t kLineBytes = 4 * kPanelColumns;

/// Codes of four bits: eight k in a line.
struct NibbleLines {
  static constexpr bool kSmall = true;

  static std::int64_t bytes(std::int64_t k) { return k / 8 * kLineBytes; }

  /// Line I of the group whose codes begin at p.
  template <int I>
  static Bytes64 line(const std::byte* p) {
    const Bytes64 both = load_bytes(p + I / 2 * kLineBytes);
    return I % 2 == 0 ? lower_halves(both) : upper_halves(both);
  }
};

template <std::int32_t Middle>
struct FourBitLines : NibbleLines {
  static constexpr std::int32_t kMiddle = Middle;
};

/// Four bits that stand for numbers of a table.
template <class Table>
struct LookedUpLines : Table {
  static std::int64_t bytes(std::int64_t k) { return NibbleLines::bytes(k); }

  template <int I>
  static Bytes64 line(const std::byte* p) {
    return look_up(Table::kNumbers, NibbleLines::line<I>(p));
  }
};

/// iq4_nl's numbers, each + 128.
struct NonLinearTable {
  static constexpr bool kSmall = false;
  static constexpr std::int32_t kMiddle = 128;
  static constexpr std::uint8_t kNumbers[16] = {
      1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
};

/// Twice e2m1's, each + 12.
struct E2m1Table {
  static constexpr bool kSmall = true;
  static constexpr std::int32_t kMiddle = 12;
  static constexpr std::uint8_t kNumbers[16] = {
      12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};

struct FiveBitLines {
  static constexpr bool kSmall = true;
  static constexpr std::int32_t kMiddle = 0;

  static std::int64_t bytes(std::int64_t k) { return k / kGgmlGroup * (5 * kLineBytes); }

  template <int I>
  static Bytes64 line(const std::byte* p) {
    const Bytes64 fifths = load_bytes(p + 4 * kLineBytes);
    return either(NibbleLines::line<I>(p), moved_bits<4 - I>(fifths, 16));
  }
};

struct SixBitLines {
  static constexpr bool kSmall = true;
  static constexpr std::int32_t kMiddle = 32;

  static std::int64_t bytes(std::int64_t k) { return k / 16 * (3 * kLineBytes); }

  template <int I>
  static Bytes64 line(const std::byte* p) {
    const std::byte* half = p + I / 4 * (3 * kLineBytes);
    const Bytes64 upper = load_bytes(half + 2 * kLineBytes);
    return either(NibbleLines::line<I % 4>(half), moved_bits<4 - 2 * (I % 4)>(upper, 48));
  }
};

struct EightBitLines {
  static constexpr bool kSmall = false;
  static constexpr std::int32_t kMiddle = 128;

  static std::int64_t bytes(std::int64_t k) { return k / 4 * kLineBytes; }

  template <int I>
  static Bytes64 line(const std::byte* p) {
    return load_bytes(p + I * kLineBytes);
  }
};

/// Half of mxfp4's powers, as codes are twice its numbers. The smallest, 2^-127, is flushed.
struct HalfPowers {
  static constexpr int kParts = 1;

  static std::int64_t bytes(std::int64_t k) { return k / kMxfp4Group * kPanelColumns; }

  static GgmlFactor<1> factor(const std::byte* scales, std::int64_t block) {
    return {{mul(load_powers(scales + bytes(block)), splat(0.5F))}, {splat(0.0F)}};
  }
};

/// What a panel of such weights has, k being whole groups. Leasts: something is taken off that
/// does not depend on the code.
template <class Codes, class Scales, bool Leasts>
struct ByteBlocks {
  static constexpr bool kSmall = Codes::kSmall;
  static constexpr int kParts = Scales::kParts;  ///< of a group, each with a scale of its own
  static constexpr bool kLeasts = Leasts;
  static_assert(kParts == 1 || !kLeasts);

  /// Of its middle, what dot() leaves to its caller.
  static constexpr std::int32_t kLeft = kSmall ? Codes::kMiddle : kBiasLeft;

  static std::int64_t panel_bytes(std::int64_t k) {
    return round_up_to(Codes::bytes(k) + Scales::bytes(k), kLineBytes);
  }

  /// Codes of the group that begins at `first`.
  static const std::byte* codes(const std::byte* panel, std::int64_t first) {
    return panel + Codes::bytes(first);
  }

  template <int I>
  static Bytes64 line(const std::byte* codes) {
    return Codes::template line<I>(codes);
  }

  static GgmlFactor<kParts> factor(const std::byte* panel, std::int64_t k, std::int64_t first) {
    return Scales::factor(panel + Codes::bytes(k), first);
  }
};

/// The same once it is unpacked: each group's lines, then its scales and what is taken off, in f32.
template <bool Small, int Parts, bool Leasts>
struct UnpackedBlocks {
  static constexpr bool kSmall = Small;
  static constexpr int kParts = Parts;
  static constexpr bool kLeasts = Leasts;

  static constexpr std::int64_t kGroupBytes = (kGroupLines + Parts + (Leasts ? 1 : 0)) * kLineBytes;

  static std::int64_t panel_bytes(std::int64_t k) { return k / kGgmlGroup * kGroupBytes; }

  static const std::byte* codes(const std::byte* panel, std::int64_t first) {
    return panel + panel_bytes(first);
  }

  template <int I>
  static Bytes64 line(const std::byte* codes) {
    return load_bytes(codes + I * kLineBytes);
  }

  static GgmlFactor<Parts> factor(const std::byte* panel, std::int64_t /*k*/, std::int64_t first) {
    const float* scales = floats_of(codes(panel, first) + kGroupLines * kLineBytes);
    GgmlFactor<Parts> factor;
    for (int part = 0; part < Parts; ++part) {
      factor.scale[part] = load(scales + part * kPanelColumns);
      factor.least[part] = Leasts ? load(scales + kPanelColumns) : splat(0.0F);
    }
    return factor;
  }
};

template <class Blocks>
using Unpacked = UnpackedBlocks<Blocks::kSmall, Blocks::kParts, Blocks::kLeasts>;

/// Calls body<0>(), body<1>() and so on, of a group's lines.
template <class Body>
[[gnu::always_inline]] inline void for_lines(Body body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
  body.template operator()<4>();
  body.template operator()<5>();
  body.template operator()<6>();
  body.template operator()<7>();
}

template <class Blocks>
void unpack_byte_blocks(const std::byte* panel, std::int64_t k, std::byte* out) {
  for (std::int64_t first = 0; first < k; first += kGgmlGroup) {
    const std::byte* codes = Blocks::codes(panel, first);
    for_lines([&]<int I>() { store_bytes(out + I * kLineBytes, Blocks::template line<I>(codes)); });
    const auto factor = Blocks::factor(panel, k, first);
    auto* scales = reinterpret_cast<float*>(out + kGroupLines * kLineBytes);
    for (int part = 0; part < Blocks::kParts; ++part)
      store(scales + part * kPanelColumns, factor.scale[part]);
    if constexpr (Blocks::kLeasts) store(scales + kPanelColumns, factor.least[0]);
    out += Unpacked<Blocks>::kGroupBytes;
  }
}

/// Calls body with what panels of these weights have. REQUIRES: is_byte_block(weights).
template <class Body>
void with_byte_blocks(WeightType weights, Body body) {
  switch (weights) {
    case WeightType::q8_0_int8:
      return body(ByteBlocks<EightBitLines, GroupScales<0>, false>{});
    case WeightType::q4_0_int8:
      return body(ByteBlocks<FourBitLines<8>, GroupScales<0>, false>{});
    case WeightType::iq4_nl_int8:
      return body(ByteBlocks<LookedUpLines<NonLinearTable>, GroupScales<0>, false>{});
    case WeightType::q4_1_int8:
      return body(ByteBlocks<FourBitLines<0>, GroupScalesAndLeasts, true>{});
    case WeightType::q4_k_int8:
      return body(ByteBlocks<FourBitLines<0>, SuperScalesAndLeasts, true>{});
    case WeightType::q5_k_int8:
      return body(ByteBlocks<FiveBitLines, SuperScalesAndLeasts, true>{});
    case WeightType::q6_k_int8:
      return body(ByteBlocks<SixBitLines, SuperScales, false>{});
    default:
      return body(ByteBlocks<LookedUpLines<E2m1Table>, HalfPowers, false>{});
  }
}

/// Sums of products of bytes start from the bits of this number, whose last bit counts ones. So a
/// sum's bits are those of the number plus the sum, and a subtraction makes a float of it, which
/// takes less of what products need than a conversion does. Exact for sums below 2^22.
constexpr float kSumsFrom = 0x1.8p23F;

/// A group of a row made ready: its bytes, its scale, less than nothing of the sum of its bytes (as
/// f32, exact), and what the sums of products of its halves start from: kSumsFrom's bits less the
/// sum of these bytes times what dot() leaves of the codes' middle. With one part all of it stands
/// with the first half.
struct RowGroup {
  static constexpr std::int64_t kScale = kGgmlGroup;
  static constexpr std::int64_t kLessSum = kScale + 4;
  static constexpr std::int64_t kStart = kLessSum + 4;
  static constexpr std::int64_t kBytes = kStart + 8;

  static std::int64_t row_bytes(std::int64_t k) { return k / kGgmlGroup * kBytes; }

  static F32x16 splat_float(const std::byte* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return splat(x);
  }
};

/// Rounds values of a bf16 row from `first` on, up to a group of them, as `encode` to the wire
/// int8_block rounds a block. `out`: a RowGroup, of which bytes and scale are written.
inline void quantise_group(const std::byte* in,
                           std::int64_t first,
                           std::int64_t count,
                           std::byte* out) {
  F32x16 x[2];
  for (std::int64_t half = 0; half < 2; ++half) {
    const std::int64_t left = smaller(count - half * 16, 16);
    x[half] =
        left <= 0 ? splat(0.0F) : Bf16Row::load_at(in, first + half * 16, static_cast<int>(left));
  }
  const F32x16 most = max_magnitude(max_magnitude(splat(0.0F), x[0]), x[1]);
  const float scale = scale_for<Quantized<Int8Bytes, F32Scales, false>>(fold_max_bits(most));
  std::memcpy(out + RowGroup::kScale, &scale, sizeof scale);
  if (scale != scale) {
    std::memset(out, Int8Bytes::kNan, kGgmlGroup);
    return;
  }
  const F32x16 inverse = splat(1.0F / scale);
  for (int half = 0; half < 2; ++half) store_int8(out + half * 16, mul(x[half], inverse));
}

/// Two groups' sums of bytes, into them. `left`: of the codes' middle. parts: of a group.
inline void put_sums(std::byte* first, std::byte* second, std::int32_t left, int parts) {
  alignas(64) std::byte both[2 * kGgmlGroup];
  std::memcpy(both, first, kGgmlGroup);
  std::memcpy(both + kGgmlGroup, second, kGgmlGroup);
  alignas(64) std::int32_t fours[16];
  store_integers(fours, dot_small(no_integers(), splat_byte(1), load_bytes(both)));
  for (int group = 0; group < 2; ++group) {
    const std::int32_t* four = fours + 8 * group;
    const std::int32_t low = four[0] + four[1] + four[2] + four[3];
    const std::int32_t high = four[4] + four[5] + four[6] + four[7];
    const auto less_sum = static_cast<float>(-(low + high));
    constexpr auto kFrom = static_cast<std::int32_t>(bits_of(kSumsFrom));
    const std::int32_t start[2] = {kFrom - left * (parts == 1 ? low + high : low),
                                   kFrom - left * high};
    std::byte* out = group == 0 ? first : second;
    std::memcpy(out + RowGroup::kLessSum, &less_sum, sizeof less_sum);
    std::memcpy(out + RowGroup::kStart, start, sizeof start);
  }
}

/// A bf16 row of k elements made ready, zeros behind its end.
inline void quantise_groups(
    const std::byte* in, std::int64_t k, std::int32_t left, int parts, std::byte* out) {
  for (std::int64_t first = 0; first < k; first += 2 * kGgmlGroup) {
    std::byte spare[RowGroup::kBytes] = {};
    const std::int64_t next = first + kGgmlGroup;
    std::byte* second = next < k ? out + RowGroup::kBytes : spare;
    quantise_group(in, first, smaller(k - first, kGgmlGroup), out);
    if (next < k) quantise_group(in, next, smaller(k - next, kGgmlGroup), second);
    put_sums(out, second, left, parts);
    out += 2 * RowGroup::kBytes;
  }
}
