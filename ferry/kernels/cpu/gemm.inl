// gemm: which loop runs for which weights. One source for every instruction set: included after
// gemm_blocks.inl and gemm_int.inl, inside an anonymous namespace.

inline std::size_t gemm_scratch_bytes(WeightType weights, std::int64_t k) {
  if (weights == WeightType::f32) return 0;
  if (is_byte_block(weights)) return byte_block_scratch_bytes(k);
  if (weights == WeightType::int8 || weights == WeightType::int4) return int_gemm_scratch_bytes(k);
  if (weights == WeightType::mxfp4 || is_ggml(weights)) return unpacked_gemm_scratch_bytes(k);
  return weights == WeightType::fp8 ? fp8_gemm_scratch_bytes(k) : widened_scratch_bytes(k);
}

inline void gemm(const GemmArgs& args) {
  switch (args.weights->type) {
    case WeightType::f32:
      return gemm_f32(args);
    case WeightType::bf16:
      return gemm_in_blocks_or<Bf16Pairs>(gemm_bf16, args);
    case WeightType::fp8:
      return gemm_in_blocks_or<Fp8Pairs>(gemm_fp8, args);
    case WeightType::mxfp4:
      return gemm_in_blocks_or<Mxfp4Pairs>(gemm_mxfp4, args);
    case WeightType::int8:
    case WeightType::int4:
      return int_gemm(args);
    case WeightType::q8_0_int8:
    case WeightType::q4_0_int8:
    case WeightType::iq4_nl_int8:
    case WeightType::q4_1_int8:
    case WeightType::q4_k_int8:
    case WeightType::q5_k_int8:
    case WeightType::q6_k_int8:
    case WeightType::mxfp4_int8:
      return byte_block_gemm(args);
    case WeightType::q8_0:
    case WeightType::q4_0:
    case WeightType::iq4_nl:
    case WeightType::q4_1:
    case WeightType::q4_k:
    case WeightType::q5_k:
    case WeightType::q6_k:
      return with_ggml_pairs(args.weights->type, [&]<class Pairs16>(Pairs16) {
        gemm_in_blocks_or<Pairs16>(gemm_ggml<Pairs16>, args);
      });
  }
}
