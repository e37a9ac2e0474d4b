// The sampler's kernels, and the table of an instruction set. Included last, behind all_kernels.inl
// and what sampling does with its integers, inside an anonymous namespace.
#include "ferry/kernels/cpu/sampling.inl"

constexpr Kernels table_of(Isa isa, std::string_view name) {
  return {.isa = isa,
          .name = name,
          .gemm_scratch_bytes = gemm_scratch_bytes,
          .gemm = gemm,
          .attend = attend,
          .index_scores = index_scores,
          .weighted_sum = weighted_sum,
          .delta_rule = delta_rule,
          .rms_norm = rms_norm,
          .rope = rope,
          .softmax = softmax,
          .sigmoid = sigmoid_row,
          .scale = scale,
          .add = add_row,
          .convert = convert,
          .stream_copy = stream_copy,
          .stream_fence = stream_fence,
          .encode = encode,
          .decode = decode,
          .multiply_in_registers = multiply_in_registers,
          .greatest = greatest,
          .weigh = weigh,
          .exp_sum = exp_sum,
          .count_weights = count_weights,
          .pick_weights = pick_weights};
}
