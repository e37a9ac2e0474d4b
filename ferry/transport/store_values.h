// What stores have in common about values.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>

#include "ferry/store.h"

namespace ferry {

/// Adds to a value that is a number as decimal text, or nothing yet. Throws Error that names the
/// key where it is something else.
std::int64_t add_to_value(const std::string& key, Store::Value& value, std::int64_t amount);

inline std::string text_of(const Store::Value& value) {
  return {reinterpret_cast<const char*>(value.data()), value.size()};
}

}  // namespace ferry
