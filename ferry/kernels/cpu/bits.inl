// The bits of numbers, and what they stand for. Included first, inside an anonymous namespace.

// Not std::bit_cast: a template of the library could be compiled for one instruction set and linked
// into another's kernels.
constexpr std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }

constexpr float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// An e4m3fn code moved to where f16 has its exponent and mantissa stands for the value over this,
/// 2 to the difference of the biases.
constexpr float kFp8OfF16 = 0x1p8F;

constexpr int kFp8Normal = 121;  // exponent bits of 2^-6, the smallest normal number of e4m3fn
/// Added to a number's exponent bits: 2^20 times it. The last byte takes the bias off the code:
/// code = mantissa in units + 8 * (exponent - 121), and it is even, so that ties go to even still.
constexpr int kFp8Rounder = (20 << 23) + (-8 * kFp8Normal & 0xff);
