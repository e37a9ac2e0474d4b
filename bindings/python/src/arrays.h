// Callers' arrays as the library sees them: torch tensors, numpy arrays, and whatever else speaks
// DLPack or the buffer protocol. Nothing is copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/expert_rows.h"
#include "ferry/memory_kind.h"
#include "ferry/moe_forward.h"

namespace ferry::python {

namespace nb = nanobind;

/// Element types that cross the border. numpy has neither bf16 nor fp8: its arrays of uint16 and
/// uint8 are taken for their codes, and those of ml_dtypes for what they say.
enum class Element : std::uint8_t { f32, bf16, f16, fp8, i8, u8, i32, u32, i64, f64, boolean };

std::string_view element_name(Element type);
std::size_t element_bytes(Element type);
Element element_of(DType type);

/// An array of the caller, kept alive. Threads: made, copied and destroyed with the GIL held; what
/// it points to may be used without.
class Array {
 public:
  Array() = default;
  /// `name`: the argument, for messages. Throws ConfigError for what is no array that lies at
  /// `place` (this process's memory, or that of a device), and where `writable` for one that is
  /// read only.
  Array(nb::handle object,
        std::string_view name,
        bool writable = false,
        const MemoryPlace& place = {});

  explicit operator bool() const { return data_ != nullptr || ndim() > 0; }

  std::byte* data() const { return data_; }

  int ndim() const { return static_cast<int>(shape_.size()); }

  std::int64_t shape(int i) const { return shape_[static_cast<std::size_t>(i)]; }

  /// Bytes.
  std::int64_t stride(int i) const { return strides_[static_cast<std::size_t>(i)]; }

  Element type() const { return type_; }

  const std::string& name() const { return name_; }

  /// Throws ConfigError unless the shape is [rows, columns] (rows < 0: any number) with the
  /// elements of a row side by side.
  void check_rows(std::int64_t rows, std::int64_t columns) const;
  /// The same for any shape with all elements side by side; a negative size fits any.
  void check_packed(std::initializer_list<std::int64_t> shape) const;

  /// REQUIRES: check_rows().
  RowsView rows() const { return {.base = data_, .stride = stride(0)}; }

  MutableRowsView mutable_rows() const { return {.base = data_, .stride = stride(0)}; }

  /// f32, bf16 or f16, else ConfigError.
  DType dtype() const;
  /// i32, u32 or i64, else ConfigError.
  IndexView ids() const;

 private:
  void read(const nb::ndarray<nb::ro>& array, const MemoryPlace& place);
  [[noreturn]] void refuse(std::initializer_list<std::int64_t> shape) const;

  nb::ndarray<nb::ro> array_;
  std::string name_;
  std::byte* data_ = nullptr;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
  Element type_ = Element::f32;
};

/// What arrays a caller works with, and gets back. On a device what is not torch's speaks DLPack.
enum class Framework : std::uint8_t { numpy, torch };

Framework framework_of(nb::handle object);

/// Memory of ours as an array of the caller's.
struct View {
  std::byte* data = nullptr;
  std::vector<std::size_t> shape;
  std::vector<std::int64_t> strides;  ///< bytes; empty: packed
  Element type = Element::f32;
  bool writable = true;
  MemoryPlace place = {};
};

/// `owner` lives as long as the array.
nb::object make_array(const View& view, Framework framework, const nb::object& owner);

/// A new one, of undefined contents.
nb::object empty_array(const std::vector<std::size_t>& shape, Element type, Framework framework);

/// A Python object that keeps something of ours alive.
template <class T>
nb::object keep(std::shared_ptr<T> value) {
  auto* held = new std::shared_ptr<T>(std::move(value));
  return nb::capsule(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<T>*>(p); });
}

}  // namespace ferry::python
