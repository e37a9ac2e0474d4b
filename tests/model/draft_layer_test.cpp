// The layer that predicts further tokens: drafts are those of transformers' own layer, wherever
// and however the tokens before them have run, and leave no trace.
#include "support/draft_layer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ferry/core/error.h"
#include "ferry/model/mixers/mixer.h"
#include "ferry/model/random_model.h"
#include "ferry/state/kept_pages.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using Ids = std::vector<std::int32_t>;

struct Way {
  int ranks = 1;
  int tp = 1;
  int slices = 1;
  int redundant = 0;
  int threads = 1;
  int chunk = 1;      ///< tokens of a sequence in one step
  bool kept = false;  ///< each sequence goes on behind pages that another one has filled
};

class DraftLayer : public testing::TestWithParam<const char*> {
 protected:
  /// What comes of each sequence, by the number of its tokens that have run.
  struct Came {
    std::vector<std::optional<Ids>> drafts;
    std::vector<float> logits;
  };

  std::vector<Came> run(const Way& way) const {
    const ModelConfig& config = checkpoint_.config();
    std::vector<Came> came(sequences_.size());
    const int status =
        run_ranks({.transport = "inproc", .ranks = way.ranks}, [&](Transport& transport) {
          ThreadPool pool(way.threads);
          const Rank holder = transport.rank() / way.slices;
          Decoder decoder(config,
                          std::make_shared<const DenseWeights>(
                              load_dense_weights(checkpoint_, {WeightType::f32}, pool, {})),
                          load_expert_weights(checkpoint_,
                                              {WeightType::f32},
                                              ExpertPlacement::identity(config.all_layers(),
                                                                        config.moe.experts,
                                                                        way.ranks / way.slices,
                                                                        way.redundant),
                                              {holder, {transport.rank() % way.slices, way.slices}},
                                              pool,
                                              {}),
                          {.tp = way.tp,
                           .expert_slices = way.slices,
                           .max_tokens = 256,
                           .dispatch_wire = {},
                           .combine_wire = {}},
                          transport,
                          pool);
          EXPECT_EQ(
              decoder.state_layout().bytes_per_position() * static_cast<std::size_t>(way.tp) >=
                  StateLayout(state_specs(config, decoder.kv_type())).bytes_per_position(),
              true);
          run_rank(way, decoder, transport.rank(), came);
          return 0;
        });
    EXPECT_EQ(status, 0);
    return came;
  }

  const Checkpoint checkpoint_ = Checkpoint::open(test::data_dir(GetParam()), true);
  const std::vector<test::GoldenDrafts> sequences_ = test::golden_drafts(GetParam());

 private:
  void run_rank(const Way& way, Decoder& decoder, Rank rank, std::vector<Came>& came) const {
    PagePool pages(decoder.state_layout());
    KeptPages kept(pages);
    std::vector<SequenceState> states;
    std::size_t most = 0;
    for (const auto& sequence : sequences_) {
      states.emplace_back(pages, static_cast<int>(sequence.tokens.size() + test::kDraftTokens));
      most = std::max(most, sequence.tokens.size());
    }
    const auto chunk = static_cast<std::size_t>(way.chunk);
    for (std::size_t begin = 0; begin < most; begin += chunk) {
      std::vector<SequenceStep> batch;
      std::vector<std::size_t> mine;
      for (std::size_t s = 0; s < sequences_.size(); ++s) {
        const Ids& tokens = sequences_[s].tokens;
        const bool here = static_cast<int>(s) % (way.ranks / way.tp) == rank / way.tp;
        if (!here || begin >= tokens.size()) continue;
        if (way.kept && begin > 0 && begin % kPagePositions == 0) {
          // Somebody else goes on behind its pages.
          const auto page = static_cast<std::int64_t>(begin) / kPagePositions - 1;
          const std::uint64_t number = s * 100 + begin;
          kept.keep(number, number - kPagePositions, page, states[s]);
          SequenceState next(pages, states[s].capacity());
          kept.give(number, page + 1, next);
          states[s] = std::move(next);
        }
        const std::size_t n = std::min(chunk, tokens.size() - begin);
        batch.push_back({.state = &states[s],
                         .tokens = std::span(tokens).subspan(begin, n),
                         .logits = SequenceStep::Logits::all});
        mine.push_back(s);
      }
      const std::span<const float> logits = decoder.forward(batch);
      const float* row = logits.data();
      decoder.commit();
      std::vector<DraftRun> runs;
      std::vector<Ids> drafts(mine.size());
      for (std::size_t i = 0; i < mine.size(); ++i) {
        Came& one = came[mine[i]];
        const std::size_t n = batch[i].tokens.size() * static_cast<std::size_t>(vocab());
        if (rank % way.tp == 0) one.logits.insert(one.logits.end(), row, row + n);
        row += n;
        const auto ran = static_cast<std::size_t>(states[mine[i]].length());
        if (ran >= sequences_[mine[i]].tokens.size()) continue;
        drafts[i].resize(1 + ran % test::kDraftTokens);  // of each length
        runs.push_back({.state = &states[mine[i]],
                        .token = sequences_[mine[i]].tokens[ran],
                        .draft = drafts[i]});
      }
      decoder.draft(runs, test::kDraftTokens);
      for (std::size_t i = 0; i < mine.size(); ++i) {
        if (drafts[i].empty() || rank % way.tp != 0) continue;
        Came& one = came[mine[i]];
        const auto ran = static_cast<std::size_t>(states[mine[i]].length());
        one.drafts.resize(ran + 1);
        one.drafts[ran] = drafts[i];
      }
    }
  }

  int vocab() const { return checkpoint_.config().vocab; }
};

TEST_P(DraftLayer, DraftsWhatItsDefinitionDrafts) {
  std::vector<Ids> ids;
  for (const auto& sequence : sequences_) ids.push_back(sequence.tokens);
  const auto plain = test::run_model(GetParam(), ids, {});
  for (const Way& way : {Way{},
                         Way{.threads = 3, .chunk = 5},
                         Way{.ranks = 2},
                         Way{.ranks = 4, .redundant = 2, .chunk = 7},
                         Way{.ranks = 2, .tp = 2},
                         Way{.ranks = 4, .tp = 2, .slices = 1, .chunk = 3},
                         Way{.chunk = 16, .kept = true},
                         Way{.chunk = 8, .kept = true}}) {
    const std::string what =
        fmt::format("ranks {}, tp {}, chunk {}, kept {}", way.ranks, way.tp, way.chunk, way.kept);
    const std::vector<Came> came = run(way);
    std::size_t compared = 0;
    for (std::size_t s = 0; s < came.size(); ++s) {
      EXPECT_EQ(came[s].logits, plain[s]) << what << ": logits of sequence " << s;
      for (std::size_t ran = 0; ran < came[s].drafts.size(); ++ran) {
        const auto& expected = sequences_[s].drafts[ran];
        if (!came[s].drafts[ran] || !expected) continue;
        Ids beginning = *expected;
        beginning.resize(came[s].drafts[ran]->size());
        EXPECT_EQ(*came[s].drafts[ran], beginning)
            << what << ": sequence " << s << " behind " << ran;
        ++compared;
      }
    }
    EXPECT_GE(compared, 110U / static_cast<std::size_t>(way.chunk)) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(Models,
                         DraftLayer,
                         testing::ValuesIn(test::kDraftModels),
                         [](const auto& model) { return std::string(model.param); });

TEST(DraftLayerOf, AFamilyThatIsNotSupportedIsRefusedByName) {
  EXPECT_THAT(
      test::message_of<ConfigError>([] { Checkpoint::open(test::data_dir("deepseek_v32"), true); }),
      testing::AllOf(testing::HasSubstr("deepseek_v32"), testing::HasSubstr("qwen3_next")));
}

TEST(DraftLayerOf, ACheckpointWithoutOneIsRefused) {
  EXPECT_THAT(
      test::message_of<ConfigError>([] { Checkpoint::open(test::data_dir("deepseek_v3"), true); }),
      testing::HasSubstr("num_nextn_predict_layers"));
}

TEST(DraftLayerOf, AMissingTensorIsNamed) {
  const test::TempDir dir;
  std::filesystem::copy(test::data_dir("deepseek_v3"), dir.path() / "model");
  std::ifstream in(test::data_dir("deepseek_v3") / "config.json");
  auto config = nlohmann::json::parse(in);
  config["num_nextn_predict_layers"] = 1;
  test::write_file(dir.path() / "model" / "config.json", config.dump());
  EXPECT_NO_THROW(Checkpoint::open(dir.path() / "model"));
  EXPECT_THAT(test::message_of<ModelError>([&] { Checkpoint::open(dir.path() / "model", true); }),
              testing::HasSubstr("model.layers.2."));
}

TEST(DraftLayerOf, RandomModelsCanHaveOne) {
  for (const char* arch :
       {"deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_next", "qwen3_5_moe_text"}) {
    const test::TempDir dir;
    write_random_model({.arch = arch, .predictor = true}, dir.path() / "model");
    EXPECT_EQ(Checkpoint::open(dir.path() / "model").config().all_layers(), 2);
    const Checkpoint checkpoint = Checkpoint::open(dir.path() / "model", true);
    EXPECT_EQ(checkpoint.config().all_layers(), 3) << arch;
    EXPECT_TRUE(checkpoint.config().sparse(2)) << arch;
    EXPECT_TRUE(checkpoint.unused().empty()) << arch;
  }
  const test::TempDir dir;
  EXPECT_THROW(write_random_model({.arch = "olmoe", .predictor = true}, dir.path() / "model"),
               ConfigError);
}

}  // namespace
}  // namespace ferry
