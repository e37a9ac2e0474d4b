// Keyword arguments of a call: taken one by one, and none may be left over.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <cmath>
#include <optional>
#include <set>
#include <string>

#include "ferry/core/error.h"

namespace ferry::python {

namespace nb = nanobind;

/// Seconds as Python has them; throws ConfigError for what is no length of time.
inline std::chrono::nanoseconds duration(double seconds, std::string_view name) {
  if (!(seconds >= 0)) {
    fail<ConfigError>("{} is {}; it must be a number of seconds from 0 on", name, seconds);
  }
  constexpr double kLongest = 9e9;  // below what nanoseconds can count
  return std::chrono::nanoseconds(static_cast<std::int64_t>(std::min(seconds, kLongest) * 1e9));
}

/// Throws ConfigError that names the argument, and at the end one that nobody has asked for.
class Settings {
 public:
  Settings(std::string call, const nb::dict& values) : call_(std::move(call)), values_(values) {}

  /// The value, or nothing where it is missing or None.
  nb::object object(const char* name) {
    PyObject* found = PyDict_GetItemString(values_.ptr(), name);
    if (found == nullptr) return nb::none();
    taken_.insert(name);
    return nb::borrow(found);
  }

  template <class T>
  std::optional<T> find(const char* name) {
    const nb::object value = object(name);
    if (value.is_none()) return std::nullopt;
    T out{};
    if (!nb::try_cast<T>(value, out)) {
      PyErr_Clear();
      fail<ConfigError>("{}: {} cannot be {}", call_, name, nb::cast<std::string>(nb::repr(value)));
    }
    return out;
  }

  template <class T>
  T get(const char* name, T otherwise) {
    return find<T>(name).value_or(std::move(otherwise));
  }

  std::optional<std::chrono::nanoseconds> seconds(const char* name) {
    const std::optional<double> value = find<double>(name);
    if (!value) return std::nullopt;
    return duration(*value, name);
  }

  /// After the last one.
  void finish() const {
    if (taken_.size() == nb::len(values_)) return;
    fail<ConfigError>("{} was given an argument that it does not know, among {}",
                      call_,
                      nb::cast<std::string>(nb::str(values_.keys())));
  }

 private:
  std::string call_;
  nb::dict values_;
  std::set<std::string> taken_;
};

}  // namespace ferry::python
