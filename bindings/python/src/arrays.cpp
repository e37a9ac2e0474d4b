#include "arrays.h"

#include <fmt/format.h>

#include <array>
#include <string>

#include "ferry/core/error.h"

namespace ferry::python {

namespace {

struct ElementRow {
  Element type;
  std::string_view name;
  std::size_t bytes;
  nb::dlpack::dtype_code code;
};

constexpr std::array kElements{
    ElementRow{Element::f32, "float32", 4, nb::dlpack::dtype_code::Float},
    ElementRow{Element::bf16, "bfloat16", 2, nb::dlpack::dtype_code::Bfloat},
    ElementRow{Element::f16, "float16", 2, nb::dlpack::dtype_code::Float},
    ElementRow{Element::fp8, "float8_e4m3fn", 1, nb::dlpack::dtype_code::Float8_E4M3FN},
    ElementRow{Element::i8, "int8", 1, nb::dlpack::dtype_code::Int},
    ElementRow{Element::u8, "uint8", 1, nb::dlpack::dtype_code::UInt},
    ElementRow{Element::i32, "int32", 4, nb::dlpack::dtype_code::Int},
    ElementRow{Element::u32, "uint32", 4, nb::dlpack::dtype_code::UInt},
    ElementRow{Element::i64, "int64", 8, nb::dlpack::dtype_code::Int},
    ElementRow{Element::f64, "float64", 8, nb::dlpack::dtype_code::Float},
    ElementRow{Element::boolean, "bool", 1, nb::dlpack::dtype_code::Bool},
};

const ElementRow& row_of(Element type) { return kElements[static_cast<std::size_t>(type)]; }

nb::dlpack::dtype dlpack_of(Element type) {
  const ElementRow& row = row_of(type);
  return {static_cast<std::uint8_t>(row.code), static_cast<std::uint8_t>(row.bytes * 8), 1};
}

std::optional<Element> element_of(nb::dlpack::dtype type) {
  // numpy's only 16-bit unsigned rows are codes of bf16.
  if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt) && type.bits == 16) {
    return Element::bf16;
  }
  for (const ElementRow& row : kElements) {
    if (dlpack_of(row.type) == type) return row.type;
  }
  return std::nullopt;
}

nb::object helper(const char* name) {
  return nb::module_::import_("tokenferry._arrays").attr(name);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] < 0 ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace

std::string_view element_name(Element type) { return row_of(type).name; }

std::size_t element_bytes(Element type) { return row_of(type).bytes; }

Element element_of(DType type) {
  if (type == DType::f32) return Element::f32;
  return type == DType::bf16 ? Element::bf16 : Element::f16;
}

Array::Array(nb::handle object, std::string_view name, bool writable, const MemoryPlace& place)
    : name_(name) {
  // One refusal is no answer: torch exports no tensor that wants a gradient, old torch no fp8,
  // numpy none of ml_dtypes' types. The helper takes those as integers of the same width.
  const auto cast = [&](nb::handle from) {
    if (writable) {
      nb::ndarray<> array;
      if (!nb::try_cast<nb::ndarray<>>(from, array, false)) return false;
      array_ = nb::ndarray<nb::ro>(array);
      return true;
    }
    return nb::try_cast<nb::ndarray<nb::ro>>(from, array_, false);
  };
  if (cast(object)) {
    read(array_, place);
    return;
  }
  PyErr_Clear();
  const nb::object plain = helper("plain")(object);
  if (plain.is_none() || !cast(plain[0])) {
    PyErr_Clear();
    const std::string type = nb::cast<std::string>(nb::str(object.type().attr("__name__")));
    fail<ConfigError>("{} is a {}: it must be {} array in {}",
                      name,
                      type,
                      writable ? "a writable" : "an",
                      place.kind == MemoryKind::device
                          ? fmt::format("memory of device {} (torch, or DLPack)", place.device)
                          : "this process's memory (torch on the CPU, numpy, DLPack or the buffer "
                            "protocol)");
  }
  read(array_, place);
  const auto element = nb::cast<std::string>(plain[1]);
  for (const ElementRow& row : kElements) {
    if (row.name == element) type_ = row.type;
  }
}

namespace {

/// Throws unless the array lies at `place`.
void check_place(const nb::ndarray<nb::ro>& array,
                 std::string_view name,
                 const MemoryPlace& place) {
  const int type = array.device_type();
  const bool on_device = place.kind == MemoryKind::device;
  const bool there =
      on_device ? (type == nb::device::cuda::value || type == nb::device::cuda_managed::value) &&
                      array.device_id() == place.device
                : type == nb::device::cpu::value;
  if (there) return;
  const std::string where =
      type == nb::device::cpu::value
          ? "on the CPU"
          : fmt::format("on device {} (DLPack type {})", array.device_id(), type);
  const std::string wanted =
      on_device ? fmt::format("device {} (CUDA)", place.device) : std::string("the CPU");
  fail<ConfigError>("{} lies {}; it must be on {}", name, where, wanted);
}

}  // namespace

void Array::read(const nb::ndarray<nb::ro>& array, const MemoryPlace& place) {
  check_place(array, name_, place);
  const std::optional<Element> type = element_of(array.dtype());
  if (!type) {
    fail<ConfigError>("{} has elements of DLPack type {} with {} bits, which nothing here takes",
                      name_,
                      array.dtype().code,
                      array.dtype().bits);
  }
  type_ = *type;
  data_ = const_cast<std::byte*>(static_cast<const std::byte*>(array.data()));
  const auto bytes = static_cast<std::int64_t>(element_bytes(type_));
  shape_.resize(array.ndim());
  strides_.resize(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    shape_[i] = static_cast<std::int64_t>(array.shape(i));
    strides_[i] = array.stride(i) * bytes;
  }
}

void Array::refuse(std::initializer_list<std::int64_t> shape) const {
  fail<ConfigError>("{} is {} {} with strides of {} bytes; it must be {}, elements side by side",
                    name_,
                    element_name(type_),
                    shape_text(shape_),
                    shape_text(strides_),
                    shape_text({shape.begin(), shape.size()}));
}

void Array::check_rows(std::int64_t rows, std::int64_t columns) const {
  const auto bytes = static_cast<std::int64_t>(element_bytes(type_));
  const bool fits = ndim() == 2 && (rows < 0 || shape(0) == rows) && shape(1) == columns &&
                    (shape(1) <= 1 || shape(0) == 0 || stride(1) == bytes);
  if (!fits) refuse({rows, columns});
}

void Array::check_packed(std::initializer_list<std::int64_t> shape) const {
  bool fits = shape.size() == shape_.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape.begin()[i] < 0 || shape.begin()[i] == shape_[i];
  }
  auto step = static_cast<std::int64_t>(element_bytes(type_));
  for (int i = ndim() - 1; fits && i >= 0; --i) {
    fits = shape_[static_cast<std::size_t>(i)] <= 1 || stride(i) == step;
    step *= this->shape(i);
  }
  if (!fits && step != 0) refuse(shape);
}

DType Array::dtype() const {
  if (type_ == Element::f32) return DType::f32;
  if (type_ == Element::bf16) return DType::bf16;
  if (type_ == Element::f16) return DType::f16;
  fail<ConfigError>(
      "{} is {}; it must be float32, bfloat16 or float16", name_, element_name(type_));
}

IndexView Array::ids() const {
  const auto view = [&](IndexView::Type type) {
    return IndexView{.base = data_, .type = type, .stride = stride(0)};
  };
  if (type_ == Element::i32) return view(IndexView::Type::i32);
  if (type_ == Element::u32) return view(IndexView::Type::u32);
  if (type_ == Element::i64) return view(IndexView::Type::i64);
  fail<ConfigError>("{} is {}; ids are int32, uint32 or int64", name_, element_name(type_));
}

Framework framework_of(nb::handle object) {
  // Who has not imported torch has no tensor of it.
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (torch == nullptr || !PyObject_HasAttrString(torch, "Tensor")) return Framework::numpy;
  const int is = PyObject_IsInstance(object.ptr(), nb::handle(torch).attr("Tensor").ptr());
  return is == 1 ? Framework::torch : Framework::numpy;
}

nb::object make_array(const View& view, Framework framework, const nb::object& owner) {
  // What a framework cannot be told in DLPack's terms goes as integers of that width.
  const bool torch = framework == Framework::torch;
  Element type = view.type;
  if (type == Element::fp8) type = Element::u8;
  nb::dlpack::dtype dtype = dlpack_of(type);
  if (type == Element::bf16 && !torch && view.place.kind == MemoryKind::host) {
    dtype.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt);
  }
  std::vector<std::int64_t> strides;
  for (const std::int64_t bytes : view.strides) {
    strides.push_back(bytes / static_cast<std::int64_t>(element_bytes(type)));
  }
  const std::int64_t* steps = strides.empty() ? nullptr : strides.data();
  const bool device = view.place.kind == MemoryKind::device;
  const int device_type = device ? nb::device::cuda::value : nb::device::cpu::value;
  const auto exported = [&]<class... Kind>() {
    const nb::ndarray<Kind...> array(view.data,
                                     view.shape.size(),
                                     view.shape.data(),
                                     owner,
                                     steps,
                                     dtype,
                                     device_type,
                                     view.place.device);
    return nb::cast(array, nb::rv_policy::reference);
  };
  if (device && !torch) return exported.operator()<nb::array_api>();
  nb::object plain = torch           ? exported.operator()<nb::pytorch>()
                     : view.writable ? exported.operator()<nb::numpy>()
                                     : exported.operator()<nb::numpy, nb::ro>();
  if (view.type != Element::fp8 && (torch || view.type != Element::bf16)) return plain;
  return helper("viewed")(plain, nb::str(element_name(view.type).data()), torch);
}

nb::object empty_array(const std::vector<std::size_t>& shape, Element type, Framework framework) {
  nb::list sizes;
  for (const std::size_t size : shape) sizes.append(size);
  return helper("empty")(
      nb::tuple(sizes), nb::str(element_name(type).data()), framework == Framework::torch);
}

}  // namespace ferry::python
