#include "ferry/text/compile_thread.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

/// Pages of it that nothing touches cost nothing.
constexpr std::size_t kStackBytes = std::size_t{256} << 20U;

std::atomic<int> given_up{0};

struct Job {
  std::function<void()> work;
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  bool done = false;
  bool abandoned = false;
  std::exception_ptr failure;
};

extern "C" void* run_job(void* owned) {
  const std::unique_ptr<std::shared_ptr<Job>> owner(static_cast<std::shared_ptr<Job>*>(owned));
  Job& job = **owner;
  std::exception_ptr failure;
  try {
    job.work();
  } catch (...) {
    failure = std::current_exception();
  }
  job.work = {};  // with what it owns, while its end is waited for
  const std::lock_guard lock(job.mutex);
  job.failure = failure;
  job.done = true;
  if (job.abandoned) --given_up;
  job.changed.notify_all();
  return nullptr;
}

}  // namespace

bool run_bounded(std::function<void()> work, std::optional<std::chrono::milliseconds> most) {
  if (most && given_up > 0)
    fail<ConfigError>("another grammar still takes its time; try again later");
  const auto job = std::make_shared<Job>();  // of this call and the thread
  job->work = std::move(work);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  auto owned = std::make_unique<std::shared_ptr<Job>>(job);
  pthread_t thread{};
  const int error = pthread_create(&thread, &attributes, run_job, owned.get());
  pthread_attr_destroy(&attributes);
  if (error != 0) fail<ConfigError>("no thread could be started to read a grammar ({})", error);
  static_cast<void>(owned.release());  // the thread's
  std::unique_lock lock(job->mutex);
  const auto done = [&] { return job->done; };
  if (!most) {
    job->changed.wait(lock, done);
  } else if (!job->changed.wait_for(lock, *most, done)) {
    job->abandoned = true;
    ++given_up;
    return false;
  }
  if (job->failure) std::rethrow_exception(job->failure);
  return true;
}

}  // namespace ferry
