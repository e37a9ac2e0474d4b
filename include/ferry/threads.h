// The threads of one rank.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "ferry/export.h"
#include "ferry/function_ref.h"

namespace ferry {

struct Kernels;

/// A fixed set of workers; the calling thread is worker 0, so a pool of one starts no thread.
/// Threads: run() may be called by one thread at a time. Workers run with denormals flushed.
class FERRY_API ThreadPool {
 public:
  /// REQUIRES: threads >= 1.
  /// kernels: what is computed on these threads computes with; null: with the process's
  /// (ferry/kernels/kernels.h). Ranks of one process may differ in it, which changes no bit.
  explicit ThreadPool(int threads, const Kernels* kernels = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  const Kernels* kernels() const { return kernels_; }

  /// Calls task(worker) once on every worker, 0..size()-1, and returns when all are done. The first
  /// exception a worker threw is thrown again here.
  void run(FunctionRef<void(int worker)> task);

  /// Splits [0, n) into pieces of `grain` handed out as workers become free: task(begin, end,
  /// worker). Runs on the caller alone when there is one piece. Results must not depend on the
  /// split.
  void parallel_for(std::int64_t n,
                    std::int64_t grain,
                    FunctionRef<void(std::int64_t, std::int64_t, int)> task);

 private:
  void worker_loop(int worker);
  void wait_for_workers() noexcept;
  void run_one(FunctionRef<void(int)> task, int worker) noexcept;

  const Kernels* kernels_;
  std::vector<std::thread> workers_;
  const FunctionRef<void(int)>* task_ = nullptr;  // set before generation_ grows
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<std::uint32_t> running_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace ferry
