#include "ferry/engine/request.h"

#include <gtest/gtest.h>

#include "ferry/core/error.h"

namespace ferry {
namespace {

constexpr int kVocab = 100;
constexpr int kContext = 8;

Request request_of(std::vector<std::int32_t> prompt) {
  return {.prompt = std::move(prompt), .sampling = {}, .stop_ids = {}};
}

TEST(Request, SaneOnesPass) {
  EXPECT_NO_THROW(check_request(request_of({0, 99}), kVocab, kContext));
  EXPECT_NO_THROW(check_request(request_of(std::vector<std::int32_t>(kContext)), kVocab, kContext));
}

TEST(Request, BadPromptsAreRefused) {
  EXPECT_THROW(check_request(request_of({}), kVocab, kContext), ConfigError);
  EXPECT_THROW(check_request(request_of({-1}), kVocab, kContext), ConfigError);
  EXPECT_THROW(check_request(request_of({1, 100}), kVocab, kContext), ConfigError);
  EXPECT_THROW(check_request(request_of(std::vector<std::int32_t>(kContext + 1)), kVocab, kContext),
               ConfigError);
}

TEST(Request, BadOptionsAreRefused) {
  Request request = request_of({1});
  request.max_new_tokens = 0;
  EXPECT_THROW(check_request(request, kVocab, kContext), ConfigError);
  request.max_new_tokens = 1;
  request.stop_ids.resize(kMaxStopIds + 1);
  EXPECT_THROW(check_request(request, kVocab, kContext), ConfigError);
  request.stop_ids.clear();
  request.sampling.top_p = 2;
  EXPECT_THROW(check_request(request, kVocab, kContext), ConfigError);
}

}  // namespace
}  // namespace ferry
