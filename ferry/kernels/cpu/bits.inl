// The bits of numbers, and what they stand for. Included first, inside an anonymous namespace.

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// An e4m3fn code moved to where f16 has its exponent and mantissa stands for the value over this,
/// 2 to the difference of the biases.
constexpr float kFp8OfF16 = 0x1p8F;
