// gemm with int8 and int4 weights: rows are rounded to int8, each with a scale, and all sums of a
// group of k are exact integers, whatever the order. One source for every instruction set:
// included after gemm_fma.inl and int_rows.inl, inside an anonymous namespace.

/// A block's products by instructions that add four of them to each lane. Of rows and panels the
/// fewer wait in registers while the others pass by: sixteen registers hold no more beside the
/// sums.
template <class Codes>
struct FoursOfBlock {
  template <int R, int P, class Fetch>
  static void add(const std::byte* const* a,
                  std::int64_t block,
                  const std::byte* w,
                  std::int64_t w_step,
                  Fetch& fetch,
                  I32x16 (&sum)[R][P]) {
    for (std::int64_t i = block; i < block + kIntKBlock; i += 4 * Codes::kParts) {
      const auto codes_of = [&](int p, Bytes64(&codes)[Codes::kParts]) {
        const std::byte* from = w + p * w_step + i / Codes::kPerByte * kPanelColumns;
        fetch.reading(from);
        Codes::unpack(load_bytes(from), codes);
      };
      const auto row = [&](int r, int part) {
        return splat_four(a[r] + i + std::ptrdiff_t{4} * part);
      };
      if constexpr (R > P) {
        Bytes64 codes[P][Codes::kParts];
        for (int p = 0; p < P; ++p) codes_of(p, codes[p]);
        for (int part = 0; part < Codes::kParts; ++part) {
          for (int r = 0; r < R; ++r) {
            const Bytes64 x = row(r, part);
            for (int p = 0; p < P; ++p) sum[r][p] = Codes::dot(sum[r][p], codes[p][part], x);
          }
        }
      } else {
        Bytes64 x[Codes::kParts][R];
        for (int part = 0; part < Codes::kParts; ++part)
          for (int r = 0; r < R; ++r) x[part][r] = row(r, part);
        for (int p = 0; p < P; ++p) {
          Bytes64 codes[Codes::kParts];
          codes_of(p, codes);
          for (int part = 0; part < Codes::kParts; ++part)
            for (int r = 0; r < R; ++r) sum[r][p] = Codes::dot(sum[r][p], codes[part], x[part][r]);
        }
      }
    }
  }

  /// Puts each sum where its row and column are, once all blocks of a group are added.
  template <int R, int P>
  static void settle(I32x16 (&/*sum*/)[R][P]) {}
};

/// Sums of R rows and P panels, as F32Sums; k is padded to whole blocks.
template <class Codes, class Block>
struct IntSums {
  using Row = IntRow<Codes>;
  static constexpr int kRows = Tiling::kIntRows;
  static constexpr int kPanels = Tiling::kIntPanels;
  static constexpr bool kUnpacks = Codes::kUnpacks;

  static std::int64_t panel_bytes(std::int64_t k) {
    return k / Codes::kPerByte * kPanelColumns + k / Codes::group(k) * (kPanelColumns * 4);
  }

  static std::int64_t steps(std::int64_t k) { return k / kIntKBlock; }

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
      for (std::int64_t i = g * group; i < (g + 1) * group; i += kIntKBlock) {
        Block::template add<R, P>(a, i, w, w_step, fetch, sum);
        fetch.step();
      }
      Block::settle(sum);
      for (int p = 0; p < P; ++p) {
        const F32x16 scale =
            load(reinterpret_cast<const float*>(scales + p * w_step) + g * kPanelColumns);
        for (int r = 0; r < R; ++r) {
          const I32x16 exact = subtract(sum[r][p], Row::sum(a[r], k, g) * Codes::kLeft);
          total[r][p] = fma(to_floats(exact), scale, total[r][p]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const F32x16 scale = splat(Row::scale(a[r], k));
      for (int p = 0; p < P; ++p)
        store(sums + (r * kGroupPanels + p) * kPanelColumns, mul(total[r][p], scale));
    }
  }
};

template <class Codes, class Block>
void gemm_of_codes(const GemmArgs& args, std::byte* ready) {
  using Sums = IntSums<Codes, Block>;
  using Row = IntRow<Codes>;
  const std::int64_t k = round_up_to(args.weights->k, kIntKBlock);
  const std::int64_t stride = Row::bytes(k);
  for (std::int64_t first = 0, rows; first < args.rows; first += rows) {
    rows = kReadyRows.next(args.rows - first, stride);
    const GemmArgs part = part_of(args, first, rows);
    for (std::int64_t r = 0; r < rows; ++r)
      Row::quantise(row_of(part.in, r), args.weights->k, k, ready + r * stride);
    all_panels<Sums>(
        part, {ready, stride, nullptr}, k, PanelsInPlace{args.weights->data, Sums::panel_bytes(k)});
  }
}

inline std::size_t int_gemm_scratch_bytes(std::int64_t k) {
  // int4 has more sums a row. The end of a row's padding may take what encode writes behind k.
  const std::int64_t row = IntRow<Int4Codes>::bytes(round_up_to(k, kIntKBlock));
  return static_cast<std::size_t>(kReadyRows.most_bytes(row) + 64);
}

/// REQUIRES: int8 or int4 weights.
template <template <class> class BlockOf = FoursOfBlock>
void int_gemm(const GemmArgs& args) {
  std::byte* ready = aligned_scratch(args, int_gemm_scratch_bytes(args.weights->k));
  if (args.weights->type == WeightType::int8)
    gemm_of_codes<Int8Codes, BlockOf<Int8Codes>>(args, ready);
  else
    gemm_of_codes<Int4Codes, BlockOf<Int4Codes>>(args, ready);
}
