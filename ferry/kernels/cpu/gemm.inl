// gemm: which loop runs for which weights. One source for every instruction set: included after
// gemm_fp8.inl and gemm_int.inl, inside an anonymous namespace.

inline std::size_t gemm_scratch_bytes(WeightType weights, std::int64_t k) {
  if (weights == WeightType::f32) return 0;
  if (weights == WeightType::int8 || weights == WeightType::int4) return int_gemm_scratch_bytes(k);
  return weights == WeightType::fp8 ? fp8_gemm_scratch_bytes(k) : widened_scratch_bytes(k);
}

inline void gemm(const GemmArgs& args) {
  switch (args.weights->type) {
    case WeightType::f32:
      return gemm_f32(args);
    case WeightType::bf16:
      if constexpr (Tiling::kBlockRows > 0)
        if (args.rows >= kFewestBlockRows<Bf16Pairs>) return gemm_in_blocks<Bf16Pairs>(args);
      return gemm_bf16(args);
    case WeightType::fp8:
      if constexpr (Tiling::kBlockRows > 0)
        if (args.rows >= kFewestBlockRows<Fp8Pairs>) return gemm_in_blocks<Fp8Pairs>(args);
      return gemm_fp8(args);
    case WeightType::int8:
    case WeightType::int4:
      return int_gemm(args);
  }
}
