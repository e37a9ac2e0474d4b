// A server over the demo model, and clients that say what must come back.
#pragma once

#include <gtest/gtest.h>
#include <httplib.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "server/served.h"

namespace ferry::test {

using Json = nlohmann::json;

inline constexpr const char* kPrompt = "Once upon a time there was a little fox named Mia.";

inline httplib::Client client_of(const Served& served) {
  httplib::Client client("127.0.0.1", served.port());
  client.set_read_timeout(60, 0);
  return client;
}

/// One server for all tests of a file.
class Routes : public testing::Test {
 protected:
  static void SetUpTestSuite() { served = new Served; }

  static void TearDownTestSuite() {
    delete served;
    served = nullptr;
  }

  static httplib::Result post(const std::string& path, const std::string& body) {
    httplib::Result result = client_of(*served).Post(path, body, "application/json");
    EXPECT_TRUE(result) << path << " " << body;
    return result;
  }

  static Json ok(const std::string& path, const Json& body) {
    const httplib::Result result = post(path, body.dump());
    EXPECT_EQ(result->status, 200) << result->body;
    return Json::parse(result->body);
  }

  static Json get(const std::string& path) {
    const httplib::Result result = client_of(*served).Get(path);
    EXPECT_EQ(result->status, 200) << result->body;
    return Json::parse(result->body);
  }

  /// The events of a stream; the last one must be [DONE].
  static std::vector<Json> stream(const std::string& path, Json body) {
    body["stream"] = true;
    const httplib::Result result = post(path, body.dump());
    EXPECT_EQ(result->status, 200) << result->body;
    EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
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
