// Rows as they travel (ferry/wire.h): written, read, and summed for combine. One source for
// every instruction set: included after row_ops.inl, inside an anonymous namespace.
//
// A quantised block: the scale is the greatest magnitude over the greatest that a byte stands for,
// but at least 2^-126, the smallest number that threads do not flush; a byte is the value times
// 1 / scale, rounded to nearest even. The division and both roundings move that product by less
// than 3 * 2^-24 of itself, so that it never rounds beyond the greatest. A block with an infinity
// or a NaN gets a NaN for its scale: all of its values arrive as NaN.

constexpr std::uint32_t kInfinityBits = 0x7f800000U;
constexpr std::uint32_t kQuietNanBits = 0x7fc00000U;

struct Fp8Bytes {
  static constexpr float kGreatest = 448.0F;
  static constexpr int kNan = 0x7f;              ///< what the bytes of a NaN block are
  static constexpr float kOfLoaded = kFp8OfF16;  ///< a value is what load_at gives times this

  static F32x16 load_at(const std::byte* row, std::int64_t i, int count) {
    return count == 16 ? load_fp8(row + i) : load_fp8_part(row + i, count);
  }

  static Sixteens load_two(const std::byte* row, std::int64_t i) { return load_two_fp8(row + i); }

  static void store_at(std::byte* row, std::int64_t i, F32x16 x, int count) {
    count == 16 ? store_fp8(row + i, x) : store_fp8_part(row + i, x, count);
  }
};

struct Int8Bytes {
  static constexpr float kGreatest = 127.0F;
  static constexpr int kNan = 0;
  static constexpr float kOfLoaded = 1.0F;

  static F32x16 load_at(const std::byte* row, std::int64_t i, int count) {
    return count == 16 ? load_int8(row + i) : load_int8_part(row + i, count);
  }

  static Sixteens load_two(const std::byte* row, std::int64_t i) {
    return {load_int8(row + i), load_int8(row + i + 16)};
  }

  static void store_at(std::byte* row, std::int64_t i, F32x16 x, int count) {
    count == 16 ? store_int8(row + i, x) : store_int8_part(row + i, x, count);
  }
};

struct F32Scales {
  static constexpr std::int64_t kBytes = 4;

  static float representable(float scale) { return scale; }

  static void write(std::byte* scales, std::int64_t block, float scale) {
    std::memcpy(scales + block * kBytes, &scale, sizeof scale);
  }

  static float read(const std::byte* scales, std::int64_t block) {
    float scale;
    std::memcpy(&scale, scales + block * kBytes, sizeof scale);
    return scale;
  }
};

/// UE8M0: the eight bits of an f32's exponent. NaN is 255; 0 would be a denormal, and reads as 0.
struct Pow2Scales {
  static constexpr std::int64_t kBytes = 1;

  /// The smallest power of two that is not below. Above 2^119, where 448 times it would be no
  /// number, NaN. REQUIRES: normal.
  static float representable(float scale) {
    if (scale > 0x1p119F) return float_of(kQuietNanBits);
    return float_of((bits_of(scale) + 0x7fffffU) & kInfinityBits);
  }

  static void write(std::byte* scales, std::int64_t block, float scale) {
    scales[block] = static_cast<std::byte>(bits_of(scale) >> 23);
  }

  static float read(const std::byte* scales, std::int64_t block) {
    const auto exponent = static_cast<std::uint32_t>(scales[block]);
    return float_of(exponent == 255 ? kQuietNanBits : exponent << 23);
  }
};

template <class BytesType, class ScalesType, bool PerRow>
struct Quantized {
  using Bytes = BytesType;
  using Scales = ScalesType;

  static std::int64_t block(std::int64_t n) { return PerRow ? n : kWireBlock; }

  /// Reads one block of a row of n values; `first`: any value of it.
  class Reader {
   public:
    Reader() = default;

    Reader(const std::byte* row, std::int64_t n, std::int64_t first)
        : row_(row),
          scale_(splat(Scales::read(row + scales_at(n), PerRow ? 0 : first / kWireBlock) *
                       Bytes::kOfLoaded)) {}

    F32x16 load_at(std::int64_t i, int count) const {
      return mul(Bytes::load_at(row_, i, count), scale_);
    }

    Sixteens load_two(std::int64_t i) const {
      const Sixteens x = Bytes::load_two(row_, i);
      return {mul(x.first, scale_), mul(x.second, scale_)};
    }

   private:
    const std::byte* row_;
    F32x16 scale_;
  };

  static std::int64_t scales_at(std::int64_t n) { return (n + 3) / 4 * 4; }
};

/// f32 and bf16: nothing to scale.
template <class Row>
struct Plain {
  static std::int64_t block(std::int64_t n) { return n; }

  class Reader {
   public:
    Reader() = default;

    Reader(const std::byte* row, std::int64_t /*n*/, std::int64_t /*first*/) : row_(row) {}

    F32x16 load_at(std::int64_t i, int count) const { return Row::load_at(row_, i, count); }

    Sixteens load_two(std::int64_t i) const {
      return {Row::load_at(row_, i, 16), Row::load_at(row_, i + 16, 16)};
    }

   private:
    const std::byte* row_;
  };
};

/// Calls body(format) for a quantised wire.
template <class Body>
void with_quantized(WireType type, Body body) {
  if (type == WireType::fp8)
    body(Quantized<Fp8Bytes, F32Scales, false>{});
  else if (type == WireType::fp8_pow2)
    body(Quantized<Fp8Bytes, Pow2Scales, false>{});
  else if (type == WireType::int8)
    body(Quantized<Int8Bytes, F32Scales, true>{});
  else
    body(Quantized<Int8Bytes, F32Scales, false>{});
}

/// Calls body(format) for any wire.
template <class Body>
void with_wire(WireType type, Body body) {
  if (type == WireType::f32)
    body(Plain<F32Row>{});
  else if (type == WireType::bf16)
    body(Plain<Bf16Row>{});
  else
    with_quantized(type, body);
}

template <class In>
std::uint32_t greatest_bits_by_lanes(const std::byte* in, std::int64_t first, std::int64_t count) {
  F32x16 most = splat(0.0F);
  for_sixteens(count, [&](std::int64_t i, int some) {
    most = max_magnitude(most, In::load_at(in, first + i, some));
  });
  return fold_max_bits(most);
}

/// The bits of the greatest magnitude among values [first, first + count) of a row.
template <class In>
std::uint32_t greatest_bits(const std::byte* in, std::int64_t first, std::int64_t count) {
  if constexpr (std::is_same_v<In, Bf16Row>) {
    constexpr std::int64_t kAtOnce = 128;
    std::uint32_t greatest = 0;
    for (; count >= kAtOnce; first += kAtOnce, count -= kAtOnce) {
      const std::uint32_t bits = max_bits_bf16(in + 2 * first);
      greatest = greatest > bits ? greatest : bits;
    }
    if (count == 0) return greatest;
    const std::uint32_t rest = greatest_bits_by_lanes<In>(in, first, count);
    return greatest > rest ? greatest : rest;
  } else {
    return greatest_bits_by_lanes<In>(in, first, count);
  }
}

/// The scale for values whose greatest magnitude has these bits.
template <class Format>
float scale_for(std::uint32_t greatest) {
  if (greatest >= kInfinityBits) return float_of(kQuietNanBits);
  constexpr float kSmallest = 0x1p-126F;
  const float wanted = float_of(greatest) / Format::Bytes::kGreatest;
  return Format::Scales::representable(wanted > kSmallest ? wanted : kSmallest);
}

/// Writes the bytes of values [first, first + count) of a row.
template <class In, class Bytes>
void encode_block(
    const std::byte* in, std::byte* out, std::int64_t first, std::int64_t count, float scale) {
  if (scale != scale) {
    std::memset(out + first, Bytes::kNan, static_cast<std::size_t>(count));
    return;
  }
  const F32x16 inverse = splat(1.0F / scale);
  for_sixteens(count, [&](std::int64_t i, int some) {
    const F32x16 x = mul(In::load_at(in, first + i, some), inverse);
    Bytes::store_at(out, first + i, x, some);
  });
}

/// All scales first, then all bytes: a block's bytes wait for its scale, a chain of some 60 cycles,
/// and nothing else would be left to do meanwhile.
template <class In, class Format>
void encode_quantized(const std::byte* in, std::byte* out, std::int64_t n) {
  using Scales = typename Format::Scales;
  const std::int64_t block = Format::block(n);
  std::byte* scales = out + Format::scales_at(n);
  std::memset(out + n, 0, static_cast<std::size_t>(scales - (out + n)));
  std::int64_t blocks = 0;
  for (std::int64_t first = 0; first < n; first += block, ++blocks) {
    const std::int64_t count = n - first < block ? n - first : block;
    Scales::write(scales, blocks, scale_for<Format>(greatest_bits<In>(in, first, count)));
  }
  const std::int64_t used = Format::scales_at(n) + blocks * Scales::kBytes;
  std::memset(out + used, 0, static_cast<std::size_t>((used + 15) / 16 * 16 - used));
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t first = b * block;
    const std::int64_t count = n - first < block ? n - first : block;
    encode_block<In, typename Format::Bytes>(in, out, first, count, Scales::read(scales, b));
  }
}

inline void encode(
    const std::byte* in, DType in_type, std::byte* out, WireType type, std::int64_t n) {
  if (type == WireType::f32 || type == WireType::bf16) {
    convert(in, in_type, out, type == WireType::f32 ? DType::f32 : DType::bf16, n);
    return;
  }
  with_quantized(type, [&]<class Format>(Format) {
    with_row_type(in_type, [&]<class In>(In) { encode_quantized<In, Format>(in, out, n); });
  });
}

template <class Reader, class Out>
void decode_block(const Reader& reader, std::byte* out, std::int64_t first, std::int64_t count) {
  const std::int64_t last = first + count;
  for (; first + 32 <= last; first += 32) {
    const Sixteens x = reader.load_two(first);
    Out::store_at(out, first, x.first, 16);
    Out::store_at(out, first + 16, x.second, 16);
  }
  for_sixteens(last - first, [&](std::int64_t i, int some) {
    Out::store_at(out, first + i, reader.load_at(first + i, some), some);
  });
}

inline void decode(
    const std::byte* in, WireType type, std::byte* out, DType out_type, std::int64_t n) {
  if (type == WireType::f32 || type == WireType::bf16) {
    convert(in, type == WireType::f32 ? DType::f32 : DType::bf16, out, out_type, n);
    return;
  }
  with_quantized(type, [&]<class Format>(Format) {
    using Reader = typename Format::Reader;
    const std::int64_t block = Format::block(n);
    with_row_type(out_type, [&]<class Out>(Out) {
      for (std::int64_t first = 0; first < n; first += block) {
        const Reader reader(in, n, first);
        decode_block<Reader, Out>(reader, out, first, n - first < block ? n - first : block);
      }
    });
  });
}

template <class Out, int V>
void finish_sum(const WeightedSumArgs& args, F32x16 (&sum)[V], std::int64_t first, int last) {
  for (int v = 0; v < V; ++v) {
    const int count = v + 1 < V ? 16 : last;
    const std::int64_t i = first + 16 * v;
    if (args.accumulate) sum[v] = add(Out::load_at(args.out, i, count), sum[v]);
    Out::store_at(args.out, i, sum[v], count);
  }
}

/// 64 values of the weighted sum from `first` on, all of one block.
template <class In, class Out>
void sum_sixty_four(const WeightedSumArgs& args, std::int64_t first) {
  F32x16 sum[4] = {splat(0.0F), splat(0.0F), splat(0.0F), splat(0.0F)};
  for (std::int64_t k = 0; k < args.k; ++k) {
    const F32x16 weight = splat(args.weights[k]);
    const typename In::Reader row(args.rows[k], args.n, first);
    for (int v = 0; v < 4; v += 2) {
      const Sixteens x = row.load_two(first + 16 * v);
      sum[v] = fma(weight, x.first, sum[v]);
      sum[v + 1] = fma(weight, x.second, sum[v + 1]);
    }
  }
  finish_sum<Out>(args, sum, first, 16);
}

/// `count` values of it, 16 or fewer.
template <class In, class Out>
void sum_sixteen(const WeightedSumArgs& args, std::int64_t first, int count) {
  F32x16 sum[1] = {splat(0.0F)};
  for (std::int64_t k = 0; k < args.k; ++k) {
    const typename In::Reader row(args.rows[k], args.n, first);
    sum[0] = fma(splat(args.weights[k]), row.load_at(first, count), sum[0]);
  }
  finish_sum<Out>(args, sum, first, count);
}

inline void weighted_sum(const WeightedSumArgs& args) {
  with_wire(args.in_type, [&]<class In>(In) {
    with_row_type(args.out_type, [&]<class Out>(Out) {
      std::int64_t i = 0;
      for (; i + 64 <= args.n; i += 64) sum_sixty_four<In, Out>(args, i);
      for_sixteens(args.n - i,
                   [&](std::int64_t j, int count) { sum_sixteen<In, Out>(args, i + j, count); });
    });
  });
}
