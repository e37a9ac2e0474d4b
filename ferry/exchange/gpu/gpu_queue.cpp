#include "ferry/exchange/gpu/gpu_queue.h"

#include "ferry/core/error.h"

namespace ferry {

std::unique_ptr<GpuGraph> GpuQueue::capture(FunctionRef<void()> work) {
  refuse_in_capture("a capture");
  begin_capture();
  try {
    work();
  } catch (...) {
    try {
      end_capture();
    } catch (const Error&) {
      // The driver ends a capture that has failed with an error of its own; the first one is told.
    }
    throw;
  }
  return end_capture();
}

void GpuQueue::refuse_in_capture(std::string_view call) const {
  FERRY_CHECK(capturing() == 0,
              "{} while a graph is captured on the {} queue, where nothing runs; end the capture "
              "first",
              call,
              name());
}

}  // namespace ferry
