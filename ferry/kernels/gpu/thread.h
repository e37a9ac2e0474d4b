// What a kernel for GPUs is written against: a handle to the thread that runs it.
//
// A kernel is a struct of arguments with
//   template <class Thread> FERRY_GPU void operator()(Thread& t) const;
// and Thread is one of two classes with the same members: CudaThread (cuda_thread.cuh, where all of
// CUDA's own words and the PTX are), or that of the emulator in tests/support, which runs blocks
// and warps as fibres on a host and watches every access. Kernels touch memory through it alone.
//
//   block(), blocks()        this block's number; how many the launch has. One dimension.
//   thread(), threads()      this thread's number in its block; how many a block has: warps' worths
//   lane(), warp(), warps()  in the warp; in the block; warps of the block
//
//   load(p), store(p, v)     plain accesses of 1, 2, 4, 8 or 16 bytes, aligned to their size, in
//                            global or shared memory
//   shared()                 the block's shared memory, GpuGrid::shared_bytes of it, aligned to 16;
//                            what it holds at first is undefined
//   sync()                   barrier of the block: every thread that has not returned takes part.
//                            What was written before is seen behind it.
//   sync_warp()              the same for a warp
//   shuffle(v, lane)         v of that lane; shuffle_xor(v, mask), shuffle_up(v, lanes) likewise:
//   of
//                            lane ^ mask; of `lanes` below, own where there is none. 4 or 8 bytes.
//   ballot(b)                a bit a lane. Whole warps take part in these four.
//   add(p, v)                atomic, relaxed, for the threads of the device; gives what was there.
//                            std::uint32_t or std::uint64_t
//   add_acquire_release(p, v)  as add(), but the threads of the device that add to one place see,
//   one
//                            after the other, what those before them wrote; std::uint32_t
//   load_acquire(p), store_release(p, v), add_release(p, v)
//                            for all devices and the host; std::uint32_t or std::uint64_t. Other
//                            threads' writes that they saw count as theirs (cumulativity), so a
//                            block's barrier and then one thread's release publish the block's.
//   fence()                  orders this thread's accesses before it with those after it, for all
//                            devices and the host
//   copy_async(to, from, there)  16 bytes of global memory into shared, some time before
//                            wait_copies(); zeros where `there` is false. Both aligned to 16.
//   commit_copies()          ends a group of copies, which may be empty
//   wait_copies<N>()         until at most the latest N of this thread's groups are under way.
//   Other
//                            threads see them behind a barrier.
//   multiply(sums, a, b0, b1)  of a whole warp: sums [16, 8] f32 += a [16, 16] bf16 * b [8, 16]
//   bf16
//                            transposed, in an order of the device's own (numeric class `fast`). Of
//                            lane l: a's words 0 and 1 are numbers l % 4 * 2 and the next of rows
//                            l / 4 and l / 4 + 8, words 2 and 3 those 8 further on; b0 and b1
//                            likewise of b's row l / 4. Sums 0 and 1: columns l % 4 * 2 and the
//                            next of row l / 4; 2 and 3: of row l / 4 + 8.
//   multiply_pairs(a, b)     two bf16 in each word: each of a times that of b, rounded to nearest
//                            even; denormals are numbers
//   pick_bytes(v, picks)     a word: byte i is byte p of v, p being the digit i of `picks` (of 4
//                            bits, from the last); p + 8: eight times the highest bit of byte p
//   pause()                  in every turn of a loop that waits for another thread
//   nanoseconds()            of a clock that goes on; std::uint64_t
//
// Floating point: compiled without contraction, with denormals flushed, so that +, *, / and
// std::fma are the operations of the CPU's scalar kernels; docs/numerics.md.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define FERRY_GPU __device__ __forceinline__
/// Before a loop that indexes registers: an index that varies would put them into memory.
#define FERRY_GPU_UNROLL _Pragma("unroll")
#else
#define FERRY_GPU inline
#define FERRY_GPU_UNROLL
#endif

namespace ferry {

inline constexpr int kWarpThreads = 32;

/// What multiply() takes of a.
struct MatrixWords {
  std::uint32_t word[4];
};

/// The shape of a launch.
struct GpuGrid {
  int blocks = 1;
  int threads = kWarpThreads;  ///< of a block; a multiple of kWarpThreads, at most 1024
  std::size_t shared_bytes = 0;
};

}  // namespace ferry
