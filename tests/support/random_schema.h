// Schemas by chance, of what grammars support.
#pragma once

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace ferry::test {

inline nlohmann::ordered_json random_schema(std::mt19937& random, int depth = 0) {
  using Schema = nlohmann::ordered_json;
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  switch (pick(depth < 2 ? 10 : 7)) {
    case 0: {
      const int least = pick(200) - 100;
      return {{"type", "integer"}, {"minimum", least}, {"maximum", least + pick(50)}};
    }
    case 1: {
      const int least = pick(20) - 10;
      return {{"type", "number"}, {"minimum", least}, {"maximum", least + 0.5 * pick(9)}};
    }
    case 2: {
      const int least = pick(3);
      return {{"type", "string"}, {"minLength", least}, {"maxLength", least + pick(6)}};
    }
    case 3:
      return {{"enum", {"a\"b", 7, -1.5, nullptr, {{"k", {1, "\n"}}}}}};
    case 4:
      return {{"type", {"boolean", "null"}}};
    case 5:
      return {{"const", {{"fixed", true}}}};
    case 6:
      return {{"anyOf", {{{"type", "boolean"}}, {{"type", "integer"}, {"minimum", 0}}}}};
    case 7: {
      const int least = pick(2);
      return {{"type", "array"},
              {"items", random_schema(random, depth + 1)},
              {"minItems", least},
              {"maxItems", least + pick(3)}};
    }
    default: {
      Schema object{
          {"type", "object"}, {"properties", Schema::object()}, {"required", Schema::array()}};
      for (int i = 0, n = 1 + pick(4); i < n; ++i) {
        const std::string name = fmt::format("p{}", i) + (i == 2 ? " \"ü" : "");
        object["properties"][name] = random_schema(random, depth + 1);
        if (pick(2) == 0) object["required"].push_back(name);
      }
      if (pick(3) == 0) object["additionalProperties"] = {{"type", "boolean"}};
      if (pick(3) == 0) object["additionalProperties"] = false;
      return object;
    }
  }
}

}  // namespace ferry::test
