#include "ferry/model/weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "ferry/model/mixers/attention.h"
#include "ferry/model/mixers/latent_attention.h"
#include "ferry/model/quantized_checkpoint.h"
#include "ferry/model/summary.h"
#include "support/files.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

/// A checkpoint's tensor [rows, columns] as f32, rounded to what weights of `held` keep.
class Stored {
 public:
  Stored(const Checkpoint& checkpoint, const TensorSpec& spec) : columns_(spec.shape.back()) {
    const StoredMatrix matrix = checkpoint.matrix(spec);  // a vector is one row here
    values_.resize(static_cast<std::size_t>(spec.elements()));
    matrix.read_rows(0, matrix.rows, DType::f32, reinterpret_cast<std::byte*>(values_.data()));
  }

  float at(std::int64_t row, std::int64_t column) const {
    return values_[static_cast<std::size_t>(row * columns_ + column)];
  }

  std::int64_t rows() const { return std::ssize(values_) / columns_; }

  std::int64_t columns() const { return columns_; }

 private:
  std::int64_t columns_;
  std::vector<float> values_;
};

/// Nearest bf16, ties to even.
float as_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000U;
  std::memcpy(&x, &bits, 4);
  return x;
}

/// Element k of a column of a panel, as the layout in packed_matrix.h says.
float packed_at(const PackedMatrix& m, std::int64_t panel, std::int64_t column, std::int64_t k) {
  const std::byte* base = m.data + static_cast<std::size_t>(panel) * m.panel_bytes();
  if (m.type == WeightType::f32) {
    float x;
    std::memcpy(&x, base + (k * kPanelColumns + column) * 4, 4);
    return x;
  }
  std::uint16_t half;
  std::memcpy(&half, base + ((k / 2 * kPanelColumns + column) * 2 + k % 2) * 2, 2);
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <class Weights>
const Weights& mixer_weights(const DenseWeights& weights, int layer) {
  return dynamic_cast<const Weights&>(*weights.layers[static_cast<std::size_t>(layer)].mixer);
}

/// Columns [first, first + rows) of a packed matrix are the rows of a stored one.
void expect_columns(const PackedMatrix& m, std::int64_t first, const Stored& stored) {
  ASSERT_EQ(m.k, stored.columns());
  std::int64_t differ = 0;
  for (std::int64_t r = 0; r < stored.rows(); ++r) {
    for (std::int64_t k = 0; k < m.k; ++k) {
      const float want = m.type == WeightType::bf16 ? as_bf16(stored.at(r, k)) : stored.at(r, k);
      const std::int64_t c = first + r;
      differ += packed_at(m, c / kPanelColumns, c % kPanelColumns, k) != want ? 1 : 0;
    }
  }
  EXPECT_EQ(differ, 0) << "from column " << first;
}

/// Gate and up alternate panel by panel; what pads them is zero.
void expect_gate_up(const PackedMatrix& m, const Stored& gate, const Stored& up) {
  ASSERT_EQ(m.n, 2 * gate.rows());
  std::int64_t differ = 0;
  for (std::int64_t panel = 0; panel < m.gated_panels(); ++panel) {
    const Stored& source = panel % 2 == 0 ? gate : up;
    for (std::int64_t c = 0; c < kPanelColumns; ++c) {
      const std::int64_t row = panel / 2 * kPanelColumns + c;
      for (std::int64_t k = 0; k < m.k; ++k) {
        float want = row < source.rows() ? source.at(row, k) : 0.0F;
        if (m.type == WeightType::bf16) want = as_bf16(want);
        differ += packed_at(m, panel, c, k) != want ? 1 : 0;
      }
    }
  }
  EXPECT_EQ(differ, 0);
}

class Weights : public testing::TestWithParam<const char*> {
 protected:
  Stored stored(std::string_view pattern, std::vector<std::int64_t> shape, int layer, int e = -1) {
    return {checkpoint_,
            {.name = tensor_name(names_, pattern, layer, e),
             .shape = std::move(shape),
             .layer = layer,
             .expert = e}};
  }

  void expect_ffn(const GatedFfnWeights& ffn,
                  const std::array<std::string_view, 3>& gate_up_down,
                  std::int64_t inter,
                  int layer,
                  int expert) {
    const std::int64_t h = config_.hidden;
    expect_gate_up(ffn.gate_up,
                   stored(gate_up_down[0], {inter, h}, layer, expert),
                   stored(gate_up_down[1], {inter, h}, layer, expert));
    EXPECT_EQ(ffn.down.n, h);
    expect_columns(ffn.down, 0, stored(gate_up_down[2], {h, inter}, layer, expert));
  }

  /// Gate's and up's alternate in sixteens, zeros behind the last, then come down's.
  void expect_biases(const GatedFfnWeights& ffn, int layer, int expert) {
    const std::int64_t inter = config_.moe.inter;
    const Stored gate = stored(names_.expert_gate_bias, {inter}, layer, expert);
    const Stored up = stored(names_.expert_up_bias, {inter}, layer, expert);
    const Stored down = stored(names_.expert_down_bias, {config_.hidden}, layer, expert);
    for (std::int64_t i = 0; i < ffn.gate_up.gated_panels() * kPanelColumns; ++i) {
      const std::int64_t c = i / (2 * kPanelColumns) * kPanelColumns + i % kPanelColumns;
      const Stored& source = i / kPanelColumns % 2 == 0 ? gate : up;
      ASSERT_EQ(ffn.gate_up_bias[i], c < inter ? source.at(0, c) : 0.0F) << i;
    }
    for (std::int64_t c = 0; c < config_.hidden; ++c)
      ASSERT_EQ(ffn.down_bias[c], down.at(0, c)) << c;
    const auto block = std::as_bytes(std::span(ffn.down_bias, ffn.down.panels() * kPanelColumns));
    EXPECT_EQ(&block.back() + 1, ffn.gate_up.data + expert_block_bytes(ffn));
  }

  const Checkpoint checkpoint_ = Checkpoint::open(test::data_dir(GetParam()));
  const ModelConfig& config_ = checkpoint_.config();
  const TensorNames& names_ = checkpoint_.names();
  ThreadPool pool_{2};
};

TEST_P(Weights, AttentionStandsSideBySide) {
  if (config_.latent.rank > 0) GTEST_SKIP() << "latent attention";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const DenseWeights weights = load_dense_weights(checkpoint_, {weight_type(dtype)}, pool_, {});
    const std::int64_t h = config_.hidden;
    const std::int64_t results = config_.heads * config_.head_dim;
    const std::int64_t q = results * (config_.attention_gate ? 2 : 1);
    const std::int64_t kv = config_.kv_heads * config_.head_dim;
    for (int layer = 0; layer < config_.layers; ++layer) {
      if (mixer_of(config_, layer).name() != kAttention) continue;
      const auto& l = mixer_weights<AttentionWeights>(weights, layer);
      EXPECT_EQ(l.qkv.whole().n, q + 2 * kv);
      expect_columns(l.qkv.whole(), 0, stored(names_.q_weight, {q, h}, layer));
      expect_columns(l.qkv.whole(), q, stored(names_.k_weight, {kv, h}, layer));
      expect_columns(l.qkv.whole(), q + kv, stored(names_.v_weight, {kv, h}, layer));
      expect_columns(l.output.whole(), 0, stored(names_.o_weight, {h, results}, layer));
      ASSERT_EQ(std::ssize(l.qkv_bias), config_.attention_bias ? q + 2 * kv : 0);
      if (config_.attention_bias) {
        const Stored k_bias = stored(names_.k_bias, {kv}, layer);
        const Stored v_bias = stored(names_.v_bias, {kv}, layer);
        EXPECT_EQ(l.qkv_bias[static_cast<std::size_t>(q)], k_bias.at(0, 0));
        EXPECT_EQ(l.qkv_bias.back(), v_bias.at(0, kv - 1));
      }
      EXPECT_EQ(std::ssize(l.output_bias), config_.output_bias ? h : 0);
      EXPECT_EQ(std::ssize(l.query_norm),
                !config_.qk_norm_weights()         ? 0
                : config_.qk_norm == QkNorm::whole ? q
                                                   : config_.head_dim);
    }
  }
}

TEST_P(Weights, LatentAttentionHasKeysAndValuesByHead) {
  const LatentConfig& latent = config_.latent;
  if (latent.rank == 0) GTEST_SKIP() << "no latent attention";
  const std::int64_t h = config_.hidden;
  const std::int64_t q = config_.heads * config_.head_dim;
  const std::int64_t row = latent.rank + config_.rope.dim;
  const std::int64_t both = latent.plain_dim + latent.value_dim;
  const DenseWeights weights = load_dense_weights(checkpoint_, {WeightType::f32}, pool_, {});
  for (int layer = 0; layer < config_.layers; ++layer) {
    const auto& l = mixer_weights<LatentAttentionWeights>(weights, layer);
    const std::int64_t first = latent.query_rank > 0 ? latent.query_rank : q;
    EXPECT_EQ(l.down.whole().n, first + row);
    expect_columns(l.down.whole(), first, stored(names_.latent_down, {row, h}, layer));
    if (latent.query_rank > 0) {
      expect_columns(l.down.whole(), 0, stored(names_.query_down, {first, h}, layer));
      expect_columns(l.query_up.whole(), 0, stored(names_.query_up, {q, first}, layer));
    } else {
      expect_columns(l.down.whole(), 0, stored(names_.q_weight, {q, h}, layer));
    }
    const Stored up = stored(names_.latent_up, {config_.heads * both, latent.rank}, layer);
    for (std::int64_t head = 0; head < config_.heads; ++head) {
      const PackedMatrix& keys = l.head_keys.views[static_cast<std::size_t>(head)];
      const PackedMatrix& values = l.head_values.views[static_cast<std::size_t>(head)];
      for (std::int64_t r = 0; r < latent.rank; ++r) {
        for (std::int64_t i = 0; i < latent.plain_dim; ++i)
          ASSERT_EQ(packed_at(keys, r / kPanelColumns, r % kPanelColumns, i),
                    up.at(head * both + i, r));
        for (std::int64_t i = 0; i < latent.value_dim; ++i)
          ASSERT_EQ(packed_at(values, i / kPanelColumns, i % kPanelColumns, r),
                    up.at(head * both + latent.plain_dim + i, r));
      }
    }
  }
}

TEST_P(Weights, FeedForwardBlocksAlternateGateAndUp) {
  const MoeConfig& moe = config_.moe;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const DenseWeights weights = load_dense_weights(checkpoint_, {weight_type(dtype)}, pool_, {});
    for (int layer = 0; layer < config_.layers; ++layer) {
      const DenseWeights::Layer& l = weights.layers[static_cast<std::size_t>(layer)];
      if (!config_.sparse(layer)) {
        expect_ffn(l.ffn.view,
                   {names_.dense_gate, names_.dense_up, names_.dense_down},
                   config_.dense_inter,
                   layer,
                   -1);
        EXPECT_EQ(l.router.whole().data, nullptr);
        continue;
      }
      EXPECT_EQ(l.router.whole().type, WeightType::f32);
      expect_columns(
          l.router.whole(), 0, stored(names_.router, {moe.experts, config_.hidden}, layer));
      if (moe.shared_inter > 0) {
        expect_ffn(l.shared.view,
                   {names_.shared_gate, names_.shared_up, names_.shared_down},
                   moe.shared_inter,
                   layer,
                   -1);
      }
      EXPECT_EQ(l.shared_gate.whole().data != nullptr, moe.shared_gate);
    }
  }
}

TEST_P(Weights, EveryExpertLiesInItsSlotAndEmptySlotsCostNothing) {
  for (const int ranks : {1, 2, 3, 4}) {
    for (Rank rank = 0; rank < ranks; ++rank) {
      const ExpertWeights weights =
          load_expert_weights(checkpoint_, {WeightType::bf16}, {rank}, ranks, pool_, {});
      for (int layer = 0; layer < config_.layers; ++layer) {
        const ExpertWeights::Layer& l = weights.layers[static_cast<std::size_t>(layer)];
        if (!config_.sparse(layer)) {
          EXPECT_TRUE(l.slots.empty());
          continue;
        }
        ASSERT_EQ(std::ssize(l.slots), l.placement.slots_per_rank());
        std::size_t bytes = 0;
        for (std::size_t slot = 0; slot < l.slots.size(); ++slot) {
          const ExpertId expert = l.placement.expert_of(rank * l.placement.slots_per_rank() +
                                                        static_cast<SlotId>(slot));
          const GatedFfnWeights& ffn = l.slots[slot];
          ASSERT_EQ(ffn.gate_up.data != nullptr, expert >= 0);
          if (expert < 0) continue;
          expect_ffn(ffn,
                     {names_.expert_gate, names_.expert_up, names_.expert_down},
                     config_.moe.inter,
                     layer,
                     expert);
          if (config_.moe.expert_bias) expect_biases(ffn, layer, expert);
          bytes += expert_block_bytes(ffn);
        }
        EXPECT_EQ(l.memory.size(), bytes);
      }
    }
  }
}

/// The bytes of one matrix, or of the biases, of every expert's slices, one slice behind the other.
using PartOf = std::function<std::span<const std::byte>(const GatedFfnWeights&)>;

std::vector<std::byte> joined(const std::vector<ExpertWeights>& slices, const PartOf& part) {
  std::vector<std::byte> all;
  for (std::size_t layer = 0; layer < slices.front().layers.size(); ++layer) {
    for (std::size_t slot = 0; slot < slices.front().layers[layer].slots.size(); ++slot) {
      for (const ExpertWeights& slice : slices) {
        const auto bytes = part(slice.layers[layer].slots[slot]);
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
    }
  }
  return all;
}

TEST_P(Weights, SlicesOfExpertsAreTheirPanelsAndNoMore) {
  const auto panels = [](const PackedMatrix& m, std::int64_t count) {
    return std::span(m.data, m.panel_bytes() * static_cast<std::size_t>(count));
  };
  const auto floats = [](const float* x, std::int64_t count) {
    return std::as_bytes(std::span(x, static_cast<std::size_t>(count * kPanelColumns)));
  };
  const std::vector<PartOf> parts = {
      [&](const auto& w) { return panels(w.gate_up, w.gate_up.gated_panels()); },
      [&](const auto& w) { return panels(w.down, w.down.panels()); },
      [&](const auto& w) {
        return w.biased ? floats(w.gate_up_bias, w.gate_up.gated_panels())
                        : std::span<const std::byte>();
      },
      [&](const auto& w) {
        return w.biased ? floats(w.down_bias, w.down.panels()) : std::span<const std::byte>();
      }};
  for (const WeightType type : weight_types()) {
    std::vector<ExpertWeights> whole;
    whole.push_back(load_expert_weights(checkpoint_, {type}, {0}, 1, pool_, {}));
    for (const int count : {2, 3}) {
      std::vector<ExpertWeights> slices;
      std::size_t bytes = 0;
      for (int slice = 0; slice < count; ++slice) {
        slices.push_back(
            load_expert_weights(checkpoint_, {type}, {0, {slice, count}}, 1, pool_, {}));
        for (const auto& layer : slices.back().layers) bytes += layer.memory.size();
      }
      for (const auto& layer : whole.front().layers) bytes -= layer.memory.size();
      EXPECT_EQ(bytes, 0U);
      for (const PartOf& part : parts) {
        EXPECT_EQ(joined(slices, part), joined(whole, part))
            << weight_type_name(type) << ", " << count << " slices, part " << &part - &parts[0];
      }
    }
  }
}

TEST_P(Weights, ExpertsThatWereWrittenQuantisedPackToTheSameBytes) {
  for (const WeightType type :
       {WeightType::int8, WeightType::fp8, WeightType::int4, WeightType::mxfp4}) {
    const test::TempDir directory;
    write_quantized(checkpoint_, {.type = type}, directory.path() / "out", pool_, {});
    const Checkpoint written = Checkpoint::open(directory.path() / "out");
    EXPECT_TRUE(written.unused().empty());
    const ExpertWeights expected = load_expert_weights(checkpoint_, {type}, {0}, 1, pool_, {});
    const ExpertWeights found =
        load_expert_weights(written, choose_weights(written, {}), {0}, 1, pool_, {});
    for (std::size_t layer = 0; layer < found.layers.size(); ++layer) {
      const Buffer& a = expected.layers[layer].memory;
      const Buffer& b = found.layers[layer].memory;
      ASSERT_EQ(a.size(), b.size());
      EXPECT_TRUE(a.size() == 0 || std::memcmp(a.data(), b.data(), a.size()) == 0)
          << weight_type_name(type) << " layer " << layer;
    }
  }
}

TEST_P(Weights, EmbeddingAndHeadHoldTheVocabulary) {
  const DenseWeights weights = load_dense_weights(checkpoint_, {WeightType::f32}, pool_, {});
  const std::vector<std::int64_t> shape = {config_.vocab, config_.hidden};
  const Stored embedding = stored(names_.embedding, shape, -1);
  std::vector<float> found(static_cast<std::size_t>(config_.hidden));
  for (std::int64_t row = 0; row < config_.vocab; ++row) {
    weights.embedding.read(row, reinterpret_cast<std::byte*>(found.data()), nullptr);
    for (std::int64_t k = 0; k < config_.hidden; ++k)
      ASSERT_EQ(found[static_cast<std::size_t>(k)], embedding.at(row, k));
  }
  EXPECT_EQ(weights.head.whole().n, config_.vocab);
  expect_columns(weights.head.whole(),
                 0,
                 config_.tied_embeddings ? embedding : stored(names_.lm_head, shape, -1));
}

TEST_P(Weights, ProgressRisesToAllBytesThatAreRead) {
  std::uint64_t last = 0;
  std::uint64_t total = 0;
  int calls = 0;
  const LoadProgress progress = [&](std::uint64_t done, std::uint64_t of) {
    EXPECT_GE(done, calls == 0 ? 0 : last);
    last = done;
    total = of;
    ++calls;
  };
  std::uint64_t read = 0;
  const auto finish = [&] {
    EXPECT_EQ(last, total);
    EXPECT_GT(calls, 1);
    read += total;
    calls = 0;
  };
  load_dense_weights(checkpoint_, {WeightType::bf16}, pool_, progress);
  finish();
  for (Rank rank = 0; rank < 2; ++rank) {
    load_expert_weights(checkpoint_, {WeightType::bf16}, {rank}, 2, pool_, progress);
    finish();
  }
  std::uint64_t stored_bytes = 0;
  for_each_tensor(unstacked(config_), [&](const TensorSpec& spec) {
    const bool twice = config_.tied_embeddings && spec.role == TensorRole::embedding;
    stored_bytes += checkpoint_.stored_bytes(spec) * (twice ? 2 : 1);
  });
  EXPECT_EQ(read, stored_bytes);
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Weights,
                         testing::ValuesIn(test::kGoldenModels),
                         [](const auto& param) { return std::string(param.param); });

/// What a config calls mxfp4 and the files hold as bf16 is not rounded.
TEST(WeightType, PlainExpertsAreNotRoundedToFourBitsUnasked) {
  const test::TempDir temp;
  const auto copy = temp.path() / "model";
  std::filesystem::copy(test::data_dir("qwen3_bf16"), copy);
  auto config = nlohmann::json::parse(test::read_file(copy / "config.json"));
  config["quantization_config"] = nlohmann::json::parse(written_format(WeightType::mxfp4).config);
  test::write_file(copy / "config.json", config.dump());
  const Checkpoint checkpoint = Checkpoint::open(copy);
  EXPECT_NE(checkpoint.config().stored_format, nullptr);
  EXPECT_EQ(choose_weights(checkpoint, {}).type, WeightType::bf16);
  EXPECT_EQ(choose_weights(checkpoint, WeightType::mxfp4).type, WeightType::mxfp4);
}

TEST(WeightType, FollowsTheCheckpointUnlessToldOtherwise) {
  const auto type_of = [](const char* model, std::optional<WeightType> wanted) {
    return choose_weights(Checkpoint::open(test::data_dir(model)), wanted).type;
  };
  EXPECT_EQ(type_of("qwen2_untied", {}), WeightType::f32);
  EXPECT_EQ(type_of("qwen3_bf16", {}), WeightType::bf16);
  EXPECT_EQ(type_of("deepseek_v3_fp8", {}), WeightType::fp8);
  EXPECT_EQ(type_of("gpt_oss_mxfp4", {}), WeightType::mxfp4);
  EXPECT_EQ(type_of("qwen3_f16_tied_sharded", {}), WeightType::f32);
  for (const WeightType type : weight_types()) EXPECT_EQ(type_of("qwen3_bf16", type), type);
}

/// Rows of int8 are for blocks and mxfp4; nobody is told that they are used where they are not.
TEST(WeightType, MeetsBytesWhereThatWasAskedFor) {
  const auto rounded = [](const char* model, std::optional<WeightType> wanted = {}) {
    const Checkpoint checkpoint = Checkpoint::open(test::data_dir(model));
    const WeightChoice choice = choose_weights(checkpoint, wanted, Activations::int8);
    return held_names(checkpoint, choice) + ": " + check_activations(checkpoint, choice);
  };
  EXPECT_EQ(rounded("gguf/layers_in_turn.gguf"),
            "q8_0_int8, q4_0_int8: activations: rows become int8 where weights are q8_0_int8, "
            "q4_0_int8");
  EXPECT_TRUE(rounded("gpt_oss_mxfp4").starts_with("mxfp4_int8: "));
  EXPECT_TRUE(rounded("qwen3_bf16", WeightType::mxfp4).starts_with("mxfp4_int8: "));
  EXPECT_TRUE(rounded("qwen3_bf16", WeightType::int8).starts_with("int8: "));
  EXPECT_THROW(rounded("qwen3_bf16"), ConfigError);
  EXPECT_THROW(rounded("deepseek_v3_fp8"), ConfigError);
  const Checkpoint plain = Checkpoint::open(test::data_dir("qwen3_bf16"));
  EXPECT_EQ(check_activations(plain, choose_weights(plain, {})), "");
  EXPECT_EQ(parse_activations("int8", "--x"), Activations::int8);
  EXPECT_EQ(parse_activations("auto", "--x"), Activations::automatic);
  EXPECT_THROW(parse_activations("int4", "--x"), ConfigError);
}

/// Its layers' blocks are of one type and another.
TEST(WeightType, EachMatrixOfAGgufFileKeepsItsOwn) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("gguf/layers_in_turn.gguf"));
  ThreadPool pool(2);
  const WeightChoice choice = choose_weights(checkpoint, {});
  EXPECT_TRUE(choice.as_stored);
  EXPECT_EQ(held_names(checkpoint, choice), "q8_0, q4_0");
  EXPECT_EQ(held_names(checkpoint, choose_weights(checkpoint, WeightType::bf16)), "bf16");
  const DenseWeights dense = load_dense_weights(checkpoint, choice, pool, {});
  EXPECT_EQ(dense.head.whole().type, WeightType::q8_0);
  EXPECT_EQ(dense.dtype, DType::bf16);
  const ExpertWeights experts = load_expert_weights(checkpoint, choice, {0}, 1, pool, {});
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < experts.layers.size(); ++i) {
    const WeightType type = i % 2 == 0 ? WeightType::q8_0 : WeightType::q4_0;
    EXPECT_EQ(dense.layers[i].router.whole().type, WeightType::f32);
    for (const GatedFfnWeights& slot : experts.layers[i].slots) {
      EXPECT_EQ(slot.gate_up.type, type);
      EXPECT_EQ(slot.down.type, type);
      bytes += expert_block_bytes(slot);
    }
  }
  EXPECT_EQ(bytes_per_rank(checkpoint, 1)[0].memory.experts, bytes);
}

/// Bytes of a matrix that are not zero.
std::size_t written_bytes(const OwnedMatrix& matrix) {
  const std::byte* data = matrix.memory.data();
  return matrix.memory.size() -
         static_cast<std::size_t>(std::count(data, data + matrix.memory.size(), std::byte{0}));
}

TEST(Weights, MembersOfAGroupLoadTheirColumnsAlone) {
  const Checkpoint checkpoint = Checkpoint::open(test::data_dir("qwen3_untied"));
  ThreadPool pool(1);
  const DenseWeights whole = load_dense_weights(checkpoint, {WeightType::f32}, pool, {});
  constexpr int kMembers = 3;
  const auto& whole_mixer = mixer_weights<AttentionWeights>(whole, 0);
  std::size_t head = 0;
  std::size_t output = 0;
  for (int m = 0; m < kMembers; ++m) {
    const DenseWeights share =
        load_dense_weights(checkpoint, {WeightType::f32}, pool, {}, {m, kMembers});
    EXPECT_LT(written_bytes(share.head), written_bytes(whole.head) / 2);
    const auto& mixer = mixer_weights<AttentionWeights>(share, 0);
    EXPECT_LT(written_bytes(mixer.qkv), written_bytes(whole_mixer.qkv) * 3 / 4);
    head += written_bytes(share.head);
    output += written_bytes(mixer.output);
  }
  EXPECT_EQ(head, written_bytes(whole.head));
  EXPECT_EQ(output, written_bytes(whole_mixer.output));
}

}  // namespace
}  // namespace ferry
