// A model whose ranks come and go while it generates: weights, keys and values stay with those that
// stay, and every token and every bit of the logits is that of a run which nothing disturbed.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "../transport/joining.h"
#include "ferry/kernels/kernels.h"
#include "ferry/membership.h"
#include "support/golden_model.h"

namespace ferry {
namespace {

using std::chrono::seconds;

constexpr int kMaxTokens = 64;
constexpr WeightChoice kChoice{WeightType::bf16};

ExpertPlacement identity(const ModelConfig& config, int ranks) {
  return ExpertPlacement::identity(config.layers, config.moe.experts, ranks);
}

/// One sequence on its way: greedy tokens, and a hash over all logits that they were chosen by.
class Generation {
 public:
  Generation(PagePool& pages, int number)
      : state_(pages, kMaxTokens), next_{3 + number, 17, 5 + 2 * number, 9} {}

  SequenceStep step() { return {.state = &state_, .tokens = next_}; }

  void take(std::span<const float> logits) {
    for (const float value : logits) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      hash_ = (hash_ ^ bits) * 0x100000001b3U;
    }
    const auto best = std::ranges::max_element(logits) - logits.begin();
    text_ += fmt::format("{} ", best);
    next_ = {static_cast<std::int32_t>(best)};
  }

  std::string text() const { return fmt::format("{}{:016x}", text_, hash_); }

 private:
  SequenceState state_;
  std::vector<std::int32_t> next_;
  std::string text_;
  std::uint64_t hash_ = 0xcbf29ce484222325U;
};

/// One rank of the model in one epoch after another.
class EpochRank {
 public:
  explicit EpochRank(const std::string& model,
                     int tp = 1,
                     const Kernels* kernels = nullptr,
                     int slices = 1)
      : tp_(tp),
        slices_(slices),
        pool_(1, kernels),
        checkpoint_(Checkpoint::open(test::data_dir(model))),
        dense_(std::make_shared<const DenseWeights>(
            load_dense_weights(checkpoint_, kChoice, pool_, {}))) {}

  /// The first epoch, or the next one.
  void enter(std::unique_ptr<Transport> transport) {
    const ModelConfig& config = checkpoint_.config();
    ExpertWeights held;
    if (decoder_) held = decoder_->sparse_layers().take_experts();
    decoder_.reset();
    transport_ = std::move(transport);
    decoder_.emplace(
        config,
        dense_,
        next_expert_weights(std::move(held),
                            checkpoint_,
                            kChoice,
                            identity(config, transport_->size() / slices_),
                            {transport_->rank() / slices_, {transport_->rank() % slices_, slices_}},
                            pool_),
        DecoderOptions{.tp = tp_, .expert_slices = slices_, .max_tokens = kMaxTokens},
        *transport_,
        pool_);
    if (!pages_) pages_.emplace(decoder_->state_layout());
  }

  /// Peers map the experts from now on.
  void share_experts() { decoder_->sparse_layers().share_blocks(*transport_); }

  void begin(int number) { sequence_.emplace(*pages_, number); }

  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      std::vector<SequenceStep> batch;
      if (sequence_) batch.push_back(sequence_->step());
      const std::span<const float> logits = decoder_->forward(batch);
      decoder_->commit();
      if (sequence_) sequence_->take(logits);
    }
  }

  std::string text() const { return sequence_ ? sequence_->text() : "nothing"; }

 private:
  const int tp_;
  const int slices_;
  ThreadPool pool_;
  const Checkpoint checkpoint_;
  const std::shared_ptr<const DenseWeights> dense_;
  std::unique_ptr<Transport> transport_;
  std::optional<Decoder> decoder_;
  std::optional<PagePool> pages_;
  std::optional<Generation> sequence_;
};

/// What a single rank generates in so many steps.
std::string undisturbed(const std::string& model, int number, int steps) {
  return in_threads(1, [&](int, Store& store) {
    EpochRank rank(model);
    rank.enter(join({.transport = "inproc", .rank = 0, .size = 1}, store));
    rank.begin(number);
    rank.steps(steps);
    return rank.text();
  })[0];
}

Membership member(const std::string& transport,
                  int index,
                  int founders,
                  Store& store,
                  std::chrono::nanoseconds timeout = seconds(30)) {
  const JoinOptions options{
      .transport = transport, .rank = index, .size = founders, .join_timeout = timeout};
  return index < founders ? Membership::found(options, store)
                          : Membership::announce(options, store);
}

struct Case {
  std::string model;
  std::string transport;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model << " over " << c.transport; }

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* model : {"deepseek_v3", "gpt_oss_mxfp4", "qwen2_bf16_sparse_step", "qwen3_next"})
    for (const char* transport : {"inproc", "shm"}) all.push_back({model, transport});
  return all;
}

class EpochsOf : public testing::TestWithParam<Case> {
 protected:
  const std::string model_ = GetParam().model;
  const std::string transport_ = GetParam().transport;
};

INSTANTIATE_TEST_SUITE_P(Models, EpochsOf, testing::ValuesIn(cases()), [](const auto& p) {
  return p.param.model + "_" + p.param.transport;
});

std::atomic<int> products{0};

/// The scalar kernels, which say that they were called.
Kernels counting_kernels() {
  Kernels table = kernels_for(Isa::scalar);
  table.gemm = [](const GemmArgs& args) {
    ++products;
    kernels_for(Isa::scalar).gemm(args);
  };
  return table;
}

TEST_P(EpochsOf, RanksMayComputeWithKernelsOfTheirOwn) {
  if (transport_ != "inproc") GTEST_SKIP() << "one process counts";
  const Kernels scalar = counting_kernels();
  products = 0;
  const auto heard = in_threads(2, [&](int index, Store& store) {
    EpochRank rank(model_, 1, index == 0 ? nullptr : &scalar);
    rank.enter(join({.transport = "inproc", .rank = index, .size = 2}, store));
    rank.begin(index);
    rank.steps(3);
    return rank.text();
  });
  for (int index = 0; index < 2; ++index)
    EXPECT_EQ(heard[static_cast<std::size_t>(index)], undisturbed(model_, index, 3));
  EXPECT_GT(products, 0);
}

/// Ranks 0, 1, 2; then 0, 1, which map each other's experts; then 0, 1 and a newcomer, which has no
/// sequence at first.
TEST_P(EpochsOf, GenerationGoesOnWhileRanksComeAndGo) {
  const auto heard = in_ranks_of(transport_, 4, [&](int index, Store& store) -> std::string {
    EpochRank self(model_);
    Membership membership = member(transport_, index, 3, store);
    if (index < 3) {
      self.enter(membership.next());
      if (index < 2) self.begin(index);
      self.steps(3);
      if (index == 0) membership.publish(std::vector{0, 1}, {});
      auto end = membership.next();
      if (!end) return "left " + self.text();
      self.enter(std::move(end));
      self.share_experts();
      self.steps(3);
      if (index == 0) {
        while (membership.newcomers().empty()) std::this_thread::sleep_for(seconds(1) / 500);
        membership.publish(std::vector{0, 1}, membership.newcomers());
      }
    }
    self.enter(membership.next());
    self.steps(2);
    if (index == 3) self.begin(2);
    self.steps(4);
    return self.text();
  });
  EXPECT_EQ(heard[0], undisturbed(model_, 0, 12));
  EXPECT_EQ(heard[1], undisturbed(model_, 1, 12));
  EXPECT_EQ(heard[2], "left nothing");
  EXPECT_EQ(heard[3], undisturbed(model_, 2, 4));
}

constexpr const char* kModel = "gpt_oss_mxfp4";

/// Two groups of two, of which the second one stays: its members become ranks 0 and 1.
std::vector<std::string> heard_of_groups(int slices) {
  return in_threads(4, [&](int index, Store& store) -> std::string {
    EpochRank self(kModel, 2, nullptr, slices);
    Membership membership = member("inproc", index, 4, store);
    self.enter(membership.next());
    self.begin(index / 2);
    self.steps(3);
    if (index == 2) membership.publish(std::vector{2, 3}, {});
    auto end = membership.next();
    if (!end) return self.text();
    self.enter(std::move(end));
    self.steps(3);
    return self.text();
  });
}

TEST(Epochs, AGroupKeepsItsHeadsKeysAndValues) {
  const std::string left = undisturbed(kModel, 0, 3);
  const std::string stayed = undisturbed(kModel, 1, 6);
  for (const int slices : {1, 2})
    EXPECT_EQ(heard_of_groups(slices), (std::vector{left, left, stayed, stayed})) << slices;
}

/// A step fails, the survivors meet without the dead rank and run the same step again.
TEST(Epochs, ARankKilledBetweenBoundariesTakesNoSequenceOfOthersWithIt) {
  testing::internal::CaptureStderr();
  const auto heard = in_processes(3, [&](int index, Store& store) {
    EpochRank self(kModel);
    Membership membership = member("shm", index, 3, store);
    self.enter(membership.next());
    self.begin(index);
    self.steps(3);
    if (index == 1) kill(getpid(), SIGKILL);
    EXPECT_THROW(self.steps(1), Error);
    if (index == 0) membership.publish(std::vector{0, 2}, {});
    self.enter(membership.next());
    self.steps(4);
    return self.text();
  });
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(heard[0], undisturbed(kModel, 0, 7));
  EXPECT_EQ(heard[1], "killed");
  EXPECT_EQ(heard[2], undisturbed(kModel, 2, 7));
}

/// The epoch that it was to be in is not made; the next one, without it, is.
TEST(Epochs, ARankKilledAtTheBoundaryTakesNoSequenceOfOthersWithIt) {
  testing::internal::CaptureStderr();
  const auto heard = in_processes(4, [&](int index, Store& store) -> std::string {
    EpochRank self(kModel);
    // The newcomer's calls: number, name, invitation, members; it dies at the first one of join().
    DeadlyStore deadly(store, index == 3 ? 4 : -1);
    Membership membership = member("shm", index, 3, deadly, seconds(4));
    if (index == 3) {
      (void)membership.next();
      return "alive";
    }
    self.enter(membership.next());
    self.begin(index);
    self.steps(3);
    if (index == 0) {
      while (membership.newcomers().empty()) std::this_thread::sleep_for(seconds(1) / 500);
      membership.publish(std::vector{0, 1, 2}, membership.newcomers());
    }
    EXPECT_THROW((void)membership.next(), TransportError);
    self.steps(1);  // the old epoch still holds
    if (index == 0) membership.publish(std::vector{1, 0}, {});
    auto end = membership.next();
    if (!end) return self.text();
    self.enter(std::move(end));  // each with the other's number
    self.steps(3);
    return self.text();
  });
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(heard[0], undisturbed(kModel, 0, 7));
  EXPECT_EQ(heard[1], undisturbed(kModel, 1, 7));
  EXPECT_EQ(heard[2], undisturbed(kModel, 2, 4));
  EXPECT_EQ(heard[3], "killed");
}

/// What a rank holds: the place of each expert of each layer, and how much memory there is.
struct Holding {
  std::multimap<std::pair<std::size_t, ExpertId>, const std::byte*> places;
  std::size_t bytes = 0;
};

Holding holding_of(const ExpertWeights& weights) {
  Holding holding;
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    const ExpertWeights::Layer& layer = weights.layers[i];
    holding.bytes += layer.memory.size();
    for (std::size_t slot = 0; slot < layer.slots.size(); ++slot) {
      const auto id = static_cast<SlotId>(
          static_cast<std::size_t>(weights.holder.rank) * layer.slots.size() + slot);
      if (layer.placement.expert_of(id) >= 0)
        holding.places.emplace(std::pair(i, layer.placement.expert_of(id)),
                               layer.slots[slot].gate_up.data);
    }
  }
  for (const auto& [memory, block_bytes] : weights.more) holding.bytes += memory.size();
  return holding;
}

/// Any number of ranks, this one anywhere among them, experts anywhere and some of them twice.
TEST(NextExpertWeights, KeepsWhatStaysWhereItIsAndReadsTheRest) {
  for (const char* model :
       {"gpt_oss_mxfp4", "qwen2_bf16_sparse_step", "gguf/layers_in_turn.gguf"}) {
    const Checkpoint checkpoint = Checkpoint::open(test::data_dir(model));
    const ModelConfig& config = checkpoint.config();
    ThreadPool pool(1);
    const WeightChoice choice = std::string_view(model).ends_with(".gguf")
                                    ? choose_weights(checkpoint, {})  // layers of two sizes
                                    : kChoice;
    const ExpertWeights all = load_expert_weights(checkpoint, choice, {0}, 1, pool, {});
    std::size_t bytes = 0;  // of the largest
    for (const ExpertWeights::Layer& layer : all.layers)
      if (!layer.slots.empty()) bytes = std::max(bytes, expert_block_bytes(layer.slots.front()));
    std::mt19937 random(7);
    ExpertWeights held;
    std::size_t most = 0;  // experts of this rank in any epoch
    for (int epoch = 0; epoch < 60; ++epoch) {
      const int ranks = 1 + static_cast<int>(random() % 4);
      const Rank rank = static_cast<Rank>(random() % static_cast<unsigned>(ranks));
      const int slots = (config.moe.experts + 2 + ranks - 1) / ranks * ranks;
      std::vector<Placement> placements;
      for (int layer = 0; layer < config.layers; ++layer) {
        std::vector<ExpertId> map(static_cast<std::size_t>(slots), -1);
        std::iota(map.begin(), map.begin() + config.moe.experts, 0);
        map[static_cast<std::size_t>(config.moe.experts)] = 1;
        std::shuffle(map.begin(), map.end(), random);
        placements.emplace_back(map, config.moe.experts, ranks);
      }
      const Holding before = holding_of(held);
      held = next_expert_weights(std::move(held),
                                 checkpoint,
                                 choice,
                                 ExpertPlacement(std::span(placements)),
                                 {rank},
                                 pool);
      const Holding after = holding_of(held);
      std::multimap<const std::byte*, ExpertId> owners;
      for (const auto& [what, place] : after.places) {
        const auto& truth = all.layers[what.first].slots[static_cast<std::size_t>(what.second)];
        ASSERT_EQ(std::memcmp(place, truth.gate_up.data, expert_block_bytes(truth)), 0)
            << "epoch " << epoch;
        owners.emplace(place, what.second);
        ASSERT_EQ(owners.count(place), 1u) << "two experts in one place";
        if (before.places.count(what) != 1 || after.places.count(what) != 1) continue;
        ASSERT_EQ(before.places.find(what)->second, place) << "moved without need";
      }
      most = std::max(most, after.places.size());
      EXPECT_LE(after.bytes, most * bytes);
    }
  }
}

}  // namespace
}  // namespace ferry
