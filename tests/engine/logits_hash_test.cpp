#include "ferry/engine/logits_hash.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

TEST(LogitsHash, OfNothingIsTheKnownDigest) {
  EXPECT_EQ(to_hex(LogitsHash().finish()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(LogitsHash, IsOverLittleEndianFloats) {
  // printf '\x00\x00\x80\x3f\x00\x00\x00\xc0' | sha256sum
  LogitsHash hash;
  hash.add(std::vector<float>{1.0F});
  hash.add(std::vector<float>{-2.0F});
  EXPECT_EQ(to_hex(hash.finish()),
            "ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b");
}

}  // namespace
}  // namespace ferry
