// Rows for int8 and int4 weights: rounded to int8, each with a scale of its own. One source for
// every instruction set: included after wire.inl and the integers, inside an anonymous namespace.
//
// VPDPBUSD and TDPBSUD multiply bytes without sign by bytes with one. So panels hold code + bias,
// and a group's sum is too large by the bias times the sum of the row's bytes, which is the same
// for all columns.

struct Int8Codes {
  static constexpr std::int64_t kBias = 128;
  static constexpr std::int64_t kParts = 1;  ///< vectors of codes in 64 bytes of a panel
  static constexpr std::int64_t kPerByte = 1;
  static constexpr bool kUnpacks = false;
  static constexpr std::int64_t kLeft = kBiasLeft;  ///< of the bias, in what dot() adds up

  static I32x16 dot(I32x16 sum, const Bytes64& codes, const Bytes64& x) {
    return dot_biased(sum, codes, x);
  }

  static std::int64_t group(std::int64_t k) { return k; }

  static void unpack(Bytes64 packed, Bytes64 (&codes)[kParts]) { codes[0] = packed; }
};

struct Int4Codes {
  static constexpr std::int64_t kBias = 8;
  static constexpr std::int64_t kParts = 2;
  static constexpr std::int64_t kPerByte = 2;
  static constexpr bool kUnpacks = true;
  static constexpr std::int64_t kLeft = kBias;

  static I32x16 dot(I32x16 sum, const Bytes64& codes, const Bytes64& x) {
    return dot_small(sum, codes, x);
  }

  static std::int64_t group(std::int64_t /*k*/) { return kInt4Group; }

  static void unpack(Bytes64 packed, Bytes64 (&codes)[kParts]) {
    codes[0] = lower_halves(packed);
    codes[1] = upper_halves(packed);
  }
};

/// A row made ready: int8 [k], padded, zeros at the end; its scale; the sums of each group's bytes.
template <class Codes>
struct IntRow {
  static float scale(const std::byte* row, std::int64_t k) {
    float scale;
    std::memcpy(&scale, row + k, sizeof scale);
    return scale;
  }

  static std::int32_t sum(const std::byte* row, std::int64_t k, std::int64_t group) {
    std::int32_t sum;
    std::memcpy(&sum, row + k + 4 + 4 * group, sizeof sum);
    return sum;
  }

  static std::int64_t bytes(std::int64_t k) {
    return k + round_up_to(4 + 4 * (k / Codes::group(k)), 64);
  }

  /// As `encode` to the wire int8 rounds it, which leaves the scale behind k.
  static void quantise(const std::byte* in, std::int64_t k, std::int64_t padded, std::byte* out) {
    encode_quantized<Bf16Row, Quantized<Int8Bytes, F32Scales, true>>(in, out, k);
    float scale;
    std::memcpy(&scale, out + round_up_to(k, 4), sizeof scale);
    std::memset(out + k, 0, static_cast<std::size_t>(padded - k));
    std::memcpy(out + padded, &scale, sizeof scale);
    const std::int64_t group = Codes::group(padded);
    for (std::int64_t g = 0; g < padded / group; ++g) {
      I32x16 sum = no_integers();
      for (std::int64_t i = g * group; i < (g + 1) * group; i += 64)
        sum = dot_small(sum, splat_byte(1), load_bytes(out + i));
      const std::int32_t folded = fold_integers(sum);
      std::memcpy(out + padded + 4 + 4 * g, &folded, sizeof folded);
    }
  }
};
