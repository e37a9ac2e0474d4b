// The kernels of an exchange and of experts as a CUDA device runs them, by names that
// cuda_device.cpp looks up. Built into one image for several devices (cmake/ferry_cuda.cmake), with
// -fmad=false and -ftz=true: see thread.h.
#include "ferry/exchange/gpu/combine_results.h"
#include "ferry/exchange/gpu/rank_sums.h"
#include "ferry/exchange/gpu/receive_tokens.h"
#include "ferry/exchange/gpu/send_far.h"
#include "ferry/exchange/gpu/send_tokens.h"
#include "ferry/kernels/gpu/cuda_thread.cuh"
#include "ferry/kernels/gpu/grouped_product.h"
#include "ferry/kernels/gpu/product_peak.h"

#define FERRY_GPU_KERNEL(name, Kernel, threads, blocks_at_once)         \
  extern "C" __global__ void __launch_bounds__(threads, blocks_at_once) \
      name(const Kernel kernel) {                                       \
    ferry::CudaThread thread;                                           \
    kernel(thread);                                                     \
  }

#define FERRY_EXCHANGE_KERNEL(name, Kernel) \
  FERRY_GPU_KERNEL(name, Kernel, ferry::gpu::kGpuBlockThreads, ferry::gpu::kGpuBlocksAtOnce)

#define FERRY_PRODUCT_KERNEL(name, Kernel) \
  FERRY_GPU_KERNEL(name, Kernel, Kernel::kThreads, Kernel::kBlocksAtOnce)

FERRY_EXCHANGE_KERNEL(ferry_send_tokens, ferry::gpu::SendTokens)
FERRY_EXCHANGE_KERNEL(ferry_receive_tokens, ferry::gpu::ReceiveTokens)
FERRY_EXCHANGE_KERNEL(ferry_send_results, ferry::gpu::SendResults)
FERRY_EXCHANGE_KERNEL(ferry_send_sums, ferry::gpu::SendSums)
FERRY_EXCHANGE_KERNEL(ferry_sum_results, ferry::gpu::SumResults)
FERRY_EXCHANGE_KERNEL(ferry_send_far_tokens, ferry::gpu::SendFarTokens)
FERRY_EXCHANGE_KERNEL(ferry_send_far_results, ferry::gpu::SendFarResults)
FERRY_PRODUCT_KERNEL(ferry_product_bf16, ferry::gpu::ProductBf16)
FERRY_PRODUCT_KERNEL(ferry_product_bf16_fp8, ferry::gpu::ProductBf16Fp8)
FERRY_PRODUCT_KERNEL(ferry_product_fp8_bf16, ferry::gpu::ProductFp8Bf16)
FERRY_PRODUCT_KERNEL(ferry_product_fp8, ferry::gpu::ProductFp8)
FERRY_GPU_KERNEL(ferry_product_peak, ferry::gpu::ProductPeak, ferry::gpu::ProductPeak::kThreads, 2)
