#include "ferry/text/text_stream.h"

#include <gtest/gtest.h>

#include <random>

#include "support/files.h"

namespace ferry {
namespace {

struct Shown {
  std::vector<std::string> pieces;
  std::string text;
  std::string match;
};

Shown feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings stop(stops);
  Shown shown;
  for (const std::string& piece : pieces) {
    shown.pieces.push_back(stop.put(piece));
    shown.text += shown.pieces.back();
  }
  shown.text += stop.finish();
  shown.match = stop.match();
  return shown;
}

TEST(StopStrings, WithoutAnyTextGoesStraightThrough) {
  EXPECT_EQ(feed({}, {"ab", "c"}).pieces, (std::vector<std::string>{"ab", "c"}));
  EXPECT_EQ(feed({""}, {"ab"}).text, "ab");
}

TEST(StopStrings, EndsBeforeTheFirstMatchAlsoOverSeveralPieces) {
  const Shown shown = feed({"</s>"}, {"hello <", "/", "s> and more", "even more"});
  EXPECT_EQ(shown.text, "hello ");
  EXPECT_EQ(shown.match, "</s>");
}

TEST(StopStrings, HoldsBackOnlyWhatCouldBecomeAMatch) {
  const Shown shown = feed({"abc"}, {"xab", "a", "b", "d"});
  EXPECT_EQ(shown.pieces, (std::vector<std::string>{"x", "ab", "", "abd"}));
  EXPECT_EQ(shown.match, "");
}

TEST(StopStrings, WhatWasHeldBackComesAtTheEnd) {
  EXPECT_EQ(feed({"END"}, {"the EN"}).text, "the EN");
}

TEST(StopStrings, TheEarliestOfSeveralCounts) {
  const Shown shown = feed({"cd", "b"}, {"abcd"});
  EXPECT_EQ(shown.text, "a");
  EXPECT_EQ(shown.match, "b");
}

TEST(StopStrings, AnyCutOfTheTextGivesTheSame) {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += static_cast<char>('a' + random() % 2);
    const std::vector<std::string> stops = {"abab", "bbbb", "aab"};
    const Shown whole = feed(stops, {text});
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t n = 1 + random() % 4;
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    EXPECT_EQ(feed(stops, pieces).text, whole.text) << text;
  }
}

TEST(TextStream, AllPiecesTogetherAreTheDecodedText) {
  const Tokenizer tokenizer = Tokenizer::load(test::data_dir("tokenizer_qwen"));
  const std::string text = "Grüße, 世界! \xf0\x9f\x98\x80 done";
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  TextStream stream(&tokenizer, {});
  std::string shown;
  for (std::size_t i = 0; i < ids.size(); ++i) shown += stream.put(ids[i], i + 1 == ids.size());
  EXPECT_EQ(shown, text);
}

TEST(TextStream, TheTokenThatEndsARequestIsSilent) {
  const Tokenizer tokenizer = Tokenizer::load(test::data_dir("tokenizer_qwen"));
  const std::vector<std::int32_t> ids = tokenizer.encode("stop");
  TextStream silent(&tokenizer, {.silent_ids = {ids.back()}});
  EXPECT_EQ(silent.put(ids.back(), true), "");
  TextStream other(&tokenizer, {.silent_ids = {ids.back()}});
  EXPECT_NE(other.put(ids.back(), false), "") << "only as the last one";
}

TEST(TextStream, WithoutATokenizerThereIsNoText) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.put(3, true), "");
}

}  // namespace
}  // namespace ferry
