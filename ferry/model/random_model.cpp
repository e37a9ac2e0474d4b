#include "ferry/model/random_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/new_directory.h"
#include "ferry/checkpoint/safetensors_writer.h"
#include "ferry/core/error.h"
#include "ferry/core/hash.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/family.h"
#include "ferry/text/tokenizer_parts.h"

namespace ferry {

using nlohmann::json;

namespace fs = std::filesystem;

namespace {

constexpr int kByteTokens = 256;
constexpr const char* kEndOfText = "<|endoftext|>";
constexpr std::size_t kBlock = 1 << 16;  // values generated at a time: stays in the L2 cache

constexpr std::array<std::string_view, 3> kPresets = {"tiny", "small", "bench"};

json config_json(const RandomModelOptions& options, const ModelFamily& family) {
  json fields = {{"architectures", {family.architecture}},
                 {"model_type", family.model_type},
                 {"hidden_act", "silu"},
                 {"hidden_size", options.hidden},
                 {"num_hidden_layers", options.layers},
                 {"num_attention_heads", options.heads},
                 {"num_key_value_heads", options.kv_heads},
                 {"head_dim", options.head_dim},
                 {"vocab_size", options.vocab},
                 {"max_position_embeddings", options.max_positions},
                 {"rms_norm_eps", 1e-6},
                 {"rope_theta", 1000000.0},
                 {"tie_word_embeddings", options.tied_embeddings},
                 {"torch_dtype",
                  options.dtype == DType::f32    ? "float32"
                  : options.dtype == DType::bf16 ? "bfloat16"
                                                 : "float16"},
                 {"eos_token_id", kByteTokens}};
  ModelConfig sizes;
  sizes.layers = options.layers;
  sizes.predictors = options.predictor ? 1 : 0;
  sizes.heads = options.heads;
  sizes.head_dim = options.head_dim;
  sizes.dense_inter = options.inter;
  sizes.moe.experts = options.experts;
  sizes.moe.topk = options.topk;
  sizes.moe.inter = options.inter;
  sizes.moe.shared_inter = options.shared_inter;
  family.write(sizes, fields);
  return fields;
}

const ModelFamily& family_named(const std::string& name) {
  const ModelFamily* family = find_family(name);
  if (family != nullptr) return *family;
  std::string known;
  for (const ModelFamily& f : model_families()) {
    known += known.empty() ? "" : ", ";
    known += f.model_type;
  }
  fail<ConfigError>("architecture {}: expected one of {}", name, known);
}

/// 256 byte tokens and one that ends a text.
json tokenizer_json() {
  json vocab = json::object();
  for (int b = 0; b < kByteTokens; ++b) vocab[letter_of_byte(static_cast<unsigned char>(b))] = b;
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", false},
                           {"use_regex", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", kByteTokens},
             {"content", kEndOfText},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", false},
             {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", json::array()}}}};
}

/// With all layers that are written.
ModelConfig written_config(const RandomModelOptions& options) {
  ModelConfig config = random_model_config(options);
  return options.predictor ? with_draft_layer(std::move(config), "the model") : config;
}

std::uint64_t stream_of(const std::string& name, std::uint64_t seed) {
  Fnv1a hash(mix64(seed));
  hash.add(name);
  return mix64(hash.value());
}

/// Value i of a stream: nearly normal, of mean 0 and deviation 1. The sum of four 16-bit numbers
/// from one hash: integers until the last step, so that every machine gets the same bits.
float normal(std::uint64_t stream, std::uint64_t i) {
  const std::uint64_t h = mix64(stream + i * 0x9E3779B97F4A7C15U);
  const auto sum = static_cast<std::int32_t>((h & 0xFFFF) + (h >> 16 & 0xFFFF) +
                                             (h >> 32 & 0xFFFF) + (h >> 48)) -
                   131070;
  return static_cast<float>(sum) * 2.6428996e-5F;  // 1 / sqrt(4 * (2^32 - 1) / 12)
}

struct Distribution {
  float mean, deviation;
};

/// Keeps every activation and logit near a deviation of 1.
Distribution distribution_of(const TensorSpec& spec, const ModelConfig& config) {
  switch (spec.role) {
    case TensorRole::norm:
      return {1.0F, 0.1F};
    case TensorRole::bias:
      return {0.0F, 0.1F};
    case TensorRole::embedding: {
      const TensorNames& names = family_of(config).names;
      if (spec.name == tensor_name(names, names.embedding) && !config.tied_embeddings)
        return {0, 1};
      break;
    }
    default:
      break;
  }
  // Of [experts, in, out] as of [out, in]: by the inputs of a product.
  const bool in_first = spec.role == TensorRole::expert && spec.shape.size() == 3 &&
                        config.moe.storage != ExpertStorage::rows;
  const std::int64_t inputs = in_first ? spec.shape[1] : spec.shape.back();
  return {0.0F, 1.0F / std::sqrt(static_cast<float>(inputs))};
}

/// Streams the values of one tensor into a writer.
class TensorFiller {
 public:
  explicit TensorFiller(const RandomModelOptions& options)
      : options_(options), values_(kBlock), bytes_(kBlock * dtype_bytes(options.dtype)) {}

  void fill(const TensorSpec& spec, const ModelConfig& config, SafetensorsWriter& writer) {
    const std::uint64_t stream = stream_of(spec.name, options_.seed);
    const Distribution distribution = distribution_of(spec, config);
    const auto total = static_cast<std::uint64_t>(spec.elements());
    for (std::uint64_t done = 0; done < total; done += kBlock) {
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, total - done));
      for (std::size_t i = 0; i < n; ++i) {
        values_[i] = distribution.mean + distribution.deviation * normal(stream, done + i);
      }
      kernels().convert(reinterpret_cast<const std::byte*>(values_.data()),
                        DType::f32,
                        bytes_.data(),
                        options_.dtype,
                        static_cast<std::int64_t>(n));
      writer.write({bytes_.data(), n * dtype_bytes(options_.dtype)});
    }
  }

 private:
  const RandomModelOptions& options_;
  std::vector<float> values_;
  std::vector<std::byte> bytes_;
};

using Shard = std::vector<TensorSpec>;

std::uint64_t bytes_of(const TensorSpec& spec, DType dtype) {
  return static_cast<std::uint64_t>(spec.elements()) * dtype_bytes(dtype);
}

/// Tensors in order, a new shard wherever the next one would pass the limit.
std::vector<Shard> plan_shards(const ModelConfig& config, const RandomModelOptions& options) {
  std::vector<Shard> shards(1);
  std::uint64_t bytes = 0;
  for_each_tensor(config, [&](const TensorSpec& spec) {
    const std::uint64_t more = bytes_of(spec, options.dtype);
    if (!shards.back().empty() && bytes + more > options.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(spec);
    bytes += more;
  });
  return shards;
}

}  // namespace

std::span<const std::string_view> random_model_presets() { return kPresets; }

std::optional<RandomModelOptions> random_model_preset(std::string_view name) {
  RandomModelOptions options;
  if (name == "tiny") return options;
  if (name == "small") {  // tens of MB: a laptop's smoke test
    options.hidden = 256;
    options.layers = 4;
    options.heads = 8;
    options.kv_heads = 4;
    options.head_dim = 32;
    options.experts = 16;
    options.topk = 4;
    options.inter = 128;
    options.shared_inter = 256;
    options.vocab = 1024;
    return options;
  }
  if (name == "bench") {  // 1.7 G parameters, 3.4 GB in bf16: weights that no cache holds
    options.hidden = 2048;
    options.layers = 4;
    options.heads = 16;
    options.kv_heads = 16;
    options.head_dim = 128;
    options.experts = 64;
    options.topk = 8;
    options.inter = 1024;
    options.shared_inter = 1024;
    options.vocab = 4096;
    options.max_positions = 32768;
    return options;
  }
  return std::nullopt;
}

ModelConfig random_model_config(const RandomModelOptions& options) {
  const ModelFamily& family = family_named(options.arch);
  if (options.vocab <= kByteTokens) {
    fail<ConfigError>("vocab: expected at least {}, found {}", kByteTokens + 1, options.vocab);
  }
  try {
    return parse_config(config_json(options, family).dump(), "options of the model");
  } catch (const ModelError& e) {
    throw ConfigError(e.what());  // here the caller's numbers are wrong, not a file
  }
}

std::uint64_t random_model_bytes(const RandomModelOptions& options) {
  std::uint64_t bytes = 0;
  for_each_tensor(written_config(options),
                  [&](const TensorSpec& spec) { bytes += bytes_of(spec, options.dtype); });
  return bytes;
}

void write_random_model(const RandomModelOptions& options,
                        const fs::path& directory,
                        const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const ModelConfig config = written_config(options);
  const std::uint64_t total = random_model_bytes(options);
  const std::vector<Shard> shards = plan_shards(config, options);
  NewDirectory files(directory);
  files.require_space(total);
  TensorFiller filler(options);
  json weight_map = json::object();
  std::uint64_t done = 0;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    std::vector<TensorHeader> headers;
    for (const TensorSpec& spec : shards[s]) {
      headers.push_back({spec.name, options.dtype, spec.shape});
      weight_map[spec.name] = name;
    }
    SafetensorsWriter writer(files.add(name), headers);
    for (const TensorSpec& spec : shards[s]) {
      filler.fill(spec, config, writer);
      done += bytes_of(spec, options.dtype);
      if (progress) progress(done, total);
    }
    writer.close();
  }
  if (shards.size() > 1) {
    const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    files.add_text("model.safetensors.index.json", index.dump(2));
  }
  files.add_text("tokenizer.json", tokenizer_json().dump(1));
  files.add_text("generation_config.json", json{{"eos_token_id", kByteTokens}}.dump(2));
  files.add_text("config.json", config_json(options, family_named(options.arch)).dump(2));
  files.finish();
}

}  // namespace ferry
