#include "ferry/function_ref.h"

#include <gtest/gtest.h>

namespace ferry {
namespace {

int twice(FunctionRef<int(int)> f, int x) { return f(f(x)); }

TEST(FunctionRef, CallsTheCallableItself) {
  int calls = 0;
  const auto add = [&calls](int x) {
    ++calls;
    return x + 3;
  };
  EXPECT_EQ(twice(add, 1), 7);
  EXPECT_EQ(calls, 2);
}

TEST(FunctionRef, KeepsTheStateOfAMutableLambda) {
  auto count = [n = 0](int) mutable { return ++n; };
  EXPECT_EQ(twice(count, 0), 2);
  EXPECT_EQ(count(0), 3);
}

TEST(FunctionRef, HandsAContextToAPlainFunction) {
  int factor = 5;
  const auto times = [](int x, void* context) { return x * *static_cast<int*>(context); };
  EXPECT_EQ(twice({+times, &factor}, 2), 50);
}

TEST(FunctionRef, PassesReferencesThrough) {
  int seen = 0;
  const auto set = [](int& x) { x = 9; };
  FunctionRef<void(int&)>{set}(seen);
  EXPECT_EQ(seen, 9);
}

}  // namespace
}  // namespace ferry
