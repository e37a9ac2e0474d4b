// gemm with mxfp4 weights, in the order of bf16 ones and with their bits. One source for every
// instruction set: included after gemm_fp8.inl and mxfp4_panels.inl, inside an anonymous namespace.
//
// Few rows widen codes as they multiply, for many a group of panels becomes bf16 first, as with
// fp8.

struct Mxfp4Pairs {
  static constexpr int kPairs = 2;
  static constexpr std::int64_t kGroup = 0;
  static constexpr bool kUnpacks = false;
  static constexpr std::int64_t kFewestBlockRows = 8;

  using Factor = F32x16;

  static std::int64_t bytes(std::int64_t k) { return mxfp4_code_bytes(k); }

  static std::int64_t panel_bytes(std::int64_t k) { return mxfp4_panel_bytes(k); }

  static Factor factor(const std::byte* panel, std::int64_t k, std::int64_t block) {
    return mxfp4_scale(panel, k, block);
  }

  static void load(const std::byte* p,
                   const Factor& scale,
                   std::int64_t /*at*/,
                   Pairs (&out)[kPairs]) {
    load_e2m1(p, scale, out);
  }
};

static_assert(kMxfp4Group == kBf16KBlock);  // a block's numbers share their factor

/// Panels that become bf16 in scratch, a group at a time.
struct Bf16OfCodes {
  const std::byte* data;
  std::int64_t bytes;  ///< of a panel of codes
  std::int64_t k;
  std::byte* unpacked;  ///< room for kGroupPanels
  void (*unpack)(const std::byte* panel, std::int64_t k, std::byte* out);

  const std::byte* source(std::int64_t panel) const { return data + panel * bytes; }

  const std::byte* at(std::int64_t panel, std::int64_t panels) const {
    for (std::int64_t p = 0; p < panels; ++p)
      unpack(source(panel + p), k, unpacked + p * Bf16Pairs::panel_bytes(k));
    return unpacked;
  }
};

inline std::size_t unpacked_gemm_scratch_bytes(std::int64_t k) {
  const std::int64_t padded = round_up_to(k, kBf16KBlock);
  return widened_scratch_bytes(k) +
         static_cast<std::size_t>(kGroupPanels * Bf16Pairs::panel_bytes(padded));
}

inline void gemm_mxfp4(const GemmArgs& args) {
  const std::int64_t k = round_up_to(args.weights->k, kBf16KBlock);
  std::byte* unpacked = aligned_scratch(args, unpacked_gemm_scratch_bytes(args.weights->k));
  auto* wide = reinterpret_cast<float*>(unpacked + kGroupPanels * Bf16Pairs::panel_bytes(k));
  const std::int64_t bytes = Mxfp4Pairs::panel_bytes(k);
  if (args.rows < kFewestUnpackedRows)
    gemm_widened<PairSums<Mxfp4Pairs>>(args, wide, PanelsInPlace{args.weights->data, bytes});
  else
    gemm_widened<PairSums<Bf16Pairs>>(
        args, wide, Bf16OfCodes{args.weights->data, bytes, k, unpacked, unpack_mxfp4});
}
