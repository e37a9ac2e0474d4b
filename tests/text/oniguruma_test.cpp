#include "ferry/text/oniguruma.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/text/regex.h"
#include "ferry/text/utf8.h"
#include "support/files.h"
#include "support/long_tests.h"

namespace ferry {
namespace {

using nlohmann::json;

json golden() { return json::parse(test::read_file(test::data_dir("oniguruma.json"))); }

/// Every character of the golden data, and the byte where it starts.
struct Characters {
  explicit Characters(const json& ranges) {
    for (const json& range : ranges) {
      for (auto c = range[0].get<std::uint32_t>(); c <= range[1].get<std::uint32_t>(); ++c) {
        at.emplace_back(text.size(), c);
        append_utf8(c, text);
      }
    }
  }

  std::string text;
  std::vector<std::pair<std::size_t, std::uint32_t>> at;
};

TEST(Oniguruma, ClassesHoldTheCharactersThatTokenizersMatch) {
  const json data = golden();
  const Characters characters(data["characters"]);
  std::size_t index = 0;
  for (const json& row : data["classes"]) {
    if (slow_run() && index++ % 8 != 0) continue;
    const auto pattern = row[0].get<std::string>();
    SCOPED_TRACE(pattern + " is " + oniguruma_to_pcre2(pattern, "file"));
    std::size_t count = 0;
    std::uint64_t hash = 0xCBF29CE484222325;
    auto next = characters.at.begin();
    Regex(pattern, "file").for_each_match(characters.text, [&](std::size_t begin, std::size_t) {
      while (next->first != begin) ++next;
      hash = (hash ^ next->second) * 0x100000001B3;
      ++count;
    });
    EXPECT_EQ(count, row[1].get<std::size_t>());
    EXPECT_EQ(hash, row[2].get<std::uint64_t>());
  }
}

TEST(Oniguruma, TextsAreCutWhereTokenizersCutThem) {
  const json data = golden();
  for (const json& row : data["pieces"]) {
    const auto pattern = row[0].get<std::string>();
    const auto text = row[1].get<std::string>();
    SCOPED_TRACE(pattern);
    if (row[2].is_null()) {
      EXPECT_THROW(Regex(pattern, "file"), ModelError);
      continue;
    }
    SCOPED_TRACE(oniguruma_to_pcre2(pattern, "file"));
    std::vector<std::string> pieces;
    std::size_t done = 0;
    Regex(pattern, "file").for_each_match(text, [&](std::size_t begin, std::size_t end) {
      if (begin > done) pieces.push_back(text.substr(done, begin - done));
      pieces.push_back(text.substr(begin, end - begin));
      done = end;
    });
    if (done < text.size()) pieces.push_back(text.substr(done));
    EXPECT_EQ(pieces, row[2].get<std::vector<std::string>>());
  }
}

TEST(Oniguruma, WhatBothUnderstandAlikeStaysAsItIs) {
  for (const char* pattern : {R"(a+|b{2,3}[^x-z]*(?=\n)|\p{L}++)", R"((?<name>a)\k<name>)"}) {
    EXPECT_EQ(oniguruma_to_pcre2(pattern, "file"), pattern);
  }
}

TEST(Oniguruma, DamagedPatternsAreOneLine) {
  std::string deep(200, '[');
  for (const std::string pattern : {"[",
                                    "[a-",
                                    "[[:alpha:]",
                                    "\\",
                                    "[\\",
                                    "(?",
                                    "(?i",
                                    "(?z)",
                                    "\\p{",
                                    "\\p",
                                    "[&&",
                                    "(?#",
                                    "\\x{",
                                    "a(?#",
                                    ")",
                                    deep.c_str()}) {
    SCOPED_TRACE(pattern);
    EXPECT_THROW(Regex(pattern, "file"), ModelError);
  }
  EXPECT_EQ(test::message_of<ModelError>([] { Regex("a[[:foo:]]", "t.json"); }),
            "t.json: pattern a[[:foo:]]: there is no [:foo:]");
}

}  // namespace
}  // namespace ferry
