// Small messages of known parts as bytes: little-endian numbers, and texts behind their length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

using Bytes = std::vector<std::byte>;

class ByteWriter {
 public:
  template <class T>
  ByteWriter& number(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    append(std::as_bytes(std::span(&value, 1)));
    return *this;
  }

  ByteWriter& text(std::string_view text) {
    return blob(std::as_bytes(std::span(text.data(), text.size())));
  }

  ByteWriter& blob(std::span<const std::byte> blob) {
    number(static_cast<std::uint32_t>(blob.size()));
    append(blob);
    return *this;
  }

  const Bytes& bytes() const { return bytes_; }

 private:
  void append(std::span<const std::byte> bytes);

  Bytes bytes_;
};

/// Reads what a ByteWriter wrote, or throws Error where the bytes end too early; they may come from
/// a stranger. Borrows the bytes.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

  std::span<const std::byte> blob() { return take(number<std::uint32_t>()); }

  /// A blob that outlives the bytes.
  Bytes copy() {
    const auto bytes = blob();
    return {bytes.begin(), bytes.end()};
  }

  std::string text() {
    const auto bytes = blob();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  bool done() const { return rest_.empty(); }

 private:
  std::span<const std::byte> take(std::size_t bytes) {
    if (bytes > rest_.size()) throw Error("a message between ranks is cut short");
    const auto taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }

  std::span<const std::byte> rest_;
};

}  // namespace ferry
