// Tiny checkpoints with transformers' own answers (tools/make_golden.py), and a way to run them on
// any number of ranks and threads with any cut of the tokens into steps.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/launch.h"
#include "ferry/model/decoder.h"
#include "support/files.h"
#include "support/long_tests.h"

namespace ferry::test {

inline constexpr std::array kGoldenModels = {"deepseek_v2_groups_bf16",
                                             "deepseek_v2_lite",
                                             "deepseek_v3",
                                             "deepseek_v3_fp8",
                                             "deepseek_v32",
                                             "deepseek_v32_sparse",
                                             "dots1",
                                             "ernie4_5_moe",
                                             "glm4_moe",
                                             "glm4_moe_air_bf16",
                                             "glm4_moe_lite",
                                             "glm_moe_dsa",
                                             "glm_moe_dsa_sparse",
                                             "gpt_oss",
                                             "gpt_oss_mxfp4",
                                             "hunyuan_v1_moe",
                                             "kimi_k2",
                                             "kimi_k25_pictures_int4",
                                             "lfm2_moe",
                                             "llama4_pictures_bf16",
                                             "llama4_text",
                                             "minimax_m2",
                                             "mistral4",
                                             "mixtral",
                                             "mixtral_window_bf16",
                                             "olmoe",
                                             "olmoe_grouped_bf16",
                                             "qwen2_awq",
                                             "qwen2_bf16_sparse_step",
                                             "qwen2_new_config",
                                             "qwen2_tied_sharded",
                                             "qwen2_untied",
                                             "qwen3_5_moe_pictures_bf16",
                                             "qwen3_5_moe_text",
                                             "qwen3_bf16",
                                             "qwen3_f16_tied_sharded",
                                             "qwen3_gptq_order",
                                             "qwen3_int4_zeros",
                                             "qwen3_new_config_mixed",
                                             "qwen3_next",
                                             "qwen3_next_bf16",
                                             "qwen3_stacked",
                                             "qwen3_untied"};

/// Whether tests run `model` in all ways (ranks, groups, chunks, threads, experts that move). What
/// is common to all families is so; in a slow run one is enough for each kind of attention and
/// routing.
inline bool runs_all_ways(std::string_view model) {
  constexpr std::array kOfEachKind = {"deepseek_v3",
                                      "deepseek_v32_sparse",
                                      "gpt_oss_mxfp4",
                                      "llama4_text",
                                      "mixtral_window_bf16",
                                      "qwen2_bf16_sparse_step",
                                      "qwen3_next"};
  return !slow_run() ||
         std::find(kOfEachKind.begin(), kOfEachKind.end(), model) != kOfEachKind.end();
}

inline constexpr const char* kMainRunHasIt = "the main run has it for every model";

/// One prompt, the 32 tokens that transformers continues it with, and its f32 logits.
struct GoldenPrompt {
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> greedy;
  std::vector<float> logits;         // [prompt, vocab]
  std::vector<float> greedy_logits;  // [greedy, vocab]: rows that chose `greedy`

  /// Prompt and continuation.
  std::vector<std::int32_t> tokens() const {
    std::vector<std::int32_t> all = prompt;
    all.insert(all.end(), greedy.begin(), greedy.end());
    return all;
  }
};

inline std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsFile::Entry* entry = file.find(name);
  if (entry == nullptr) throw std::runtime_error("no tensor " + name);
  const TensorView view = file.view(*entry);
  std::vector<float> values(view.bytes / sizeof(float));
  std::memcpy(values.data(), view.data, view.bytes);
  return values;
}

inline std::vector<GoldenPrompt> golden_prompts(const std::string& model) {
  std::ifstream in(data_dir(model) / "golden.json");
  const auto golden = nlohmann::json::parse(in);
  const SafetensorsFile file(data_dir(model) / "golden.safetensors");
  std::vector<GoldenPrompt> prompts;
  for (const auto& p : golden.at("prompts")) {
    prompts.push_back({p.at("input_ids").get<std::vector<std::int32_t>>(),
                       p.at("greedy").get<std::vector<std::int32_t>>(),
                       read_floats(file, p.at("logits").get<std::string>()),
                       read_floats(file, p.at("greedy_logits").get<std::string>())});
  }
  return prompts;
}

/// How a model is run; sequence i lives on group i % (ranks / tp).
struct ModelRun {
  WeightType weights = WeightType::f32;
  int ranks = 1;
  int tp = 1;
  int expert_slices = 1;
  int redundant = 0;       ///< experts
  int threads = 1;         ///< of each rank
  int chunk = 512;         ///< tokens of a sequence in one step
  bool together = true;    ///< all sequences in each step, else one after the other
  bool as_found = false;   ///< weights are held as the checkpoint has them, whatever `weights` says
  bool own_share = false;  ///< each rank loads the dense weights that it computes with, no more
  MoeA2ABackend backend = MoeA2ABackend::pplx;
  std::optional<WireType> kv_type = {};
  Activations activations = Activations::automatic;
};

/// Tokens [begin, end) of a sequence.
struct Slice {
  std::size_t sequence;
  std::size_t begin, end;
};

/// The steps, each a list of slices, that ModelRun asks for.
inline std::vector<std::vector<Slice>> cut_into_steps(
    const std::vector<std::vector<std::int32_t>>& sequences, const ModelRun& run) {
  std::vector<std::vector<Slice>> steps;
  const auto chunk = static_cast<std::size_t>(run.chunk);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const std::size_t first = run.together ? 0 : steps.size();
    for (std::size_t begin = 0; begin < sequences[s].size(); begin += chunk) {
      const std::size_t step = first + begin / chunk;
      if (steps.size() <= step) steps.resize(step + 1);
      steps[step].push_back({s, begin, std::min(begin + chunk, sequences[s].size())});
    }
  }
  return steps;
}

/// The logits at every position of each sequence, [sequence][position * vocab].
inline std::vector<std::vector<float>> run_model(
    const std::string& model,
    const std::vector<std::vector<std::int32_t>>& sequences,
    const ModelRun& run) {
  const Checkpoint checkpoint = Checkpoint::open(data_dir(model));
  const ModelConfig& config = checkpoint.config();
  const WeightChoice choice = choose_weights(
      checkpoint, run.as_found ? std::nullopt : std::optional(run.weights), run.activations);
  ThreadPool loader(1);
  const auto dense =
      std::make_shared<const DenseWeights>(load_dense_weights(checkpoint, choice, loader, {}));
  const auto steps = cut_into_steps(sequences, run);
  int max_tokens = 1;
  for (const auto& step : steps) {
    std::size_t tokens = 0;
    for (const Slice& slice : step) tokens += slice.end - slice.begin;
    max_tokens = std::max(max_tokens, static_cast<int>(tokens));
  }

  std::vector<std::vector<float>> logits(sequences.size());
  const int status = run_ranks(
      {.transport = "inproc", .ranks = run.ranks, .start_timeout = std::chrono::seconds(60)},
      [&](Transport& transport) {
        ThreadPool pool(run.threads);
        const auto group = static_cast<std::size_t>(transport.rank() / run.tp);
        const auto groups = static_cast<std::size_t>(transport.size() / run.tp);
        const GroupMember member{transport.rank() % run.tp, run.tp};
        Decoder decoder(
            config,
            run.own_share ? std::make_shared<const DenseWeights>(
                                load_dense_weights(checkpoint, choice, pool, {}, member))
                          : dense,
            load_expert_weights(
                checkpoint,
                choice,
                ExpertPlacement::identity(config.layers,
                                          config.sparse_layers() > 0 ? config.moe.experts : 1,
                                          transport.size() / run.expert_slices,
                                          config.sparse_layers() > 0 ? run.redundant : 0),
                {transport.rank() / run.expert_slices,
                 {transport.rank() % run.expert_slices, run.expert_slices}},
                pool,
                {}),
            {.tp = run.tp,
             .expert_slices = run.expert_slices,
             .max_tokens = max_tokens,
             .backend = run.backend,
             .dispatch_wire = {},
             .combine_wire = {},
             .kv_type = run.kv_type},
            transport,
            pool);
        PagePool pages(decoder.state_layout());
        std::vector<SequenceState> states;
        for (const auto& sequence : sequences)
          states.emplace_back(pages, static_cast<int>(sequence.size()));
        for (const auto& step : steps) {
          std::vector<SequenceStep> batch;
          std::vector<Slice> mine;
          for (const Slice& slice : step) {
            if (slice.sequence % groups != group) continue;
            const auto& tokens = sequences[slice.sequence];
            batch.push_back({.state = &states[slice.sequence],
                             .tokens = {tokens.data() + slice.begin, slice.end - slice.begin},
                             .logits = SequenceStep::Logits::all});
            mine.push_back(slice);
          }
          const std::span<const float> rows = decoder.forward(batch);
          decoder.commit();
          const float* next = rows.data();
          if (transport.rank() % run.tp != run.tp - 1) continue;  // any of a group will do
          for (const Slice& slice : mine) {
            const auto n = (slice.end - slice.begin) * static_cast<std::size_t>(config.vocab);
            logits[slice.sequence].insert(logits[slice.sequence].end(), next, next + n);
            next += n;
          }
        }
        return 0;
      });
  EXPECT_EQ(status, 0);
  return logits;
}

/// 1 - 2xy / (x^2 + y^2): 0 when equal, 2e-3 when they differ by about 4 % of their norm.
inline double calc_diff(std::span<const float> x, std::span<const float> y) {
  double xy = 0.0;
  double xx_yy = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double a = x[i];
    const double b = y[i];
    xy += a * b;
    xx_yy += a * a + b * b;
  }
  return 1.0 - 2.0 * xy / xx_yy;
}

}  // namespace ferry::test
