#include "ferry/core/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ferry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST(Errors, AreOneHierarchy) {
  EXPECT_THROW(fail<ConfigError>("x"), Error);
  EXPECT_THROW(fail<ModelError>("x"), Error);
  EXPECT_THROW(throw TransportError(TransportError::Kind::io, 0, "x"), Error);
  EXPECT_THROW(broken_contract("c", "x", "file.cpp", 1), Error);
}

TEST(Errors, FormatTheirMessage) {
  try {
    fail<ModelError>("{}: expected {} bytes, found {}", "a.safetensors", 8, 7);
    FAIL() << "did not throw";
  } catch (const ModelError& e) {
    EXPECT_STREQ(e.what(), "a.safetensors: expected 8 bytes, found 7");
  }
}

TEST(Errors, OfTransportsNameThePeer) {
  const TransportError e(TransportError::Kind::peer_died, 3, "rank 3 died");
  EXPECT_EQ(e.kind(), TransportError::Kind::peer_died);
  EXPECT_EQ(e.peer(), 3);
}

TEST(Check, PassesWithoutEvaluatingItsMessage) {
  int evaluated = 0;
  FERRY_CHECK(true, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

TEST(Check, SaysConditionValuesAndPlace) {
  const int rows = 3;
  try {
    FERRY_CHECK(rows == 4, "{} rows", rows);
    FAIL() << "did not throw";
  } catch (const BrokenContract& e) {
    EXPECT_THAT(e.what(),
                AllOf(HasSubstr("3 rows"), HasSubstr("rows == 4"), HasSubstr("error_test.cpp:")));
    EXPECT_THAT(e.what(), Not(HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace ferry
