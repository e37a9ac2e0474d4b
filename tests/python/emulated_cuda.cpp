// The extension module once more, with an emulated GPU in CUDA's place, as tests/c/device_test.cpp
// has it; and in the same file a second module by which tests reach the device's memory.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "ferry/exchange/gpu/cuda.h"
#include "support/emulated_queue.h"

namespace nb = nanobind;

namespace ferry {

namespace {

testing::GpuEmulator& device() {
  static testing::GpuEmulator one({.seed = 5});
  return one;
}

std::vector<std::size_t> shape_of(const nb::ndarray<nb::ro>& array) {
  std::vector<std::size_t> shape(array.ndim());
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = array.shape(i);
  return shape;
}

/// Memory of the device that DLPack calls CUDA's.
nb::ndarray<nb::array_api> array_of(const nb::ndarray<nb::numpy, nb::ro, nb::c_contig>& values) {
  auto* memory = static_cast<std::byte*>(device().allocate(values.nbytes()));
  device().copy(memory, values.data(), values.nbytes());
  const nb::capsule owner(memory, [](void* data) noexcept { device().free(data); });
  const std::vector<std::size_t> shape = shape_of(nb::ndarray<nb::ro>(values));
  return {memory,
          shape.size(),
          shape.data(),
          owner,
          nullptr,
          values.dtype(),
          nb::device::cuda::value,
          0};
}

/// What an array on the device holds, row by row of its last dimension, into packed `to`.
void read_array(const nb::ndarray<nb::ro>& from, const nb::ndarray<nb::numpy, nb::c_contig>& to) {
  if (from.size() != to.size() || from.dtype() != to.dtype() || from.ndim() < 1)
    throw nb::value_error("arrays differ");
  const std::size_t columns = from.shape(from.ndim() - 1);
  const auto element = static_cast<std::int64_t>(from.itemsize());
  const auto* begin = static_cast<const std::byte*>(from.data());
  auto* out = static_cast<std::byte*>(to.data());
  for (std::size_t row = 0; columns > 0 && row < from.size() / columns; ++row) {
    std::int64_t offset = 0;
    std::size_t left = row;
    for (std::size_t d = from.ndim() - 1; d-- > 0; left /= from.shape(d))
      offset += static_cast<std::int64_t>(left % from.shape(d)) * from.stride(d);
    const std::size_t bytes = columns * from.itemsize();
    device().copy(out + row * bytes, begin + offset * element, bytes);
  }
}

/// Packed values to packed memory of the device.
void write_array(const nb::ndarray<>& to,
                 std::int64_t first,
                 const nb::ndarray<nb::numpy, nb::ro, nb::c_contig>& from) {
  device().copy(
      static_cast<std::byte*>(to.data()) + first * static_cast<std::int64_t>(to.itemsize()),
      from.data(),
      from.nbytes());
}

}  // namespace

CudaDevices find_cuda_devices() { return {.names = {"an emulated device"}}; }

std::unique_ptr<GpuQueue> make_cuda_queue(int, int) {
  return std::make_unique<testing::EmulatedQueue>(device(), 2);
}

std::unique_ptr<GpuQueue> use_cuda_stream(int, int, void*) {
  return std::make_unique<testing::EmulatedQueue>(device(), 2);
}

}  // namespace ferry

NB_MODULE(_emulated, module) {
  module.def("array", &ferry::array_of);
  module.def("shape", &ferry::shape_of);
  module.def("download", &ferry::read_array);
  module.def("upload", &ferry::write_array);
}
