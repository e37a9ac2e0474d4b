#include "ferry/core/hash.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry {
namespace {

std::uint64_t fnv1a(std::string_view text) {
  Fnv1a hash;
  hash.add(text);
  return hash.value();
}

TEST(Hash, Fnv1aGivesThePublishedValues) {
  EXPECT_EQ(fnv1a(""), 0xcbf29ce484222325U);
  EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cU);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171f73967e8U);
}

TEST(Hash, NumbersAreTheirBytesAndAStartChangesAll) {
  Fnv1a numbers;
  numbers.add_number(0x0000000000006261U);  // "ab", then six zeros
  EXPECT_EQ(numbers.value(), fnv1a(std::string_view("ab\0\0\0\0\0\0", 8)));
  Fnv1a bytes;
  bytes.add(std::as_bytes(std::span("foobar", 6)));
  EXPECT_EQ(bytes.value(), fnv1a("foobar"));
  Fnv1a other(1);
  other.add("foobar");
  EXPECT_NE(other.value(), bytes.value());
}

TEST(Hash, Mix64IsTheFinaliserOfSplitmix64) {
  // The first number of splitmix64 with seed 0.
  EXPECT_EQ(mix64(0x9E3779B97F4A7C15U), 0xE220A8397B1DCDAFU);
}

TEST(Hash, EveryBitOfManyBytesCounts) {
  std::vector<std::byte> bytes(72);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37);
  const std::uint64_t before = hash_bytes(bytes);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    const auto mask = static_cast<std::byte>(1U << bit % 8);
    bytes[bit / 8] ^= mask;
    EXPECT_NE(hash_bytes(bytes), before) << bit;
    bytes[bit / 8] ^= mask;
  }
}

}  // namespace
}  // namespace ferry
