#include "support/gpu/fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace ferry::testing::gpu {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

// ThreadSanitizer crashes beyond 8 thousand; Linux has room for 65 thousand pieces of memory, and a
// stack is two.
#ifdef __SANITIZE_THREAD__
constexpr int kMostFibres = 6000;
#else
constexpr int kMostFibres = 30000;
#endif

struct Idle {
  std::mutex mutex;
  int made = 0;
  std::vector<std::unique_ptr<Fibre>> fibres;
};

Idle& idle() {
  static Idle fibres;
  return fibres;
}

}  // namespace

std::unique_ptr<Fibre> take_fibre() {
  const std::lock_guard lock(idle().mutex);
  auto& fibres = idle().fibres;
  if (!fibres.empty()) {
    auto fibre = std::move(fibres.back());
    fibres.pop_back();
    return fibre;
  }
  if (idle().made == kMostFibres) {
    throw std::runtime_error("more threads at once than can be emulated here");
  }
  ++idle().made;
  return std::make_unique<Fibre>(kStackBytes);
}

void give_back(std::unique_ptr<Fibre> fibre) {
  const std::lock_guard lock(idle().mutex);
  idle().fibres.push_back(std::move(fibre));
}

struct Fibre::Entry {
  // Never returns: the last switch leaves for good.
  static void run(transfer_t from) {
    auto& fibre = *static_cast<Fibre*>(from.data);
    fibre.resumer_ = from.fctx;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &fibre.resumer_stack_, &fibre.resumer_stack_bytes_);
#endif
    fibre.function_(fibre.argument_);
    fibre.returned_ = true;
    fibre.leave(true);
  }
};

Fibre::Fibre(std::size_t stack_bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  bytes_ = (stack_bytes + page - 1) / page * page;
  void* memory = mmap(nullptr,
                      page + bytes_,
                      PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1,
                      0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  stack_ = memory_ + page;
  mprotect(memory_, page, PROT_NONE);
#ifdef __SANITIZE_THREAD__
  thread_sanitizer_ = __tsan_create_fiber(0);
#endif
}

Fibre::~Fibre() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_destroy_fiber(thread_sanitizer_);
#endif
  munmap(memory_, bytes_ + static_cast<std::size_t>(stack_ - memory_));
}

void Fibre::start(void (*function)(void*), void* argument) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, bytes_);  // of frames that were never left
#endif
#ifdef __SANITIZE_THREAD__
  if (!returned_) {  // its frames count as entered
    __tsan_destroy_fiber(thread_sanitizer_);
    thread_sanitizer_ = __tsan_create_fiber(0);
  }
#endif
  function_ = function;
  argument_ = argument;
  returned_ = false;
  fake_stack_ = nullptr;
  context_ = make_fcontext(stack_ + bytes_, bytes_, &Entry::run);
}

bool Fibre::resume() {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  thread_sanitizer_resumer_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_sanitizer_, 0);
#endif
  const transfer_t from = jump_fcontext(static_cast<fcontext_t>(context_), this);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  context_ = from.fctx;
  return !returned_;
}

void Fibre::suspend() { leave(false); }

void Fibre::leave([[maybe_unused]] bool for_good) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(
      for_good ? nullptr : &fake_stack_, resumer_stack_, resumer_stack_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(thread_sanitizer_resumer_, 0);
#endif
  const transfer_t from = jump_fcontext(static_cast<fcontext_t>(resumer_), nullptr);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack_, &resumer_stack_bytes_);
#endif
  resumer_ = from.fctx;
}

}  // namespace ferry::testing::gpu
