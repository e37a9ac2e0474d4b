// gemm with fp8 weights, in the order of bf16 ones within each block of 128 k. One source for every
// instruction set: included after gemm_fma.inl and fp8_panels.inl, inside an anonymous namespace.
//
// Few rows widen codes as they multiply. For many, which would widen them again and again, a group
// of panels becomes bf16 first, which holds 2^-8 of any code's value exactly: the sums are the same
// bits.

struct Fp8Pairs {
  static constexpr int kPairs = 1;
  static constexpr std::int64_t kGroup = kFp8Block;
  static constexpr bool kUnpacks = true;
  static constexpr std::int64_t kFewestBlockRows = 8;

  using Factor = NoFactor;

  static std::int64_t bytes(std::int64_t k) { return k * kPanelColumns; }

  static std::int64_t panel_bytes(std::int64_t k) { return fp8_panel_bytes(k); }

  static Factor factor(const std::byte* /*panel*/, std::int64_t /*k*/, std::int64_t /*block*/) {
    return {};
  }

  static void load(const std::byte* p,
                   NoFactor /*one*/,
                   std::int64_t /*at*/,
                   Pairs (&out)[kPairs]) {
    const Sixteens x = load_two_finite_fp8(p);
    out[0] = {x.first, x.second};
  }
};

/// A panel whose codes have become bf16, as pairs; its scales stand behind them as before.
struct UnpackedFp8Pairs : Bf16Pairs {
  static constexpr std::int64_t kGroup = kFp8Block;

  static std::int64_t panel_bytes(std::int64_t k) { return k * kPanelColumns + fp8_panel_bytes(k); }
};

/// From this many rows on unpacking pays: it costs about what two blocks of rows spend on widening.
constexpr std::int64_t kFewestUnpackedRows = 8;

/// Panels unpacked into scratch, a group at a time.
struct UnpackedPanels {
  const std::byte* data;
  std::int64_t bytes;  ///< of a panel of codes
  std::int64_t k;
  std::byte* unpacked;  ///< room for kGroupPanels

  const std::byte* source(std::int64_t panel) const { return data + panel * bytes; }

  const std::byte* at(std::int64_t panel, std::int64_t panels) const {
    std::byte* out = unpacked;
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::byte* codes = source(panel + p);
      unpack_fp8(codes, k, out);
      const std::int64_t scales = bytes - k * kPanelColumns;
      std::memcpy(out + k * (2 * kPanelColumns),
                  codes + k * kPanelColumns,
                  static_cast<std::size_t>(scales));
      out += UnpackedFp8Pairs::panel_bytes(k);
    }
    return unpacked;
  }
};

inline std::size_t fp8_gemm_scratch_bytes(std::int64_t k) {
  const std::int64_t padded = round_up_to(k, kBf16KBlock);
  return widened_scratch_bytes(k) +
         static_cast<std::size_t>(kGroupPanels * UnpackedFp8Pairs::panel_bytes(padded));
}

inline void gemm_fp8(const GemmArgs& args) {
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  std::byte* scratch = aligned_scratch(args, fp8_gemm_scratch_bytes(args.weights->k));
  const std::int64_t bytes = Fp8Pairs::panel_bytes(k);
  std::byte* unpacked = scratch;
  auto* wide = reinterpret_cast<float*>(scratch + kGroupPanels * UnpackedFp8Pairs::panel_bytes(k));
  if (args.rows < kFewestUnpackedRows)
    gemm_widened<PairSums<Fp8Pairs>>(args, wide, PanelsInPlace{args.weights->data, bytes});
  else
    gemm_widened<PairSums<UnpackedFp8Pairs>>(
        args, wide, UnpackedPanels{args.weights->data, bytes, k, unpacked});
}
