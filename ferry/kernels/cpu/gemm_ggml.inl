// gemm with ggml's blocks, in the order of bf16 weights and with their bits. One source for every
// instruction set: included after gemm_mxfp4.inl and ggml_panels.inl, inside an anonymous
// namespace.
//
// One row and two make numbers of codes as they multiply. For more a group of panels becomes bf16
// first, as with mxfp4, but sooner, as a number costs more to make.

template <class Pairs16>
void gemm_ggml(const GemmArgs& args) {
  using Sums = PairSums<Pairs16>;
  const std::int64_t k = args.weights->k;
  std::byte* unpacked = aligned_scratch(args, unpacked_gemm_scratch_bytes(k));
  auto* wide = reinterpret_cast<float*>(unpacked + kGroupPanels * Bf16Pairs::panel_bytes(k));
  const std::int64_t bytes = Pairs16::panel_bytes(k);
  const PanelsInPlace in_place{args.weights->data, bytes};
  if (args.rows > 2) {
    return gemm_widened<PairSums<Bf16Pairs>>(
        args, wide, Bf16OfCodes{args.weights->data, bytes, k, unpacked, unpack_ggml<Pairs16>});
  }
  widen_rows(args, k, wide);
  const ReadyRows rows{bytes_of(wide), k * 4, nullptr};
  if (args.rows == 1) return one_pass<Sums, 1, Tiling::kOnePanels>(args, rows, k, in_place);
  if (args.rows == 2) return one_pass<Sums, 2, Tiling::kPassPanels>(args, rows, k, in_place);
}
