// gemm with int8 and int4 weights: rows are rounded to int8, each with a scale, and all sums of a
// group of k are exact integers, whatever the order. One source for every instruction set:
// included after gemm_fma.inl, wire.inl and the integers, inside an anonymous namespace.
//
// VPDPBUSD multiplies bytes without sign by bytes with one. So panels hold code + bias, and a
// group's sum is too large by the bias times the sum of the row's bytes, which is the same for all
// columns.
//
// A row made ready: int8 [k_padded], zeros beyond k; its scale; the sums of each group's bytes.

struct Int8Codes {
  static constexpr std::int64_t kBias = 128;
  static constexpr std::int64_t kParts = 1;  ///< vectors of codes in 64 bytes of a panel
  static constexpr std::int64_t kPerByte = 1;
  static constexpr bool kUnpacks = false;

  static std::int64_t group(std::int64_t k) { return k; }

  static void unpack(Bytes64 packed, Bytes64 (&codes)[kParts]) { codes[0] = packed; }
};

struct Int4Codes {
  static constexpr std::int64_t kBias = 8;
  static constexpr std::int64_t kParts = 2;
  static constexpr std::int64_t kPerByte = 2;
  static constexpr bool kUnpacks = true;

  static std::int64_t group(std::int64_t /*k*/) { return kInt4Group; }

  static void unpack(Bytes64 packed, Bytes64 (&codes)[kParts]) {
    codes[0] = lower_halves(packed);
    codes[1] = upper_halves(packed);
  }
};

/// Sums of R rows and P panels, as F32Sums; k is padded to whole blocks.
template <class Codes>
struct IntSums {
  static constexpr int kRows = Tiling::kIntRows;
  static constexpr int kPanels = Tiling::kIntPanels;
  static constexpr bool kUnpacks = Codes::kUnpacks;

  static std::int64_t panel_bytes(std::int64_t k) {
    return k / Codes::kPerByte * kPanelColumns + k / Codes::group(k) * (kPanelColumns * 4);
  }

  static std::int64_t steps(std::int64_t k) { return k / (4 * Codes::kParts); }

  template <int R, int P, class Fetch>
  static void run(const std::byte* const* a,
                  std::int64_t k,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  float* sums) {
    const std::int64_t group = Codes::group(k);
    const std::int64_t groups = k / group;
    const std::byte* scales = w + k / Codes::kPerByte * kPanelColumns;
    F32x16 total[R][P];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) total[r][p] = splat(0.0F);
    for (std::int64_t g = 0; g < groups; ++g) {
      I32x16 sum[R][P];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = no_integers();
      constexpr std::int64_t kStep = 4 * Codes::kParts;
      for (std::int64_t i = g * group; i < (g + 1) * group; i += kStep) {
        Bytes64 x[Codes::kParts][R];
        for (int part = 0; part < Codes::kParts; ++part)
          for (int r = 0; r < R; ++r) x[part][r] = splat_four(a[r] + i + std::ptrdiff_t{4} * part);
        for (int p = 0; p < P; ++p) {
          Bytes64 codes[Codes::kParts];
          const std::byte* from = w + p * w_step + i / Codes::kPerByte * kPanelColumns;
          fetch.reading(from);
          Codes::unpack(load_bytes(from), codes);
          for (int part = 0; part < Codes::kParts; ++part)
            for (int r = 0; r < R; ++r) sum[r][p] = dot_fours(sum[r][p], codes[part], x[part][r]);
        }
        fetch.step();
      }
      for (int p = 0; p < P; ++p) {
        const F32x16 scale =
            load(reinterpret_cast<const float*>(scales + p * w_step) + g * kPanelColumns);
        for (int r = 0; r < R; ++r) {
          const I32x16 exact = subtract(sum[r][p], row_sum(a[r], k, g) * Codes::kBias);
          total[r][p] = fma(to_floats(exact), scale, total[r][p]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const F32x16 scale = splat(row_scale(a[r], k));
      for (int p = 0; p < P; ++p)
        store(sums + (r * kGroupPanels + p) * kPanelColumns, mul(total[r][p], scale));
    }
  }

  static float row_scale(const std::byte* row, std::int64_t k) {
    float scale;
    std::memcpy(&scale, row + k, sizeof scale);
    return scale;
  }

  static std::int32_t row_sum(const std::byte* row, std::int64_t k, std::int64_t group) {
    std::int32_t sum;
    std::memcpy(&sum, row + k + 4 + 4 * group, sizeof sum);
    return sum;
  }

  static std::int64_t row_bytes(std::int64_t k) {
    return k + round_up_to(4 + 4 * (k / Codes::group(k)), 64);
  }

  /// Makes one row ready: as `encode` to the wire int8 rounds it, which leaves the scale behind k.
  static void quantise_row(const std::byte* in,
                           std::int64_t k,
                           std::int64_t padded,
                           std::byte* out) {
    encode_quantized<Bf16Row, Quantized<Int8Bytes, F32Scales, true>>(in, out, k);
    float scale;
    std::memcpy(&scale, out + round_up_to(k, 4), sizeof scale);
    std::memset(out + k, 0, static_cast<std::size_t>(padded - k));
    std::memcpy(out + padded, &scale, sizeof scale);
    const std::int64_t group = Codes::group(padded);
    for (std::int64_t g = 0; g < padded / group; ++g) {
      I32x16 sum = no_integers();
      for (std::int64_t i = g * group; i < (g + 1) * group; i += 64)
        sum = dot_fours(sum, splat_byte(1), load_bytes(out + i));
      const std::int32_t folded = fold_integers(sum);
      std::memcpy(out + padded + 4 + 4 * g, &folded, sizeof folded);
    }
  }
};

template <class Codes>
void gemm_of_codes(const GemmArgs& args, std::byte* ready) {
  using Sums = IntSums<Codes>;
  const std::int64_t k = round_up_to(args.weights->k, kIntKBlock);
  const std::int64_t stride = Sums::row_bytes(k);
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, stride);
    const GemmArgs part = part_of(args, first, rows);
    for (std::int64_t r = 0; r < rows; ++r)
      Sums::quantise_row(row_of(part.in, r), args.weights->k, k, ready + r * stride);
    all_panels<Sums>(
        part, {ready, stride, nullptr}, k, PanelsInPlace{args.weights->data, Sums::panel_bytes(k)});
  }
}

inline std::size_t int_gemm_scratch_bytes(std::int64_t k) {
  // int4 has more sums a row. The end of a row's padding may take what encode writes behind k.
  const std::int64_t row = IntSums<Int4Codes>::row_bytes(round_up_to(k, kIntKBlock));
  return static_cast<std::size_t>(kReadyRows.most_bytes(row) + 64);
}

/// REQUIRES: int8 or int4 weights.
inline void int_gemm(const GemmArgs& args) {
  std::byte* ready = aligned_scratch(args, int_gemm_scratch_bytes(args.weights->k));
  if (args.weights->type == WeightType::int8)
    gemm_of_codes<Int8Codes>(args, ready);
  else
    gemm_of_codes<Int4Codes>(args, ready);
}
