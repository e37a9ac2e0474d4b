#include "ferry/model/decoder.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <bit>
#include <span>

#include "ferry/core/error.h"
#include "ferry/model/mixers/mixer.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Logits = std::vector<std::vector<float>>;

std::vector<std::vector<std::int32_t>> tokens_of(const std::vector<test::GoldenPrompt>& prompts) {
  std::vector<std::vector<std::int32_t>> sequences;
  for (const auto& p : prompts) sequences.push_back(p.tokens());
  return sequences;
}

/// The rows of logits that transformers has: those of the prompt, then those that chose each token
/// of the continuation (the first of which is the prompt's last row).
std::vector<float> expected_logits(const test::GoldenPrompt& p) {
  const std::size_t vocab = p.greedy_logits.size() / p.greedy.size();
  std::vector<float> rows = p.logits;
  rows.insert(rows.end(),
              p.greedy_logits.begin() + static_cast<std::ptrdiff_t>(vocab),
              p.greedy_logits.end());
  return rows;
}

/// Equality as bytes: -0 and 0 differ, equal NaNs do not.
void expect_same_bytes(const Logits& a, const Logits& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t s = 0; s < a.size(); ++s) {
    ASSERT_EQ(a[s].size(), b[s].size());
    std::size_t differ = 0;
    for (std::size_t i = 0; i < a[s].size(); ++i)
      differ += std::bit_cast<std::uint32_t>(a[s][i]) != std::bit_cast<std::uint32_t>(b[s][i]);
    EXPECT_EQ(differ, 0U) << what << ", sequence " << s << ": of " << a[s].size() << " logits";
  }
}

class Golden : public testing::TestWithParam<const char*> {
 protected:
  std::string model() const { return GetParam(); }

  std::vector<test::GoldenPrompt> prompts_ = test::golden_prompts(GetParam());
  std::vector<std::vector<std::int32_t>> sequences_ = tokens_of(prompts_);
};

TEST_P(Golden, LogitsInF32AgreeWithTransformers) {
  const Logits logits = test::run_model(model(), sequences_, {.weights = WeightType::f32});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::vector<float> expected = expected_logits(prompts_[s]);
    const auto [low, high] = std::minmax_element(expected.begin(), expected.end());
    float worst = 0.0F;
    for (std::size_t i = 0; i < expected.size(); ++i)
      worst = std::max(worst, std::abs(logits[s][i] - expected[i]));
    EXPECT_LT(worst, 1e-4F * (*high - *low)) << "prompt of " << prompts_[s].prompt.size();
    RecordProperty("max_abs_diff_of_range_" + std::to_string(s),
                   std::to_string(worst / (*high - *low)));
  }
}

TEST_P(Golden, GreedyContinuationIsThatOfTransformers) {
  const Logits logits =
      test::run_model(model(), sequences_, {.weights = WeightType::f32, .chunk = 1});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::size_t vocab = logits[s].size() / sequences_[s].size();
    std::vector<std::int32_t> greedy;
    for (std::size_t i = 0; i < prompts_[s].greedy.size(); ++i) {
      const float* row = logits[s].data() + (prompts_[s].prompt.size() - 1 + i) * vocab;
      greedy.push_back(static_cast<std::int32_t>(std::max_element(row, row + vocab) - row));
    }
    EXPECT_EQ(greedy, prompts_[s].greedy);
  }
}

/// docs/numerics.md has what the models' errors are. The widest are of models that scale what their
/// few routed experts add: one token that goes to another expert shows.
TEST_P(Golden, RoundedWeightsStayClose) {
  const std::pair<WeightType, double> bounds[] = {{WeightType::bf16, 1e-3},
                                                  {WeightType::int8, 2e-2},
                                                  {WeightType::fp8, 3e-2},
                                                  {WeightType::int4, 0.2},
                                                  {WeightType::mxfp4, 0.3}};
  // A recurrence carries what was rounded from token to token; and a query sees other positions
  // where the scores of two are close, of twenty at most in these models.
  const ModelConfig config = load_config(test::data_dir(model()));
  const bool chooses = config.latent.indexer.topk > 0 && config.latent.indexer.topk < 20;
  const double slack = chooses ? 20 : config.delta.key_heads > 0 ? 2 : 1;
  for (const auto& [weights, bound] : bounds) {
    const Logits logits = test::run_model(model(), sequences_, {.weights = weights});
    double worst = 0;
    for (std::size_t s = 0; s < prompts_.size(); ++s) {
      const std::vector<float>& expected = prompts_[s].logits;
      worst = std::max(worst, test::calc_diff({logits[s].data(), expected.size()}, expected));
    }
    EXPECT_LT(worst, bound * slack) << weight_type_name(weights);
    RecordProperty(std::string(weight_type_name(weights)), fmt::format("{:.1e}", worst));
    fmt::print("{}, {}: {:.1e} from f32\n", model(), weight_type_name(weights), worst);
  }
}

/// All ways to run must give the bytes of the plainest one.
TEST_P(Golden, BytesDependOnNothingButTheTokens) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  for (const WeightType weights : weight_types()) {
    const Logits plain =
        test::run_model(model(), sequences_, {.weights = weights, .together = false});
    const auto check = [&](test::ModelRun run, const std::string& what) {
      run.weights = weights;
      expect_same_bytes(test::run_model(model(), sequences_, run),
                        plain,
                        std::string(weight_type_name(weights)) + " " + what);
    };
    check({}, "among others");
    check({.chunk = 1}, "token by token");
    check({.chunk = 7}, "in chunks of 7");
    check({.threads = 2}, "2 threads");
    check({.threads = 2, .chunk = 5}, "2 threads, chunks of 5");
    check({.ranks = 2}, "2 ranks");
    check({.ranks = 3, .chunk = 11}, "3 ranks, chunks of 11");
    check({.ranks = 2, .threads = 2, .chunk = 3, .together = false}, "one rank without tokens");
    check({.ranks = 2, .tp = 2}, "a group of 2");
    check({.ranks = 3, .tp = 3, .chunk = 1}, "a group of 3, token by token");
    check({.ranks = 4, .tp = 4, .threads = 2, .chunk = 7}, "a group of 4, 2 threads");
    check({.ranks = 4, .tp = 2, .chunk = 5}, "2 groups of 2");
    check({.ranks = 3, .tp = 3, .own_share = true}, "a group of 3 with no weights but their own");
    check({.ranks = 4, .tp = 2, .own_share = true}, "2 groups of 2 with no weights but their own");
    check({.ranks = 6, .tp = 3, .chunk = 11, .together = false}, "one of 2 groups without tokens");
  }
}

/// Experts in slices, also of fewer columns than slices and of panels that these do not divide,
/// over all ranks and over groups of them, with replicas and without.
TEST_P(Golden, ExpertSlicesChangeNoBit) {
  if (!test::runs_all_ways(GetParam())) GTEST_SKIP() << test::kMainRunHasIt;
  const auto panels = ceil_div(load_config(test::data_dir(model())).hidden, kPanelColumns);
  const int most = panels >= 4 ? 4 : 2;
  for (const WeightType weights : weight_types()) {
    const Logits plain = test::run_model(model(), sequences_, {.weights = weights});
    const auto check = [&](test::ModelRun run, const std::string& what) {
      run.weights = weights;
      expect_same_bytes(test::run_model(model(), sequences_, run),
                        plain,
                        std::string(weight_type_name(weights)) + " " + what);
    };
    check({.ranks = 2, .tp = 2, .expert_slices = 2}, "2 of 2 ranks");
    check({.ranks = 4, .tp = 4, .expert_slices = most, .chunk = 5}, "as many as possible of 4");
    check({.ranks = 4, .tp = 4, .expert_slices = 2, .redundant = 2}, "2 of a group of 4, replicas");
    check({.ranks = 4, .tp = 2, .expert_slices = 2, .threads = 2, .chunk = 3, .together = false},
          "2 of 4 ranks, one of 2 groups without tokens");
    check({.ranks = 6, .tp = 3, .expert_slices = 3, .chunk = 1, .own_share = true},
          "3 of 6 ranks, token by token");
  }
}

TEST_P(Golden, AllGatherStaysClose) {
  const Logits logits =
      test::run_model(model(), sequences_, {.ranks = 2, .backend = MoeA2ABackend::none});
  for (std::size_t s = 0; s < prompts_.size(); ++s) {
    const std::vector<float>& expected = prompts_[s].logits;
    EXPECT_LT(test::calc_diff({logits[s].data(), expected.size()}, expected), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Golden,
                         testing::ValuesIn(test::kGoldenModels),
                         [](const auto& param) { return std::string(param.param); });

/// The first layer alone of a golden model, which is dense.
std::string write_dense_model(const test::TempDir& dir) {
  const auto source = test::data_dir("qwen3_new_config_mixed");
  auto config = nlohmann::json::parse(test::read_file(source / "config.json"));
  config["num_hidden_layers"] = 1;
  config["mlp_only_layers"] = nlohmann::json::array();
  test::write_file(dir.path() / "config.json", config.dump());
  std::filesystem::create_symlink(source / "model.safetensors", dir.path() / "model.safetensors");
  return dir.path().string();
}

TEST(Decoder, RunsModelsWithoutSparseLayers) {
  const test::TempDir dir;
  const std::string model = write_dense_model(dir);
  const std::vector<std::vector<std::int32_t>> sequences = {{1, 2, 3, 4, 5, 6, 7}, {9, 8, 7}};
  const Logits plain = test::run_model(model, sequences, {.together = false});
  ASSERT_EQ(plain[0].size(), 7U * 307U);
  expect_same_bytes(test::run_model(model, sequences, {.ranks = 2, .chunk = 2}), plain, "2 ranks");
  expect_same_bytes(test::run_model(model, sequences, {.ranks = 4, .tp = 2}), plain, "groups of 2");
}

void fill(SequenceState& state, int positions) {
  state.reserve(positions);
  state.commit(positions);
}

/// One rank's decoder of a golden model, for at most 8 tokens in a step.
class SmallDecoder : public testing::Test {
 protected:
  /// Runs `body` with the decoder.
  void with_decoder(const std::function<void(Decoder&)>& body) {
    run_ranks({.transport = "inproc", .ranks = 1}, [&](Transport& transport) {
      ThreadPool pool(1);
      Decoder decoder(checkpoint_.config(),
                      std::make_shared<const DenseWeights>(
                          load_dense_weights(checkpoint_, {WeightType::bf16}, pool, {})),
                      load_expert_weights(checkpoint_, {WeightType::bf16}, {0}, 1, pool, {}),
                      {.max_tokens = 8, .dispatch_wire = {}, .combine_wire = {}},
                      transport,
                      pool);
      body(decoder);
      return 0;
    });
  }

  const Checkpoint checkpoint_ = Checkpoint::open(test::data_dir("qwen3_untied"));
};

TEST_F(SmallDecoder, GivesLogitsForTheTokensThatAreWanted) {
  with_decoder([&](Decoder& decoder) {
    using Wanted = SequenceStep::Logits;
    const std::vector<std::int32_t> tokens = {5, 6, 7};
    PagePool pages(decoder.state_layout());
    std::vector<SequenceState> states;
    for (int i = 0; i < 3; ++i) states.emplace_back(pages, 16);
    const std::vector<SequenceStep> all = {{&states[0], tokens, Wanted::all}};
    const auto span = decoder.forward(all);
    const std::vector<float> every(span.begin(), span.end());
    const auto vocab = static_cast<std::size_t>(decoder.config().vocab);
    ASSERT_EQ(every.size(), 3 * vocab);

    const std::vector<SequenceStep> mixed = {{&states[1], tokens, Wanted::none},
                                             {&states[2], tokens, Wanted::last}};
    const auto last = decoder.forward(mixed);
    ASSERT_EQ(last.size(), vocab);
    EXPECT_TRUE(std::equal(last.begin(), last.end(), every.end() - std::ssize(last)));
    EXPECT_EQ(states[1].length(), 0);
    decoder.commit();
    EXPECT_EQ(states[1].length(), 3);
    EXPECT_TRUE(decoder.forward({}).empty());
    EXPECT_GT(decoder.sparse_layers().exchange_stats().exchanges, 0U);
  });
}

TEST_F(SmallDecoder, RefusesStepsThatBreakItsContract) {
  with_decoder([&](Decoder& decoder) {
    const ModelConfig& config = decoder.config();
    PagePool pages(decoder.state_layout());
    SequenceState state(pages, 10);
    const auto refuses = [&](SequenceState& where, const std::vector<std::int32_t>& tokens) {
      const int length = where.length();
      const std::vector<SequenceStep> batch = {{&where, tokens}};
      EXPECT_THROW(decoder.forward(batch), BrokenContract);
      EXPECT_EQ(where.length(), length);
    };
    refuses(state, std::vector<std::int32_t>(9, 1));  // more than max_tokens
    refuses(state, {config.vocab});
    refuses(state, {-1});
    fill(state, 8);
    refuses(state, {1, 2, 3});  // more than the state has room for
    PagePool other_pages(StateLayout(state_specs(config, WireType::f32)));
    SequenceState other_type(other_pages, 10);
    refuses(other_type, {1});
    SequenceState beyond(pages, config.max_positions + 1);
    fill(beyond, config.max_positions);
    refuses(beyond, {1});
  });
}

}  // namespace
}  // namespace ferry
