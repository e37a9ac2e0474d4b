#include "ferry/engine/logits_chain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "ferry/core/error.h"
#include "ferry/engine/request.h"
#include "ferry/text/grammars.h"
#include "ferry/text/tokenizer.h"
#include "support/paths.h"

namespace ferry {
namespace {

constexpr int kVocab = 97;
constexpr std::int32_t kEndOfText = 60;

using Ids = std::vector<std::int32_t>;

/// Of the demo model's first tokens, which are the characters from ! on.
Grammars* grammars() {
  static const Tokenizer tokenizer = Tokenizer::load(test::source_dir() / "assets" / "demo-moe");
  static Grammars all(tokenizer, kVocab, std::vector<std::int32_t>{kEndOfText});
  return &all;
}

ProcessorContext context() { return {kVocab, grammars()}; }

/// Members as a client would send them.
class Members : public RequestMembers {
 public:
  std::map<std::string, double> numbers;
  std::map<std::string, std::int64_t> integers;
  std::map<std::string, Ids> lists;
  std::map<std::string, std::vector<std::pair<std::int32_t, double>>> by_id;
  std::map<std::string, std::vector<Ids>> sequences;
  std::optional<GrammarText> text;

  std::optional<double> number(const char* name) const override { return in(numbers, name); }

  std::optional<std::int64_t> integer(const char* name) const override {
    return in(integers, name);
  }

  std::optional<Ids> token_ids(const char* name) const override { return in(lists, name); }

  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* name) const override {
    return in(by_id, name);
  }

  std::optional<std::vector<Ids>> words(const char* name) const override {
    return in(sequences, name);
  }

  std::optional<GrammarText> grammar() const override { return text; }

 private:
  template <class T>
  static std::optional<T> in(const std::map<std::string, T>& all, const char* name) {
    const auto found = all.find(name);
    return found == all.end() ? std::nullopt : std::optional(found->second);
  }
};

/// With repeated tokens, which a stop id and others have in common.
Request request_of(const Members& members) {
  Request request{.prompt = {5, 9, 5, 40, 96}, .sampling = {}, .stop_ids = {9, 60, 4000, -1}};
  read_processors(members, request.processors);
  check_request(request, context(), 64);
  return request;
}

/// Of both signs, all different.
std::vector<float> logits_of(std::uint64_t seed) {
  std::vector<float> logits(kVocab);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(uniform_number(seed, i) * 20 - 10);
  return logits;
}

/// What a chain made anew makes of the logits, bit by bit.
std::vector<std::uint32_t> bits_of(std::span<const float> logits) {
  std::vector<std::uint32_t> bits;
  for (const float x : logits) bits.push_back(std::bit_cast<std::uint32_t>(x));
  return bits;
}

std::vector<std::uint32_t> applied(const LogitsChain& chain,
                                   const Request& request,
                                   const Ids& generated,
                                   const std::vector<float>& logits) {
  std::vector<float> scratch;
  return bits_of(chain.apply(logits, {.prompt = request.prompt, .generated = generated}, scratch));
}

std::vector<std::uint32_t> fresh(const Request& request,
                                 const Ids& generated,
                                 const std::vector<float>& logits) {
  return applied(LogitsChain(request, generated, context()), request, generated, logits);
}

/// The definitions of docs/logits_processors.md, a token at a time over the whole history.
std::vector<float> reference(const Members& m,
                             const Request& request,
                             const Ids& generated,
                             std::vector<float> logits) {
  const auto number = [&](const char* name, double otherwise) {
    return static_cast<float>(m.number(name).value_or(otherwise));
  };
  // [*?@ABC]*x? behind tokens that match; everything behind one that does not.
  const auto matches = [](std::int32_t id) { return id == '*' - '!' || (id >= 30 && id <= 34); };
  const bool fits = std::ranges::all_of(generated, matches);
  for (std::int32_t id = 0; id < kVocab; ++id) {
    float& x = logits[static_cast<std::size_t>(id)];
    const auto among = [&](const Ids& ids) { return std::ranges::count(ids, id); };
    const auto allowed = m.token_ids("allowed_token_ids");
    const bool too_early = std::ssize(generated) < m.integer("min_tokens").value_or(0);
    const auto banned = m.token_ids("suppress_tokens").value_or(Ids{});
    bool completes = false;
    for (const Ids& word : m.words("bad_words").value_or(std::vector<Ids>{})) {
      Ids with = generated;
      with.push_back(id);
      completes = completes || (with.size() >= word.size() &&
                                std::equal(word.rbegin(), word.rend(), with.rbegin()));
    }
    const bool breaks = m.text && fits && !matches(id) && id != 'x' - '!' && id != kEndOfText;
    if (breaks || (allowed && among(*allowed) == 0) || among(banned) > 0 || completes ||
        (too_early && among(request.stop_ids) > 0)) {
      x = -std::numeric_limits<float>::infinity();
      continue;
    }
    for (const auto& [biased, bias] :
         m.numbers_by_id("logit_bias").value_or(std::vector<std::pair<std::int32_t, double>>{}))
      if (biased == id) x += static_cast<float>(bias);
    const auto times = static_cast<float>(among(generated));
    if (times > 0 || among(request.prompt) > 0)
      x = x > 0 ? x / number("repetition_penalty", 1) : x * number("repetition_penalty", 1);
    if (times > 0) {
      x -= number("frequency_penalty", 0) * times;
      x -= number("presence_penalty", 0);
    }
  }
  return logits;
}

struct Case {
  std::string name;
  Members members;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

std::vector<Case> cases() {
  constexpr std::size_t kGrammar = 8;
  std::vector<Case> all(kGrammar + (Grammars::built_in() ? 2 : 1));
  all[0].name = "Presence";
  all[0].members.numbers = {{"presence_penalty", 1.25}};
  all[1].name = "Frequency";
  all[1].members.numbers = {{"frequency_penalty", -0.3}};
  all[2].name = "Repetition";
  all[2].members.numbers = {{"repetition_penalty", 1.7}};
  all[3].name = "LogitBias";
  all[3].members.by_id = {{"logit_bias", {{96, -100}, {5, 2.5}, {0, 100}, {41, 0}}}};
  all[4].name = "MinTokens";
  all[4].members.integers = {{"min_tokens", 7}};
  all[5].name = "AllowedTokens";
  all[5].members.lists = {{"allowed_token_ids", {96, 5, 9, 5, 0, 33, 34}}};
  all[6].name = "SuppressedTokens";
  all[6].members.lists = {{"suppress_tokens", {0, 50, 96, 50}}};
  all[7].name = "BadWords";
  all[7].members.sequences = {{"bad_words", {{12}, {9, 31}, {32, 33, 9}, {96, 9, 32}}}};
  Members& together = all.back().members;
  all.back().name = "AllTogether";
  if (Grammars::built_in()) {
    all[kGrammar].name = "Grammar";
    all[kGrammar].members.text = {.kind = GrammarText::Kind::regex, .text = "[*?@ABC]*x?"};
    together.text = all[kGrammar].members.text;
  }
  for (std::size_t i = 0; i < kGrammar; ++i) {
    const Members& one = all[i].members;
    together.numbers.insert(one.numbers.begin(), one.numbers.end());
    together.integers.insert(one.integers.begin(), one.integers.end());
    together.lists.insert(one.lists.begin(), one.lists.end());
    together.by_id.insert(one.by_id.begin(), one.by_id.end());
    together.sequences.insert(one.sequences.begin(), one.sequences.end());
  }
  return all;
}

class EveryProcessor : public testing::TestWithParam<Case> {};

TEST_P(EveryProcessor, GivesWhatItsDefinitionSays) {
  const Members& members = GetParam().members;
  const Request request = request_of(members);
  Ids generated;
  bool changes = false;
  for (std::uint64_t step = 0; step < 20; ++step) {
    const std::vector<float> logits = logits_of(step);
    const auto found = fresh(request, generated, logits);
    EXPECT_EQ(found, bits_of(reference(members, request, generated, logits))) << "step " << step;
    changes = changes || found != bits_of(logits);
    // Few different ones, among them some of the prompt.
    generated.push_back(step % 3 == 0 ? 9 : static_cast<std::int32_t>(30 + step % 5));
  }
  EXPECT_TRUE(changes);
}

/// A tree of sequences: each goes on, goes back, or begins another one. Its state must be that of a
/// chain which has only seen the tokens that are left.
TEST_P(EveryProcessor, ForksAdvancesAndRollsBackToTheSameBytes) {
  const Request request = request_of(GetParam().members);

  struct Branch {
    Ids generated;
    LogitsChain chain;
  };

  std::vector<Branch> branches;
  branches.push_back({.generated = {}, .chain = LogitsChain(request, {}, context())});
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const std::size_t at = random() % branches.size();
    const unsigned what = random() % 8;
    if (what == 0) {
      branches.push_back({.generated = branches[at].generated, .chain = branches[at].chain.fork()});
      if (branches.size() > 6) branches.erase(branches.begin() + random() % 6);
    } else if (what < 3) {
      Branch& branch = branches[at];
      const std::size_t back = random() % (branch.generated.size() + 1);
      branch.chain.roll_back(branch.generated, back);
      branch.generated.resize(branch.generated.size() - back);
    } else {
      const auto token = static_cast<std::int32_t>(random() % (i % 2 == 0 ? 6 : kVocab));
      branches[at].generated.push_back(token);
      branches[at].chain.advance(token);
    }
    for (const Branch& branch : branches) {
      const std::vector<float> logits = logits_of(static_cast<std::uint64_t>(i));
      ASSERT_EQ(applied(branch.chain, request, branch.generated, logits),
                fresh(request, branch.generated, logits))
          << "action " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryProcessor, testing::ValuesIn(cases()), [](const auto& test) {
  return test.param.name;
});

TEST(LogitsChain, EveryRowOfTheTableIsAmongTheCases) {
  if (!Grammars::built_in()) GTEST_SKIP() << "without grammars";
  std::set<std::string> tested, known;
  for (const Case& c : cases())
    for (const ProcessorOptions& options : request_of(c.members).processors)
      tested.insert(options.name);
  for (const ProcessorKind* kind : processor_kinds()) known.insert(kind->name);
  EXPECT_EQ(tested, known);
}

TEST(LogitsChain, OfNoProcessorsHandsTheLogitsThrough) {
  const Request request{.prompt = {1}, .sampling = {}, .stop_ids = {}};
  LogitsChain chain(request, Ids{1, 2}, kVocab);
  EXPECT_TRUE(chain.empty());
  chain.advance(3);
  const std::vector<float> logits = logits_of(1);
  std::vector<float> scratch;
  EXPECT_EQ(chain.apply(logits, {.prompt = {}, .generated = {}}, scratch).data(), logits.data());
  EXPECT_EQ(scratch.capacity(), 0U);
}

TEST(LogitsChain, BansOfEveryTokenCountForNothing) {
  Request request{.prompt = {1}, .sampling = {}, .stop_ids = {}};
  request.processors = {{.name = "allowed_tokens", .integers = {3}, .numbers = {}},
                        {.name = "suppressed_tokens", .integers = {3}, .numbers = {}}};
  const LogitsChain chain(request, {}, kVocab);
  const std::vector<float> logits = logits_of(1);
  EXPECT_EQ(applied(chain, request, {}, logits), bits_of(logits));
  EXPECT_THROW(check_processors(request, kVocab), ConfigError) << "known from the beginning";
}

TEST(LogitsChain, AGrammarBindsWhereBansLeaveNothing) {
  if (!Grammars::built_in()) GTEST_SKIP() << "without grammars";
  Request request{.prompt = {1}, .sampling = {}, .stop_ids = {}};
  request.processors = {{.name = "allowed_tokens", .integers = {3}, .numbers = {}},
                        {.name = "grammar",
                         .integers = {static_cast<std::int32_t>(GrammarText::Kind::regex)},
                         .numbers = {},
                         .text = "A"}};
  const LogitsChain chain(request, {}, context());
  for (const LogitsChain& one : {chain.fork(), chain.fork().fork()}) {
    std::vector<float> scratch;
    const auto found = one.apply(logits_of(1), {.prompt = {}, .generated = {}}, scratch);
    for (std::size_t id = 0; id < kVocab; ++id)
      EXPECT_EQ(std::isfinite(found[id]), id == 'A' - '!') << id;
  }
  EXPECT_THROW(check_processors(request, context()), ConfigError) << "known from the beginning";
}

TEST(LogitsChain, PenaltiesStayFiniteAndLeaveBannedTokensBanned) {
  Members members;
  members.numbers = {{"repetition_penalty", 0.01}};
  const Request request = request_of(members);
  std::vector<float> logits(kVocab, 1.0F);
  logits[5] = 1e38F;
  logits[9] = kBanned;
  const LogitsChain chain(request, {}, kVocab);
  std::vector<float> scratch;
  const auto found = chain.apply(logits, {.prompt = request.prompt, .generated = {}}, scratch);
  EXPECT_EQ(found[5], std::numeric_limits<float>::max());
  EXPECT_EQ(found[9], kBanned);
}

TEST(LogitsChain, AnotherHistoryThanItKnowsIsABrokenContract) {
  Members members;
  members.numbers = {{"presence_penalty", 1}};
  const Request request = request_of(members);
  LogitsChain chain(request, Ids{1, 2}, kVocab);
  EXPECT_THROW(applied(chain, request, {1}, logits_of(1)), BrokenContract);
  EXPECT_THROW(chain.roll_back(Ids{1, 2}, 3), BrokenContract);
  EXPECT_THROW(chain.roll_back(Ids{1, 8}, 1), BrokenContract);
}

TEST(ReadProcessors, MembersWithoutEffectMakeNone) {
  Members members;
  members.numbers = {{"presence_penalty", 0}, {"frequency_penalty", 0}, {"repetition_penalty", 1}};
  members.integers = {{"min_tokens", 0}};
  members.lists = {{"suppress_tokens", {}}};
  members.by_id = {{"logit_bias", {}}};
  EXPECT_TRUE(request_of(members).processors.empty());
}

/// As the members of "sampling_params" do those that stand beside it.
TEST(ReadProcessors, LaterMembersReplaceEarlierOnesOneByOne) {
  Members first, second;
  first.numbers = {{"presence_penalty", 1}, {"frequency_penalty", 0.5}};
  first.integers = {{"min_tokens", 3}};
  second.numbers = {{"presence_penalty", 0}};
  second.integers = {{"min_new_tokens", 4}};
  std::vector<ProcessorOptions> processors;
  read_processors(first, processors);
  read_processors(second, processors);
  const std::vector<ProcessorOptions> expected = {
      {.name = "min_tokens", .integers = {4}, .numbers = {}},
      {.name = "penalties", .integers = {}, .numbers = {0, 0.5, 1}}};
  EXPECT_EQ(processors, expected);
}

TEST(ReadProcessors, ValuesOutOfRangeAreRefusedByName) {
  const auto message = [](const Members& members) -> std::string {
    std::vector<ProcessorOptions> processors;
    try {
      read_processors(members, processors);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "no error";
  };
  for (const auto& [name, value] : {std::pair{"presence_penalty", 2.1},
                                    {"presence_penalty", std::nan("")},
                                    {"frequency_penalty", -2.5},
                                    {"repetition_penalty", 0.0},
                                    {"repetition_penalty", -1.0},
                                    {"repetition_penalty", 1e300}}) {
    Members members;
    members.numbers = {{name, value}};
    EXPECT_NE(message(members).find(name), std::string::npos) << value << ": " << message(members);
  }
  Members negative, nothing_allowed, biased;
  negative.integers = {{"min_tokens", -1}};
  nothing_allowed.lists = {{"allowed_token_ids", {}}};
  biased.by_id = {{"logit_bias", {{1, 100.5}}}};
  EXPECT_NE(message(negative).find("min_tokens"), std::string::npos);
  EXPECT_NE(message(nothing_allowed).find("allowed_token_ids"), std::string::npos);
  EXPECT_NE(message(biased).find("logit_bias"), std::string::npos);
}

TEST(CheckProcessors, WhatTheTableCannotMakeIsRefused) {
  const std::vector<std::vector<ProcessorOptions>> bad = {
      {{.name = "no such", .integers = {1}, .numbers = {}}},
      {{.name = "min_tokens", .integers = {1}, .numbers = {}},
       {.name = "min_tokens", .integers = {2}, .numbers = {}}},
      {{.name = "min_tokens", .integers = {1, 2}, .numbers = {}}},
      {{.name = "min_tokens", .integers = {6}, .numbers = {}}},  // of at most 5
      {{.name = "min_tokens", .integers = {-1}, .numbers = {}}},
      {{.name = "penalties", .integers = {}, .numbers = {1}}},
      {{.name = "penalties", .integers = {}, .numbers = {0, 0, std::nanf("")}}},
      {{.name = "logit_bias", .integers = {1}, .numbers = {}}},
      {{.name = "logit_bias", .integers = {1, 1}, .numbers = {1, 1}}},
      {{.name = "logit_bias", .integers = {kVocab}, .numbers = {1}}},
      {{.name = "logit_bias", .integers = {1}, .numbers = {1000}}},
      {{.name = "allowed_tokens", .integers = {-1}, .numbers = {}}},
      {{.name = "allowed_tokens", .integers = {4, 3}, .numbers = {}}},
      {{.name = "allowed_tokens", .integers = {9}, .numbers = {}},  // which ends it
       {.name = "min_tokens", .integers = {1}, .numbers = {}}},
      {{.name = "suppressed_tokens", .integers = {kVocab}, .numbers = {}}},
      {{.name = "bad_words", .integers = {1, kVocab}, .numbers = {}}},
      {{.name = "bad_words", .integers = {2, 1}, .numbers = {}}},
      {{.name = "bad_words", .integers = {0}, .numbers = {}}},
      {{.name = "bad_words", .integers = {1, 1}, .numbers = {1}}},
      {{.name = "grammar", .integers = {9}, .numbers = {}, .text = "a"}},
      {{.name = "grammar", .integers = {2}, .numbers = {}, .text = "(a"}},
      {{.name = "grammar",
        .integers = {2},
        .numbers = {},
        .text = std::string(kMaxProcessorText + 1, 'a')}},
      {{.name = "suppressed_tokens", .integers = Ids(kMaxProcessorNumbers + 1), .numbers = {}}}};
  for (std::size_t i = 0; i < bad.size(); ++i) {
    Request request{
        .prompt = {1}, .max_new_tokens = 5, .sampling = {}, .stop_ids = {9}, .processors = bad[i]};
    EXPECT_THROW(check_request(request, context(), 64), ConfigError) << i;
  }
}

}  // namespace
}  // namespace ferry
