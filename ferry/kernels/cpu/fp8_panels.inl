// Panels of fp8 codes (packed_matrix.h). One source for every instruction set: included after
// gemm_common.inl, inside an anonymous namespace.

/// k is padded to whole blocks.
inline std::int64_t fp8_panel_bytes(std::int64_t k) {
  return k * kPanelColumns + (k + kFp8Block - 1) / kFp8Block * (kPanelColumns * 4);
}

/// The codes of one panel as a panel of bf16, which holds 2^-8 of any code's value exactly.
inline void unpack_fp8(const std::byte* codes, std::int64_t k, std::byte* out) {
  for (std::int64_t i = 0; i < k; i += 2, codes += 2 * kPanelColumns) {
    const Sixteens x = load_two_finite_fp8(codes);
    store_bf16_pairs(out + i * (2 * kPanelColumns), {x.first, x.second});
  }
}
