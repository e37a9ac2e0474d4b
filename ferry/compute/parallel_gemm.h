// One matrix product on all threads of a rank.
#pragma once

#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

/// The scratch of the pool's gemm kernels, one piece a thread, for inputs of up to `max_k` elements
/// of `dtype` and any weights that take them.
class GemmScratch {
 public:
  GemmScratch(const ThreadPool& pool, DType dtype, std::int64_t max_k);

  std::span<std::byte> of(int worker) const {
    const Buffer& b = buffers_[static_cast<std::size_t>(worker)];
    return {b.data(), b.size()};
  }

 private:
  std::vector<Buffer> buffers_;
};

/// Panels that one thread should take at a time: whole gate, up pairs, small enough that all
/// threads stay busy and large enough that a row block is packed few times.
std::int64_t panel_grain(std::int64_t panels, int threads, Epilogue epilogue);

/// All panels that a product runs over.
std::int64_t gemm_panels(const GemmArgs& args);

/// The gemm of the pool's kernels over all panels of args.weights, split by columns over the pool;
/// fills in first_panel, last_panel and scratch. The split never changes a bit.
void parallel_gemm(ThreadPool& pool, const GemmScratch& scratch, const GemmArgs& args);

/// Panels [begin, end) of a product.
struct PanelRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The same over these panels alone. REQUIRES: gated: all bounds even.
void parallel_gemm(ThreadPool& pool,
                   const GemmScratch& scratch,
                   const GemmArgs& args,
                   std::span<const PanelRange> ranges);

}  // namespace ferry
