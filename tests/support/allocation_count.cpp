#include "support/allocation_count.h"

#include <cstdlib>
#include <new>

namespace {

thread_local std::int64_t allocations = 0;
thread_local std::int64_t allocated_bytes = 0;

}  // namespace

// The operator new of the whole binary; the array and nothrow forms end up here. Not under a
// sanitizer, which has operators of its own that must match each other: nothing is counted there.
#ifndef FERRY_SANITIZE

void* operator new(std::size_t bytes) {
  ++allocations;
  allocated_bytes += static_cast<std::int64_t>(bytes);
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }

void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

#endif

namespace ferry::testing {

AllocationCount::AllocationCount() : before_(allocations), bytes_before_(allocated_bytes) {}

std::int64_t AllocationCount::so_far() const { return allocations - before_; }

std::int64_t AllocationCount::bytes_so_far() const { return allocated_bytes - bytes_before_; }

}  // namespace ferry::testing
