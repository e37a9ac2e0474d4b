// The thread handle of thread.h on a CUDA device. All PTX is in this file.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ferry/kernels/gpu/thread.h"

namespace ferry {

extern __shared__ uint4 cuda_shared_memory[];

class CudaThread {
 public:
  FERRY_GPU int block() const { return static_cast<int>(blockIdx.x); }

  FERRY_GPU int blocks() const { return static_cast<int>(gridDim.x); }

  FERRY_GPU int thread() const { return static_cast<int>(threadIdx.x); }

  FERRY_GPU int threads() const { return static_cast<int>(blockDim.x); }

  FERRY_GPU int lane() const { return thread() % kWarpThreads; }

  FERRY_GPU int warp() const { return thread() / kWarpThreads; }

  FERRY_GPU int warps() const { return threads() / kWarpThreads; }

  template <class V>
  FERRY_GPU V load(const V* p) const {
    return *p;
  }

  template <class V>
  FERRY_GPU void store(V* p, std::type_identity_t<V> v) const {
    *p = v;
  }

  FERRY_GPU std::byte* shared() const { return reinterpret_cast<std::byte*>(cuda_shared_memory); }

  FERRY_GPU void sync() const { __syncthreads(); }

  FERRY_GPU void sync_warp() const { __syncwarp(); }

  template <class V>
  FERRY_GPU V shuffle(V v, int lane) const {
    return __shfl_sync(kWholeWarp, v, lane);
  }

  template <class V>
  FERRY_GPU V shuffle_xor(V v, int mask) const {
    return __shfl_xor_sync(kWholeWarp, v, mask);
  }

  template <class V>
  FERRY_GPU V shuffle_up(V v, int lanes) const {
    return __shfl_up_sync(kWholeWarp, v, static_cast<unsigned>(lanes));
  }

  FERRY_GPU std::uint32_t ballot(bool b) const { return __ballot_sync(kWholeWarp, b); }

  FERRY_GPU std::uint32_t add(std::uint32_t* p, std::uint32_t v) const { return atomicAdd(p, v); }

  FERRY_GPU std::uint64_t add(std::uint64_t* p, std::uint64_t v) const {
    static_assert(sizeof(unsigned long long) == sizeof v);
    return atomicAdd(reinterpret_cast<unsigned long long*>(p), v);
  }

  FERRY_GPU std::uint32_t add_acquire_release(std::uint32_t* p, std::uint32_t v) const {
    std::uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(p), "r"(v)
                 : "memory");
    return before;
  }

  FERRY_GPU std::uint32_t load_acquire(const std::uint32_t* p) const {
    std::uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
  }

  FERRY_GPU std::uint64_t load_acquire(const std::uint64_t* p) const {
    std::uint64_t v;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
  }

  FERRY_GPU void store_release(std::uint32_t* p, std::uint32_t v) const {
    asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
  }

  FERRY_GPU void store_release(std::uint64_t* p, std::uint64_t v) const {
    asm volatile("st.release.sys.global.u64 [%0], %1;" : : "l"(p), "l"(v) : "memory");
  }

  FERRY_GPU void add_release(std::uint64_t* p, std::uint64_t v) const {
    asm volatile("red.release.sys.global.add.u64 [%0], %1;" : : "l"(p), "l"(v) : "memory");
  }

  FERRY_GPU void add_release(std::uint32_t* p, std::uint32_t v) const {
    asm volatile("red.release.sys.global.add.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
  }

  FERRY_GPU void fence() const { __threadfence_system(); }

  FERRY_GPU void copy_async(void* to, const void* from, bool there) const {
    // The hint: what is beside it is wanted next.
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  }

  FERRY_GPU void commit_copies() const { asm volatile("cp.async.commit_group;" : : : "memory"); }

  template <int Groups>
  FERRY_GPU void wait_copies() const {
    asm volatile("cp.async.wait_group %0;" : : "n"(Groups) : "memory");
  }

  FERRY_GPU void multiply(float (&sums)[4],
                          const MatrixWords& a,
                          std::uint32_t b0,
                          std::uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
  }

  FERRY_GPU std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) const {
    std::uint32_t products;  // sm_80 has no mul of bf16; -0 added leaves every product as it is
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(products) : "r"(a), "r"(b), "r"(0x80008000U));
    return products;
  }

  FERRY_GPU std::uint32_t pick_bytes(std::uint32_t v, std::uint32_t picks) const {
    std::uint32_t picked;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(picked) : "r"(v), "r"(picks));
    return picked;
  }

  FERRY_GPU void pause() const { __nanosleep(20); }

  FERRY_GPU std::uint64_t nanoseconds() const {
    std::uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
  }

 private:
  static FERRY_GPU unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
  }

  static constexpr unsigned kWholeWarp = 0xffffffffU;
};

}  // namespace ferry
