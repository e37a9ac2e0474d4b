// exp, sigmoid and SiLU on 16 lanes (docs/numerics.md), and rows of any element type.
// One source for every instruction set: included after a vec_*.inl, inside an anonymous namespace.

/// e^x. Below about -87.3 zero (denormals are flushed), above about 88.7 infinity; NaN stays NaN.
inline F32x16 exp(F32x16 x) {
  constexpr float kLowest = -105.0F;  // e^x is less than half of the smallest denormal
  constexpr float kHighest = 89.0F;   // e^x overflows
  constexpr float kLog2E = 0x1.715476p0F;
  constexpr float kLn2High = 0x1.62e43p-1F;  // 21 bits: x - n * kLn2High is exact
  constexpr float kLn2Low = -0x1.05c61p-29F;
  constexpr float kRound = 0x1.8p23F;  // adding it rounds to an integer
  constexpr float kFactorials[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};

  x = min(splat(kHighest), max(splat(kLowest), x));
  const F32x16 n = sub(fma(x, splat(kLog2E), splat(kRound)), splat(kRound));
  F32x16 r = fma(n, splat(-kLn2High), x);
  r = fma(n, splat(-kLn2Low), r);
  F32x16 sum = splat(1.0F / 5040);
  for (const float factorial : kFactorials) sum = fma(sum, r, splat(factorial));
  // 2^n in two factors, because n reaches beyond the exponents that f32 has.
  const F32x16 half = sub(fma(n, splat(0.5F), splat(kRound)), splat(kRound));
  const F32x16 first = bits_to_exponent(add(half, splat(kRound + 127)));
  const F32x16 second = bits_to_exponent(add(sub(n, half), splat(kRound + 127)));
  return mul(mul(sum, first), second);
}

inline F32x16 sigmoid(F32x16 x) {
  const F32x16 one = splat(1.0F);
  return div(one, add(one, exp(sub(splat(0.0F), x))));
}

inline F32x16 silu(F32x16 x) { return mul(x, sigmoid(x)); }

inline std::byte* bytes_of(float* p) { return reinterpret_cast<std::byte*>(p); }

inline const std::byte* bytes_of(const float* p) { return reinterpret_cast<const std::byte*>(p); }

inline const float* floats_of(const std::byte* p) { return reinterpret_cast<const float*>(p); }

inline const std::byte* row_of(const RowsView& rows, std::int64_t i) {
  return rows.pointers != nullptr ? rows.pointers[i] : rows.base + i * rows.stride;
}

// Rows of one element type: element i on, 16 or fewer of them. Loads fill with +0.

struct F32Row {
  static F32x16 load_at(const std::byte* row, std::int64_t i, int count) {
    const float* p = reinterpret_cast<const float*>(row) + i;
    return count == 16 ? load(p) : load_part(p, count);
  }

  static void store_at(std::byte* row, std::int64_t i, F32x16 x, int count) {
    float* p = reinterpret_cast<float*>(row) + i;
    count == 16 ? store(p, x) : store_part(p, x, count);
  }
};

struct Bf16Row {
  static F32x16 load_at(const std::byte* row, std::int64_t i, int count) {
    return count == 16 ? load_bf16(row + 2 * i) : load_bf16_part(row + 2 * i, count);
  }

  static void store_at(std::byte* row, std::int64_t i, F32x16 x, int count) {
    count == 16 ? store_bf16(row + 2 * i, x) : store_bf16_part(row + 2 * i, x, count);
  }
};

struct F16Row {
  static F32x16 load_at(const std::byte* row, std::int64_t i, int count) {
    return count == 16 ? load_f16(row + 2 * i) : load_f16_part(row + 2 * i, count);
  }

  static void store_at(std::byte* row, std::int64_t i, F32x16 x, int count) {
    count == 16 ? store_f16(row + 2 * i, x) : store_f16_part(row + 2 * i, x, count);
  }
};

/// Calls body(row type) for the element type.
template <class Body>
void with_row_type(DType type, Body body) {
  if (type == DType::f32)
    body(F32Row{});
  else if (type == DType::bf16)
    body(Bf16Row{});
  else
    body(F16Row{});
}

/// Calls body(i, count) for i = 0, 16, 32, ... < n; count is 16 but for the last.
template <class Body>
void for_sixteens(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(i, 16);
  if (i < n) body(i, static_cast<int>(n - i));
}
