// Hashes that guard against faults and name things, not against people. Every machine gets the same
// values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace ferry {

/// FNV-1a: what is added comes byte by byte, so it is for little that has to be told apart.
class Fnv1a {
 public:
  constexpr Fnv1a() = default;

  /// Other starts give other hashes of the same bytes.
  explicit constexpr Fnv1a(std::uint64_t start) : value_(kStart ^ start) {}

  constexpr void add(std::uint8_t byte) { value_ = (value_ ^ byte) * 0x100000001B3U; }

  constexpr void add(std::string_view text) {
    for (const char c : text) add(static_cast<std::uint8_t>(c));
  }

  void add(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) add(static_cast<std::uint8_t>(b));
  }

  /// Eight bytes, the lowest first.
  constexpr void add_number(std::uint64_t number) {
    for (int byte = 0; byte < 8; ++byte) add(static_cast<std::uint8_t>(number >> (8 * byte)));
  }

  constexpr std::uint64_t value() const { return value_; }

 private:
  static constexpr std::uint64_t kStart = 0xCBF29CE484222325U;

  std::uint64_t value_ = kStart;
};

/// A good 64-bit hash of a number: the finaliser of splitmix64.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9U;
  x = (x ^ x >> 27) * 0x94D049BB133111EBU;
  return x ^ x >> 31;
}

/// Of many bytes, in whole words of 8: whether those that have travelled are those that were sent.
/// Four independent chains, so that it goes as fast as memory.
inline std::uint64_t hash_bytes(std::span<const std::byte> bytes) {
  std::uint64_t h[4] = {1, 2, 3, 4};
  for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    std::uint64_t& chain = h[i / 8 % 4];
    chain = (chain ^ word) * 0x9E3779B97F4A7C15U;
    chain ^= chain >> 29;
  }
  return ((h[0] * 3 + h[1]) * 5 + h[2]) * 7 + h[3];
}

}  // namespace ferry
