// Reading what a caller hands over: pointers that must not be NULL, structs of another size,
// numbers and names out of range. What cannot be is a ConfigError, before anything has been
// changed.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>

#include "ferry/c/base.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/memory_kind.h"
#include "ferry/wire.h"

namespace ferry::c {

/// What is known of a struct of the interface; specialised by FERRY_C_STRUCT.
template <class T>
struct StructInfo;

/// Stands in the .cpp that reads or fills the struct: ferry_x, FERRY_X for FERRY_X_INIT and
/// FERRY_X_MAGIC. `least`: bytes of the struct as it first came.
#define FERRY_C_STRUCT_OF(type, NAME, least)              \
  template <>                                             \
  struct StructInfo<type> {                               \
    static constexpr const char* kName = #type;           \
    static constexpr const char* kInit = #NAME "_INIT";   \
    static constexpr std::uint32_t kMagic = NAME##_MAGIC; \
    static constexpr std::size_t kLeastBytes = least;     \
    static type made() { return NAME##_INIT; }            \
  }
#define FERRY_C_STRUCT(type, NAME) FERRY_C_STRUCT_OF(type, NAME, sizeof(type))
/// Of one that has grown: `member` is the first that it did not have from the beginning. Callers
/// that were built before may leave it and those behind it out.
#define FERRY_C_STRUCT_GROWN(type, NAME, member) \
  FERRY_C_STRUCT_OF(type, NAME, offsetof(type, member))

/// Throws unless `pointer` is there.
template <class T>
T* need(T* pointer, const char* name) {
  if (pointer == nullptr) fail<ConfigError>("{} is NULL", name);
  return pointer;
}

/// Throws unless the head of `given` is that of its kind.
template <class T>
void check_head(const T* given) {
  using Info = StructInfo<T>;
  need(given, Info::kName);
  if (given->magic != Info::kMagic) {
    fail<ConfigError>("{}: the magic number is {:#x}, not {:#x}; begin with {}",
                      Info::kName,
                      given->magic,
                      Info::kMagic,
                      Info::kInit);
  }
  if (given->size < Info::kLeastBytes) {
    fail<ConfigError>("{}: {} bytes, this library knows {} at least; begin with {}",
                      Info::kName,
                      given->size,
                      Info::kLeastBytes,
                      Info::kInit);
  }
}

/// The struct as this library knows it; what an older caller does not know is as its INIT has it.
/// Throws ConfigError for a wrong head, and where a newer caller has set a member that this library
/// does not know.
template <class T>
T read_struct(const T* given) {
  static_assert(std::is_trivially_copyable_v<T>);
  check_head(given);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  const std::size_t known = std::min<std::size_t>(sizeof(T), given->size);
  if (std::any_of(bytes + known, bytes + given->size, [](unsigned char b) { return b != 0; })) {
    fail<ConfigError>("{}: something is set behind the {} bytes that libferry {} knows",
                      StructInfo<T>::kName,
                      sizeof(T),
                      ferry_version());
  }
  T whole = StructInfo<T>::made();
  std::memcpy(&whole, given, known);
  return whole;
}

/// Fills a struct of the caller as far as the caller knows it; its head stays.
template <class T>
void fill_struct(T* to, const T& from) {
  const std::uint32_t size = to->size;
  std::memcpy(to, &from, std::min<std::size_t>(sizeof(T), size));
  to->size = size;
}

/// A C array of `count` as a span. Throws where there is none and count > 0, or count < 0.
template <class T, class N>
std::span<T> array(T* data, N count, const char* name) {
  if (std::is_signed_v<N> && count < N{0}) fail<ConfigError>("{}: {} of them", name, count);
  if (data == nullptr && count > N{0}) fail<ConfigError>("{} is NULL, {} expected", name, count);
  return {data, static_cast<std::size_t>(count)};
}

inline std::string text_or(const char* text, const char* otherwise) {
  return text != nullptr ? text : otherwise;
}

/// An enumerator by its number. Throws unless it is 0..last.
template <class E>
E enumerator(std::int32_t number, E last, const char* name) {
  if (number < 0 || number > static_cast<std::int32_t>(last))
    fail<ConfigError>("{} is {}; 0 to {} are possible", name, number, static_cast<int>(last));
  return static_cast<E>(number);
}

/// Seconds of a caller; too many to count are for ever. Throws for a negative number and NaN.
std::chrono::nanoseconds duration(double seconds, const char* name);

inline DType dtype(std::int32_t number, const char* name) {
  return enumerator(number, DType::f16, name);
}

inline WireType wire(std::int32_t number, const char* name) {
  return enumerator(number, WireType::int8_block, name);
}

/// Throws for a place but ordinary memory.
MemoryPlace place(const ferry_place& given, const char* name);

/// As it is. Throws for no kind of memory.
MemoryPlace any_place(const ferry_place& given);

ferry_place place(const MemoryPlace& ours);

/// Rows that are read. Throws where rows are expected and there are none.
RowsView rows(const void* data, std::int64_t stride, std::int64_t count, const char* name);

/// Rows that are written, each of `row_bytes`. Throws also where they overlap.
MutableRowsView rows(
    void* data, std::int64_t stride, std::int64_t count, std::size_t row_bytes, const char* name);

}  // namespace ferry::c
