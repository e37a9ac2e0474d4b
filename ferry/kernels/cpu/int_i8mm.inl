// A block's products by SMMLA, which multiplies eight k of two rows with those of two columns.
// Included after gemm_int.inl, inside an anonymous namespace.

/// For two rows at a time; a single one is multiplied four k at a time. Until settle() the sums of
/// rows r and r + 1 hold, quarter by quarter, [row r, row r + 1][column c, column c + 1].
template <class Codes>
struct EightsOfBlock {
  static constexpr bool kHasBias = Codes::kLeft == 0;  // the value is taken, as dot_biased does it

  static int8x16_t with_sign(uint8x16_t codes) {
    if constexpr (kHasBias) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    return vreinterpretq_s8_u8(codes);
  }

  /// Eight k of four columns: of columns 0 and 1, of 2 and 3.
  struct Columns {
    int8x16_t first, second;
  };

  static Columns columns(uint8x16_t four, uint8x16_t next_four) {
    const int32x4_t a = vreinterpretq_s32_s8(with_sign(four));
    const int32x4_t b = vreinterpretq_s32_s8(with_sign(next_four));
    return {vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))};
  }

  /// Eight k of 16 columns: the first four, the others.
  static void load_codes(const std::byte* from, Bytes64 (&codes)[2]) {
    if constexpr (Codes::kParts == 2) {
      Codes::unpack(load_bytes(from), codes);
    } else {
      codes[0] = load_bytes(from);
      codes[1] = load_bytes(from + 64);
    }
  }

  static void add_pair(int8x16_t x, const Columns (&y)[4], I32x16& low, I32x16& high) {
    low.q0 = vmmlaq_s32(low.q0, x, y[0].first);
    low.q1 = vmmlaq_s32(low.q1, x, y[0].second);
    low.q2 = vmmlaq_s32(low.q2, x, y[1].first);
    low.q3 = vmmlaq_s32(low.q3, x, y[1].second);
    high.q0 = vmmlaq_s32(high.q0, x, y[2].first);
    high.q1 = vmmlaq_s32(high.q1, x, y[2].second);
    high.q2 = vmmlaq_s32(high.q2, x, y[3].first);
    high.q3 = vmmlaq_s32(high.q3, x, y[3].second);
  }

  template <int R, int P, class Fetch>
  static void add(const std::byte* const* a,
                  std::int64_t block,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  I32x16 (&sum)[R][P]) {
    if constexpr (R % 2 != 0) {
      FoursOfBlock<Codes>::template add<R, P>(a, block, w, w_step, fetch, sum);
    } else {
      const auto eight = [](const std::byte* row) {
        return vld1_s8(reinterpret_cast<const std::int8_t*>(row));
      };
      for (std::int64_t i = block; i < block + kIntKBlock; i += 8) {
        int8x16_t x[R / 2];
        for (int r = 0; r < R; r += 2) x[r / 2] = vcombine_s8(eight(a[r] + i), eight(a[r + 1] + i));
        for (int p = 0; p < P; ++p) {
          const std::byte* from = w + p * w_step + i / Codes::kPerByte * kPanelColumns;
          fetch.reading(from);
          Bytes64 codes[2];
          load_codes(from, codes);
          const Columns y[4] = {columns(codes[0].q0, codes[1].q0),
                                columns(codes[0].q1, codes[1].q1),
                                columns(codes[0].q2, codes[1].q2),
                                columns(codes[0].q3, codes[1].q3)};
          for (int r = 0; r < R; r += 2) add_pair(x[r / 2], y, sum[r][p], sum[r + 1][p]);
        }
      }
    }
  }

  template <int R, int P>
  static void settle(I32x16 (&sum)[R][P]) {
    if constexpr (R % 2 == 0) {
      const auto row = [](int32x4_t a, int32x4_t b) {
        return vcombine_s32(vget_low_s32(a), vget_low_s32(b));
      };
      const auto next_row = [](int32x4_t a, int32x4_t b) {
        return vcombine_s32(vget_high_s32(a), vget_high_s32(b));
      };
      for (int r = 0; r < R; r += 2) {
        for (int p = 0; p < P; ++p) {
          const I32x16 low = sum[r][p];
          const I32x16 high = sum[r + 1][p];
          sum[r][p] = {row(low.q0, low.q1),
                       row(low.q2, low.q3),
                       row(high.q0, high.q1),
                       row(high.q2, high.q3)};
          sum[r + 1][p] = {next_row(low.q0, low.q1),
                           next_row(low.q2, low.q3),
                           next_row(high.q0, high.q1),
                           next_row(high.q2, high.q3)};
        }
      }
    }
  }
};
