#include "ferry/engine/prompt_pacer.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

using namespace std::chrono_literals;

TEST(PromptPacer, LearnsWhatMakesAStepThreeTimesAsLong) {
  PromptPacer pacer(4096);
  for (int i = 0; i < 100; ++i) {
    pacer.observe(0, 8, 10ms);
    pacer.observe(50, 8, 10ms + 50 * 100us);
  }
  EXPECT_NEAR(pacer.tokens(), 200, 2);  // 20 ms of 100 us each
}

TEST(PromptPacer, StepsWithoutDecodesTeachThePriceOfATokenToo) {
  PromptPacer pacer(4096);
  pacer.observe(1000, 0, 100ms);
  pacer.observe(0, 1, 5ms);
  EXPECT_NEAR(pacer.tokens(), 100, 1);
}

TEST(PromptPacer, StaysBetweenTheLeastAndTheMost) {
  PromptPacer pacer(512);
  EXPECT_GE(pacer.tokens(), PromptPacer::kLeast) << "before anything is known";
  EXPECT_LE(pacer.tokens(), 512);
  pacer.observe(0, 1, 1us);
  pacer.observe(10, 1, 1s);
  EXPECT_EQ(pacer.tokens(), PromptPacer::kLeast);
  PromptPacer cheap(512);
  cheap.observe(0, 1, 1s);
  cheap.observe(10, 0, 1us);
  EXPECT_EQ(cheap.tokens(), 512);
  EXPECT_EQ(PromptPacer(3).tokens(), 3);
}

}  // namespace
}  // namespace ferry
