// A server over the demo model, and clients that say what must come back.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "server/served.h"

namespace ferry::test {

using Json = nlohmann::json;

inline constexpr const char* kPrompt = "Once upon a time there was a little fox named Mia.";

struct Answer {
  int status = 0;
  std::string body;
  std::string content_type;
};

/// None: there was no answer.
using MaybeAnswer = std::optional<Answer>;

MaybeAnswer get_from(const Served& served, const std::string& path);
MaybeAnswer delete_from(const Served& served, const std::string& path);
MaybeAnswer post_to(const Served& served, const std::string& path, const std::string& body);

/// One server for all tests of a file.
class Routes : public testing::Test {
 protected:
  static void SetUpTestSuite() { served = new Served; }

  static void TearDownTestSuite() {
    delete served;
    served = nullptr;
  }

  static MaybeAnswer post(const std::string& path, const std::string& body) {
    MaybeAnswer result = post_to(*served, path, body);
    EXPECT_TRUE(result.has_value()) << path << " " << body;
    return result;
  }

  static Json ok(const std::string& path, const Json& body) {
    const MaybeAnswer result = post(path, body.dump());
    EXPECT_EQ(result->status, 200) << result->body;
    return Json::parse(result->body);
  }

  static Json get(const std::string& path) {
    const MaybeAnswer result = get_from(*served, path);
    EXPECT_EQ(result->status, 200) << result->body;
    return Json::parse(result->body);
  }

  /// The events of a stream; the last one must be [DONE].
  static std::vector<Json> stream(const std::string& path, Json body) {
    body["stream"] = true;
    const MaybeAnswer result = post(path, body.dump());
    EXPECT_EQ(result->status, 200) << result->body;
    EXPECT_EQ(result->content_type, "text/event-stream");
    std::vector<Json> events;
    std::istringstream in(result->body);
    bool done = false;
    for (std::string line; std::getline(in, line);) {
      if (line.empty()) continue;
      EXPECT_TRUE(line.starts_with("data: ")) << line;
      EXPECT_FALSE(done) << "behind [DONE]: " << line;
      done = line == "data: [DONE]";
      if (!done) events.push_back(Json::parse(line.substr(6)));
    }
    EXPECT_TRUE(done) << result->body;
    return events;
  }

  inline static Served* served = nullptr;
};

}  // namespace ferry::test
