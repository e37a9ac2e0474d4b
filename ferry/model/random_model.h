// Checkpoints of random weights in Hugging Face layout, for any family and size: what
// `ferry make-model` writes, for benchmarks and tests.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ferry/core/types.h"
#include "ferry/model/config.h"

namespace ferry {

struct RandomModelOptions {
  std::string arch = "qwen3_moe";  ///< a family by model_type or architecture
  int hidden = 64;
  int layers = 2;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  int experts = 8;
  int topk = 2;
  int inter = 32;         ///< width of one expert
  int shared_inter = 32;  ///< width of the shared expert, in families that have one
  int vocab = 288;        ///< at least 257: the bytes and an end-of-text token
  int max_positions = 4096;
  bool tied_embeddings = false;
  bool predictor = false;  ///< with a layer that predicts further tokens
  DType dtype = DType::bf16;
  std::uint64_t seed = 0;
  std::uint64_t max_shard_bytes = std::uint64_t{2} << 30;  ///< a larger model is cut into shards
};

/// The sizes that go by a name; "tiny" first. Null for an unknown name.
std::span<const std::string_view> random_model_presets();
std::optional<RandomModelOptions> random_model_preset(std::string_view name);

/// What the options amount to. Throws ConfigError naming the field that cannot be.
ModelConfig random_model_config(const RandomModelOptions& options);

/// Bytes of weights that write_random_model will write.
std::uint64_t random_model_bytes(const RandomModelOptions& options);

/// Writes config.json, generation_config.json, tokenizer.json and the weights (with an index when
/// there is more than one shard) into `directory`, which is made when missing. Every file appears
/// whole, config.json last; after an error nothing is left. The same options give the same bytes on
/// every machine, and a tensor's values do not depend on the sharding. Needs a few MB of memory.
/// `progress` (may be empty) is told bytes done and in all. Throws ConfigError for impossible
/// options or a directory that is not empty, Error when writing fails.
void write_random_model(const RandomModelOptions& options,
                        const std::filesystem::path& directory,
                        const std::function<void(std::uint64_t, std::uint64_t)>& progress = {});

}  // namespace ferry
