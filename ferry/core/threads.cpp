#include "ferry/core/threads.h"

#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/core/float_mode.h"

namespace ferry {

namespace {

constexpr std::chrono::milliseconds kSleepSlice{50};

}  // namespace

FlushDenormals::FlushDenormals() noexcept : saved_(float_mode()) {
  set_float_mode(with_flushing(saved_));
}

FlushDenormals::~FlushDenormals() { set_float_mode(saved_); }

ThreadPool::ThreadPool(int threads, const Kernels* kernels) : kernels_(kernels) {
  FERRY_CHECK(threads >= 1, "a thread pool needs at least one thread, not {}", threads);
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker)
    workers_.emplace_back([this, worker] { worker_loop(worker); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  futex_wake_all(generation_, /*shared=*/false);
  for (auto& t : workers_) t.join();
}

void ThreadPool::run(FunctionRef<void(int)> task) {
  if (!workers_.empty()) {
    task_ = &task;
    running_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
    // seq_cst on both sides: either a worker going to sleep sees the new generation, or we see it
    // among the sleepers and wake it.
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake_all(generation_, false);
  }
  run_one(task, 0);
  wait_for_workers();
  if (failure_) {
    std::exception_ptr failure;
    std::swap(failure, failure_);
    std::rethrow_exception(failure);
  }
}

void ThreadPool::wait_for_workers() noexcept {
  Backoff backoff;
  while (running_.load(std::memory_order_acquire) > 0) {
    if (!backoff.idle()) {
      backoff.pause();
      continue;
    }
    // As in run(): the last worker sees that the caller sleeps, or the caller that nobody runs.
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    const std::uint32_t seen = running_.load(std::memory_order_seq_cst);
    if (seen > 0) futex_wait(running_, seen, kSleepSlice, /*shared=*/false);
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }
}

void ThreadPool::parallel_for(std::int64_t n,
                              std::int64_t grain,
                              FunctionRef<void(std::int64_t, std::int64_t, int)> task) {
  if (n <= 0) return;
  const std::int64_t pieces = (n + grain - 1) / grain;
  if (pieces == 1 || workers_.empty()) {
    const FlushDenormals flush;
    task(0, n, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  run([&](int worker) {
    for (std::int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
      task(piece * grain, std::min(n, (piece + 1) * grain), worker);
  });
}

void ThreadPool::run_one(FunctionRef<void(int)> task, int worker) noexcept {
  const FlushDenormals flush;
  try {
    task(worker);
  } catch (...) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::worker_loop(int worker) {
  std::uint32_t seen = 0;
  while (true) {
    Backoff backoff;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (!backoff.idle()) {
        backoff.pause();
        continue;
      }
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      if (generation_.load(std::memory_order_seq_cst) == seen)
        futex_wait(generation_, seen, kSleepSlice, /*shared=*/false);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    ++seen;
    if (stop_.load(std::memory_order_acquire)) return;
    run_one(*task_, worker);
    running_.fetch_sub(1, std::memory_order_seq_cst);
    if (caller_sleeps_.load(std::memory_order_seq_cst)) futex_wake_all(running_, false);
  }
}

}  // namespace ferry
