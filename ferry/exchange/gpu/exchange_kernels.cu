// The kernels of an exchange as a CUDA device runs them, by names that cuda_queue.cpp looks up.
// Built into one image for several devices (cmake/ferry_cuda.cmake), with -fmad=false and
// -ftz=true: see thread.h.
#include "ferry/exchange/gpu/combine_results.h"
#include "ferry/exchange/gpu/receive_tokens.h"
#include "ferry/exchange/gpu/send_tokens.h"
#include "ferry/kernels/gpu/cuda_thread.cuh"

#define FERRY_GPU_KERNEL(name, Kernel)                                                        \
  extern "C" __global__ void __launch_bounds__(                                               \
      ferry::gpu::kGpuBlockThreads, ferry::gpu::kGpuBlocksAtOnce) name(const Kernel kernel) { \
    ferry::CudaThread thread;                                                                 \
    kernel(thread);                                                                           \
  }

FERRY_GPU_KERNEL(ferry_send_tokens, ferry::gpu::SendTokens)
FERRY_GPU_KERNEL(ferry_receive_tokens, ferry::gpu::ReceiveTokens)
FERRY_GPU_KERNEL(ferry_send_results, ferry::gpu::SendResults)
FERRY_GPU_KERNEL(ferry_sum_results, ferry::gpu::SumResults)
