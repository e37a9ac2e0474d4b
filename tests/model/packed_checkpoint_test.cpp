// Packed checkpoints give the weights that packing at load gives, byte for byte: read and in place,
// whole, sliced, and under any placement.
#include "ferry/model/packed_checkpoint.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "ferry/checkpoint/packed_file.h"
#include "ferry/core/error.h"
#include "ferry/model/summary.h"
#include "support/files.h"

namespace ferry {
namespace {

using testing::HasSubstr;

struct Case {
  const char* model;
  std::optional<WeightType> weights;
  Activations activations = Activations::automatic;
};

const Case kCases[] = {{"qwen2_tied_sharded", {}},
                       {"qwen2_tied_sharded", WeightType::int8},
                       {"deepseek_v3_fp8", {}},
                       {"gpt_oss", WeightType::int4},
                       {"gpt_oss_mxfp4", {}},
                       {"llama4_text", WeightType::bf16},
                       {"qwen3_f16_tied_sharded", {}},
                       {"gguf/layers_in_turn.gguf", {}},
                       {"gguf/mixed_types.gguf", {}},
                       {"gguf/mixed_types.gguf", {}, Activations::int8},
                       {"gpt_oss_mxfp4", {}, Activations::int8}};

class PackedCheckpoint : public testing::TestWithParam<Case> {
 protected:
  PackedCheckpoint() : source_(Checkpoint::open(test::data_dir(GetParam().model))) {
    write_packed(source_, GetParam().weights, GetParam().activations, out_, pool_, {});
    packed_.emplace(Checkpoint::open(out_));
  }

  WeightChoice choice(const Checkpoint& checkpoint, bool in_place = false) const {
    WeightChoice choice = choose_weights(checkpoint, GetParam().weights, GetParam().activations);
    choice.in_place = in_place;
    return choice;
  }

  /// Codes of rows that are looked up lie in the file as elements.
  std::uint64_t growth_of_embedding() const {
    const ModelConfig& config = source_.config();
    const StoredMatrix rows = source_.matrix(
        {.name = std::string(source_.names().embedding), .shape = {config.vocab, config.hidden}});
    if (rows.is_plain()) return 0;
    const DType type = activation_type(choice(source_).type);
    return static_cast<std::uint64_t>(rows.rows * rows.columns) * dtype_bytes(type) -
           HeldRows::bytes_of(rows, type);
  }

  test::TempDir directory_;
  std::filesystem::path out_ = directory_.path() / "out";
  ThreadPool pool_{2};
  Checkpoint source_;
  std::optional<Checkpoint> packed_;
};

void expect_equal(const PackedMatrix& found, const PackedMatrix& expected, std::int64_t panels) {
  ASSERT_EQ(found.type, expected.type);
  ASSERT_EQ(found.k, expected.k);
  ASSERT_EQ(found.n, expected.n);
  ASSERT_EQ(found.data == nullptr, expected.data == nullptr);
  if (found.data == nullptr) return;
  const std::size_t bytes = expected.panel_bytes() * static_cast<std::size_t>(panels);
  EXPECT_EQ(std::memcmp(found.data, expected.data, bytes), 0);
}

void expect_equal(const OwnedMatrix& found, const OwnedMatrix& expected) {
  ASSERT_EQ(found.strips.size(), expected.strips.size());
  for (std::size_t i = 0; i < found.strips.size(); ++i)
    expect_equal(found.strips[i], expected.strips[i], expected.strips[i].panels());
}

void expect_same_rows(const HeldRows& found,
                      const HeldRows& expected,
                      const ModelConfig& config,
                      DType type) {
  std::vector<std::byte> a(static_cast<std::size_t>(config.hidden) * dtype_bytes(type));
  std::vector<std::byte> b(a.size());
  std::vector<float> scratch(static_cast<std::size_t>(config.hidden));
  for (std::int64_t row = 0; row < config.vocab; ++row) {
    found.read(row, a.data(), scratch.data());
    expected.read(row, b.data(), scratch.data());
    ASSERT_EQ(a, b) << "row " << row;
  }
}

void expect_equal(const GatedFfnWeights& found, const GatedFfnWeights& expected) {
  expect_equal(found.gate_up, expected.gate_up, expected.gate_up.gated_panels());
  expect_equal(found.down, expected.down, expected.down.panels());
  ASSERT_EQ(found.biased, expected.biased);
  if (!found.biased || found.gate_up.data == nullptr) return;
  const auto bytes = [](std::int64_t panels) {
    return static_cast<std::size_t>(panels * kPanelColumns) * sizeof(float);
  };
  EXPECT_EQ(std::memcmp(
                found.gate_up_bias, expected.gate_up_bias, bytes(expected.gate_up.gated_panels())),
            0);
  EXPECT_EQ(std::memcmp(found.down_bias, expected.down_bias, bytes(expected.down.panels())), 0);
}

void expect_equal(const ExpertWeights& found, const ExpertWeights& expected) {
  ASSERT_EQ(found.layers.size(), expected.layers.size());
  for (std::size_t layer = 0; layer < found.layers.size(); ++layer) {
    ASSERT_EQ(found.layers[layer].slots.size(), expected.layers[layer].slots.size());
    for (std::size_t slot = 0; slot < found.layers[layer].slots.size(); ++slot)
      expect_equal(found.layers[layer].slots[slot], expected.layers[layer].slots[slot]);
  }
}

TEST_P(PackedCheckpoint, DenseWeightsAreThoseOfPackingAtLoad) {
  const DenseWeights expected = load_dense_weights(source_, choice(source_), pool_, {});
  for (const bool in_place : {false, true}) {
    const DenseWeights found = load_dense_weights(*packed_, choice(*packed_, in_place), pool_, {});
    EXPECT_EQ(found.dtype, expected.dtype);
    expect_same_rows(found.embedding, expected.embedding, source_.config(), found.dtype);
    EXPECT_EQ(found.embedding.bytes() == 0, in_place);
    EXPECT_EQ(found.head.memory.data() == nullptr, in_place);
    EXPECT_EQ(found.file != nullptr, in_place);
    EXPECT_EQ(found.final_norm, expected.final_norm);
    expect_equal(found.head, expected.head);
    ASSERT_EQ(found.layers.size(), expected.layers.size());
    for (std::size_t i = 0; i < found.layers.size(); ++i) {
      const DenseWeights::Layer& a = found.layers[i];
      const DenseWeights::Layer& b = expected.layers[i];
      EXPECT_EQ(a.attention_norm, b.attention_norm);
      EXPECT_EQ(a.ffn_norm, b.ffn_norm);
      EXPECT_EQ(a.router_bias, b.router_bias);
      EXPECT_EQ(a.selection_bias, b.selection_bias);
      expect_equal(a.router, b.router);
      expect_equal(a.shared_gate, b.shared_gate);
      expect_equal(a.ffn.view, b.ffn.view);
      expect_equal(a.shared.view, b.shared.view);
    }
  }
}

TEST_P(PackedCheckpoint, ExpertsAreThoseOfPackingAtLoad) {
  for (const int ranks : {1, 3}) {
    for (Rank rank = 0; rank < ranks; ++rank) {
      const ExpertWeights expected =
          load_expert_weights(source_, choice(source_), {rank}, ranks, pool_, {});
      for (const bool in_place : {false, true}) {
        const ExpertWeights found =
            load_expert_weights(*packed_, choice(*packed_, in_place), {rank}, ranks, pool_, {});
        expect_equal(found, expected);
        const bool copied = std::ranges::any_of(
            found.layers,
            [](const ExpertWeights::Layer& layer) { return layer.memory.data() != nullptr; });
        EXPECT_EQ(copied, !in_place);
      }
    }
  }
}

TEST_P(PackedCheckpoint, SlicesAreThoseOfPackingAtLoad) {
  for (int slice = 0; slice < 3; ++slice) {
    const ExpertHolder holder{0, {slice, 3}};
    const ExpertWeights expected =
        load_expert_weights(source_, choice(source_), holder, 1, pool_, {});
    for (const bool in_place : {false, true})
      expect_equal(load_expert_weights(*packed_, choice(*packed_, in_place), holder, 1, pool_, {}),
                   expected);
  }
}

TEST_P(PackedCheckpoint, EpochsFindTheirExperts) {
  const int experts = source_.config().moe.experts;
  const int layers = source_.config().layers;
  std::mt19937 random(5);
  for (const bool in_place : {false, true}) {
    ExpertWeights held;
    for (int epoch = 0; epoch < 12; ++epoch) {
      const int ranks = 1 + static_cast<int>(random() % 3);
      const ExpertHolder holder{static_cast<Rank>(random() % static_cast<unsigned>(ranks))};
      const auto placement = ExpertPlacement::identity(layers, experts, ranks);
      held = next_expert_weights(
          std::move(held), *packed_, choice(*packed_, in_place), placement, holder, pool_);
      expect_equal(held,
                   load_expert_weights(source_, choice(source_), placement, holder, pool_, {}));
    }
  }
}

TEST_P(PackedCheckpoint, IsWholeAndCounted) {
  EXPECT_TRUE(packed_->unused().empty());
  EXPECT_EQ(held_names(*packed_, choice(*packed_)), held_names(source_, choice(source_)));
  if (!GetParam().weights) {
    const RankBytes expected = bytes_per_rank(source_, 2)[1];
    const RankBytes found = bytes_per_rank(*packed_, 2)[1];
    EXPECT_EQ(found.memory.total(), expected.memory.total() + growth_of_embedding());
  }
  std::uint64_t last = 0;
  const LoadProgress progress = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_LE(done, total);
    last = total - done;
  };
  load_dense_weights(*packed_, choice(*packed_), pool_, progress);
  EXPECT_EQ(last, 0U);
  load_expert_weights(*packed_, choice(*packed_), {0}, 2, pool_, progress);
  EXPECT_EQ(last, 0U);
  packed_->source().packed()->verify();
}

TEST_P(PackedCheckpoint, PackedAgainIsTheSameFile) {
  write_packed(*packed_, {}, Activations::automatic, directory_.path() / "again", pool_, {});
  EXPECT_EQ(test::read_file(directory_.path() / "again" / kPackedFile),
            test::read_file(out_ / kPackedFile));
}

TEST_P(PackedCheckpoint, OtherWeightsAreRefused) {
  for (const WeightType type : weight_types()) {
    if (type == GetParam().weights) continue;
    EXPECT_THAT(test::message_of<ConfigError>([&] { choose_weights(*packed_, type); }),
                HasSubstr("leave it out, or give the checkpoint"));
  }
}

TEST_P(PackedCheckpoint, RowsThatItIsNotPackedForAreRefused) {
  EXPECT_EQ(choose_weights(*packed_, {}).int8_rows, GetParam().activations == Activations::int8);
  if (GetParam().activations == Activations::int8) return;
  EXPECT_THAT(
      test::message_of<ConfigError>([&] { choose_weights(*packed_, {}, Activations::int8); }),
      HasSubstr("`ferry pack --activations int8`"));
}

/// Of the same tensors, but for one.
TEST_P(PackedCheckpoint, ConfigThatSaysOtherwiseIsRefused) {
  std::string config = test::read_file(out_ / "config.json");
  const std::string field = "\"vocab_size\": ";
  const std::size_t at = config.find(field);
  if (at == std::string::npos) GTEST_SKIP() << "below another name";
  config.insert(at + field.size(), 1, '1');
  std::filesystem::remove(out_ / "config.json");
  test::write_file(out_ / "config.json", config);
  EXPECT_THAT(test::message_of<ModelError>([&] { Checkpoint::open(out_); }),
              HasSubstr("as config.json says"));
}

INSTANTIATE_TEST_SUITE_P(Models,
                         PackedCheckpoint,
                         testing::ValuesIn(kCases),
                         [](const auto& param) {
                           std::string name = param.param.model;
                           for (char& c : name)
                             if (c == '/' || c == '.') c = '_';
                           if (param.param.weights)
                             name += "_as_" + std::string(weight_type_name(*param.param.weights));
                           if (param.param.activations == Activations::int8) name += "_int8_rows";
                           return name;
                         });

}  // namespace
}  // namespace ferry
