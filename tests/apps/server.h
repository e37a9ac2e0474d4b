// ferry serve as a process, and what tests ask of it.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "apps/program.h"

namespace ferry::test {

/// A running server on a port of its own.
class Server {
 public:
  explicit Server(const Arguments& arguments, const Arguments& environment = {})
      : program_(Arguments{"serve", "--port", "0", "--json", "--threads", "1"} + arguments,
                 environment) {
    for (int i = 0; i < 3000 && program_.out().find('\n') == std::string::npos; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    port_ = nlohmann::json::parse(program_.out()).at("port");
  }

  Program& program() { return program_; }

  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }

  /// curl's output; `body` empty: GET.
  std::string curl(const std::string& path, const std::string& body, const std::string& more = "") {
    std::string command = "curl -sS -m 200 " + more + " " + url(path);
    if (!body.empty()) command += " -d '" + body + "'";
    return output_of(command).out;
  }

 private:
  Program program_;
  int port_ = 0;
};

/// Ends it. Positions of keys and values that it had, as the line at the start says.
inline std::int64_t positions_of(Server& server) {
  kill(server.program().pid(), SIGTERM);
  const std::string err = server.program().wait().err;
  const std::string before = "keys and values of ";
  const std::size_t at = err.find(before);
  EXPECT_NE(at, std::string::npos) << err;
  return at == std::string::npos ? 0 : std::stoll(err.substr(at + before.size()));
}

/// A stream of `tokens` tokens.
inline std::string long_stream(int tokens) {
  return R"({"prompt": "hello", "ignore_eos": true, "stream": true, "max_tokens": )" +
         std::to_string(tokens) + "}";
}

inline constexpr int kEndless = 1000000;

/// With a model that has room for a generation that takes far longer than the tests.
class LongServe : public testing::Test {
 protected:
  void SetUp() override {
    const auto made = run_program({"make-model", "--out", model_, "--quiet"});
    ASSERT_EQ(made.status, 0) << made.err;
  }

  static void wait_for_running(Server& server, int requests) {
    const std::string wanted = "\"running\":" + std::to_string(requests) + ",";
    for (int i = 0; i < 600; ++i) {
      if (server.curl("/dashboard/state", "").find(wanted) != std::string::npos) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    FAIL() << "they never ran";
  }

  TempDir directory_;
  std::string model_ = (directory_.path() / "model").string();
};

}  // namespace ferry::test
