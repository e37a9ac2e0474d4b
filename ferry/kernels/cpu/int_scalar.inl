// Integers sixteen at a time without any vector instruction: the meaning of every operation.
// int_avx2.inl and int_avx512.inl offer the same names. Included after vec_scalar.inl, inside an
// anonymous namespace.

struct I32x16 {
  std::int32_t lane[16];
};

struct Bytes64 {
  std::uint8_t byte[64];
};

inline I32x16 no_integers() { return I32x16{}; }

inline Bytes64 load_bytes(const std::byte* p) {
  Bytes64 out;
  std::memcpy(out.byte, p, sizeof out.byte);
  return out;
}

/// Four bytes, sixteen times.
inline Bytes64 splat_four(const std::byte* p) {
  Bytes64 out;
  for (int j = 0; j < 16; ++j) std::memcpy(out.byte + 4 * j, p, 4);
  return out;
}

inline Bytes64 splat_byte(std::uint8_t x) {
  Bytes64 out;
  std::memset(out.byte, x, sizeof out.byte);
  return out;
}

inline Bytes64 lower_halves(Bytes64 x) {
  for (std::uint8_t& b : x.byte) b &= 15U;
  return x;
}

inline Bytes64 upper_halves(Bytes64 x) {
  for (std::uint8_t& b : x.byte) b = static_cast<std::uint8_t>(b >> 4);
  return x;
}

/// Each byte moved to the left by so many bits, or to the right, and masked. REQUIRES: the mask has
/// no bit that would come from the byte beside it.
template <int Left>
Bytes64 moved_bits(Bytes64 x, std::uint8_t mask) {
  for (std::uint8_t& b : x.byte) {
    if constexpr (Left > 0)
      b = static_cast<std::uint8_t>(b << Left & mask);
    else
      b = static_cast<std::uint8_t>(b >> -Left & mask);
  }
  return x;
}

inline Bytes64 either(Bytes64 a, const Bytes64& b) {
  for (int i = 0; i < 64; ++i) a.byte[i] |= b.byte[i];
  return a;
}

/// The bytes at these places of sixteen, 0 to 15.
inline Bytes64 look_up(const std::uint8_t* sixteen, Bytes64 at) {
  for (std::uint8_t& b : at.byte) b = sixteen[b];
  return at;
}

inline void store_bytes(std::byte* p, const Bytes64& x) { std::memcpy(p, x.byte, sizeof x.byte); }

/// One integer, sixteen times.
inline I32x16 splat_integer(const std::byte* p) {
  std::int32_t x;
  std::memcpy(&x, p, sizeof x);
  I32x16 out;
  for (std::int32_t& lane : out.lane) lane = x;
  return out;
}

inline void store_integers(std::int32_t* p, const I32x16& x) {
  std::memcpy(p, x.lane, sizeof x.lane);
}

/// Lane j: its sum plus four products of bytes 4j.. of a, without sign, and of b, with one. Exact,
/// but that sums wrap around at 32 bits.
inline I32x16 dot_fours(I32x16 sum, const Bytes64& a, const Bytes64& b) {
  for (int j = 0; j < 16; ++j) {
    std::uint32_t four = static_cast<std::uint32_t>(sum.lane[j]);
    for (int i = 4 * j; i < 4 * j + 4; ++i)
      four += static_cast<std::uint32_t>(int{a.byte[i]} * int{static_cast<std::int8_t>(b.byte[i])});
    sum.lane[j] = static_cast<std::int32_t>(four);
  }
  return sum;
}

/// The same for bytes of a below 128, which some instructions multiply faster.
inline I32x16 dot_small(I32x16 sum, const Bytes64& a, const Bytes64& b) {
  return dot_fours(sum, a, b);
}

/// What dot_biased() multiplies codes by is less than they say by this: a caller subtracts it times
/// the sum of b's bytes.
inline constexpr std::int32_t kBiasLeft = 128;

/// Codes of int8 (value + 128, never 0) times bytes of b, none of them -128.
inline I32x16 dot_biased(I32x16 sum, const Bytes64& a, const Bytes64& b) {
  return dot_fours(sum, a, b);
}

inline I32x16 subtract(I32x16 a, std::int32_t b) {
  for (std::int32_t& x : a.lane)
    x = static_cast<std::int32_t>(static_cast<std::uint32_t>(x) - static_cast<std::uint32_t>(b));
  return a;
}

inline std::int32_t fold_integers(I32x16 a) {
  std::uint32_t sum = 0;
  for (const std::int32_t x : a.lane) sum += static_cast<std::uint32_t>(x);
  return static_cast<std::int32_t>(sum);
}

/// The floats that have these bits.
inline F32x16 as_floats(I32x16 a) {
  return each_lane([&](int j) { return float_of(static_cast<std::uint32_t>(a.lane[j])); });
}

/// Rounded to nearest even.
inline F32x16 to_floats(I32x16 a) {
  return each_lane([&](int j) { return static_cast<float>(a.lane[j]); });
}

/// Sixteen bytes, without sign.
inline I32x16 widen_bytes(const std::byte* p) {
  I32x16 out;
  for (int j = 0; j < 16; ++j) out.lane[j] = std::to_integer<std::int32_t>(p[j]);
  return out;
}

inline I32x16 masked(I32x16 a, std::int32_t mask) {
  for (std::int32_t& x : a.lane) x &= mask;
  return a;
}

inline I32x16 either(I32x16 a, const I32x16& b) {
  for (int j = 0; j < 16; ++j) a.lane[j] |= b.lane[j];
  return a;
}

/// Moved to the left by so many bits, or to the right. REQUIRES: no sign.
template <int Left>
I32x16 moved(I32x16 a) {
  for (std::int32_t& x : a.lane) {
    if constexpr (Left > 0)
      x <<= Left;
    else
      x >>= -Left;
  }
  return a;
}

/// The numbers at these places, 0 to 15.
inline F32x16 look_up(const float* numbers, const I32x16& at) {
  return each_lane([&](int j) { return numbers[at.lane[j]]; });
}
