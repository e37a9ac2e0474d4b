// Server-sent events that have names, as Anthropic's API and OpenAI's responses send them.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace ferry::test {

/// Each event's data; fails where its "type" is not its name.
inline std::vector<nlohmann::ordered_json> named_events(const std::string& text) {
  std::vector<nlohmann::ordered_json> events;
  std::istringstream in(text);
  for (std::string name, data, blank; std::getline(in, name);) {
    std::getline(in, data);
    std::getline(in, blank);
    EXPECT_TRUE(name.starts_with("event: ") && data.starts_with("data: ") && blank.empty())
        << name << "\n"
        << data << "\n"
        << blank;
    events.push_back(nlohmann::ordered_json::parse(data.substr(6)));
    EXPECT_EQ(events.back()["type"], name.substr(7));
  }
  return events;
}

}  // namespace ferry::test
