// The same language in shorter repetitions, against std::regex.
#include "ferry/text/short_repetitions.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <regex>
#include <string>

namespace ferry {
namespace {

class RandomRegex {
 public:
  explicit RandomRegex(unsigned seed) : random_(seed) {}

  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  std::string regex() {
    std::string all;
    for (int i = 0, parts = 1 + below(3); i < parts; ++i) all += atom() + repetition();
    return below(4) == 0 ? all + "|" + atom() + repetition() : all;
  }

  std::string text() {
    std::string all;
    for (int i = 0, length = below(20); i < length; ++i) all += "ab{"[below(8) == 0 ? 2 : below(2)];
    return all;
  }

 private:
  std::string atom() {
    const char* atoms[] = {
        "a", "b", "[ab]", "[^b]", ".", "\\x61", "\\w", "\\{", "(?:ab|b)", "(a[^a])", "(?:a{2,5}b)"};
    return atoms[below(std::size(atoms))];
  }

  std::string repetition() {
    const int least = below(9);
    const std::string from = fmt::format("{{{}", least);
    switch (below(6)) {
      case 0:
        return "";
      case 1:
        return "*";
      case 2:
        return from + ",}";
      case 3:
        return from + "}";
      default:
        return fmt::format("{},{}{}", from, least + below(12), below(4) == 0 ? "}?" : "}");
    }
  }

  std::mt19937 random_;
};

TEST(ShortRepetitions, AreOfTheSameLanguage) {
  RandomRegex random(1);
  int matches = 0;
  int cut = 0;
  for (int i = 0; i < 400; ++i) {
    const std::string regex = random.regex();
    const std::string shorter = with_short_repetitions(regex, 1 + random.below(4));
    cut += shorter != regex ? 1 : 0;
    const std::regex one(regex);
    const std::regex other(shorter);
    for (int t = 0; t < 30; ++t) {
      const std::string text = random.text();
      const bool is = std::regex_match(text, one);
      matches += is ? 1 : 0;
      ASSERT_EQ(std::regex_match(text, other), is) << regex << " as " << shorter << ": " << text;
    }
  }
  EXPECT_GT(matches, 500);
  EXPECT_GT(cut, 200);
}

TEST(ShortRepetitions, LookAsOneWouldWriteThem) {
  EXPECT_EQ(with_short_repetitions("^[a-z]{300}$"), "^(?:[a-z]{128}[a-z]{128}[a-z]{44})$");
  EXPECT_EQ(with_short_repetitions("x.{0,200}"), "x(?:(?:.{0,127}|.{128}.{0,72}))");
  EXPECT_EQ(with_short_repetitions("\xc3\xa4{129,}"), "(?:\xc3\xa4{128}\xc3\xa4{1,})");
}

TEST(ShortRepetitions, LeaveWhatIsShortTooLargeOrUnclear) {
  for (const char* regex : {"a*",
                            "a{1,128}",
                            "a{100000}",
                            "(abcdefghijkl){500}",
                            "(a{1000}){100}",
                            "(?<name>a){200}",
                            "[]a]{200}",
                            "[[:alpha:]]{200}",
                            "\\k<name>{200}",
                            "a{200",
                            "{200}",
                            "(a{200}",
                            "a)b{200}",
                            "[a{200}",
                            "a{3,2}b{200}",
                            "a{200}\\",
                            ""})
    EXPECT_EQ(with_short_repetitions(regex), regex);
}

}  // namespace
}  // namespace ferry
