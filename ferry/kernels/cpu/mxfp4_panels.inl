// Panels of mxfp4 codes (packed_matrix.h). One source for every instruction set: included after
// gemm_common.inl, inside an anonymous namespace. A code times its scale is a bf16 exactly, unless
// it is infinite or one of the denormals that threads flush anyway, so everything behind this is
// bf16's.

/// Of so many k's codes.
inline std::int64_t mxfp4_code_bytes(std::int64_t k) { return k * (kPanelColumns / 2); }

/// k is padded to whole blocks.
inline std::int64_t mxfp4_panel_bytes(std::int64_t k) {
  constexpr std::int64_t kLine = 64;
  return round_up_to(mxfp4_code_bytes(k) + k / kMxfp4Group * kPanelColumns, kLine);
}

/// What the panel's numbers from k = `first` on, a multiple of kMxfp4Group, are multiplied by.
inline F32x16 mxfp4_scale(const std::byte* panel, std::int64_t k, std::int64_t first) {
  return load_powers(panel + mxfp4_code_bytes(k) + first / kMxfp4Group * kPanelColumns);
}

/// One panel as bf16.
inline void unpack_mxfp4(const std::byte* panel, std::int64_t k, std::byte* out) {
  constexpr std::int64_t kPairBytes = 4 * kPanelColumns;
  for (std::int64_t first = 0; first < k; first += kMxfp4Group) {
    const F32x16 scale = mxfp4_scale(panel, k, first);
    for (std::int64_t i = first; i < first + kMxfp4Group; i += 4, out += 2 * kPairBytes) {
      Pairs pairs[2];
      load_e2m1(panel + mxfp4_code_bytes(i), scale, pairs);
      store_bf16_pairs(out, pairs[0]);
      store_bf16_pairs(out + kPairBytes, pairs[1]);
    }
  }
}
