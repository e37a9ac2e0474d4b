// Checkpoints with a layer that predicts further tokens: what transformers' own layer drafts
// (tools/golden/draft_layer.py), and one whose drafts are always right.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/checkpoint/safetensors_writer.h"
#include "support/files.h"

namespace ferry::test {

inline constexpr std::array kDraftModels = {
    "deepseek_v3_mtp", "glm4_moe_mtp", "qwen3_next_mtp", "qwen3_5_moe_mtp"};
inline constexpr std::size_t kDraftTokens = 3;

/// A prompt with its answer, and the drafts behind each number of these tokens that have run; none
/// where rounding could make others.
struct GoldenDrafts {
  std::vector<std::int32_t> tokens;
  std::vector<std::optional<std::vector<std::int32_t>>> drafts;  // [tokens]
};

inline std::vector<GoldenDrafts> golden_drafts(const std::string& model) {
  std::ifstream in(data_dir(model) / "golden.json");
  const auto golden = nlohmann::json::parse(in);
  std::vector<GoldenDrafts> all;
  for (const auto& p : golden.at("prompts")) {
    GoldenDrafts& one = all.emplace_back();
    one.tokens = p.at("input_ids").get<std::vector<std::int32_t>>();
    for (const auto& token : p.at("greedy")) one.tokens.push_back(token.get<std::int32_t>());
    for (const auto& draft : p.at("drafts")) {
      one.drafts.emplace_back();
      if (!draft.is_null()) one.drafts.back() = draft.get<std::vector<std::int32_t>>();
    }
  }
  return all;
}

/// Writes `model` anew so that the token behind each one depends on that one alone, as all layers
/// add nothing: and so that what drafts does what the model does. So greedy drafts come true.
inline void write_sure_drafts(const std::string& model, const std::filesystem::path& to) {
  std::filesystem::create_directories(to);
  for (const char* name : {"config.json", "generation_config.json", "tokenizer.json"})
    std::filesystem::copy_file(data_dir(model) / name, to / name);
  const SafetensorsFile file(data_dir(model) / "model.safetensors");
  std::vector<TensorHeader> headers;
  for (const auto& entry : file.entries())
    headers.push_back({entry.name, entry.dtype.value(), entry.shape});
  SafetensorsWriter writer(to / "model.safetensors", headers);
  for (const auto& entry : file.entries()) {
    if (entry.dtype != DType::f32) throw std::runtime_error(entry.name + " is not f32");
    std::vector<float> values(entry.bytes / sizeof(float));
    std::memcpy(values.data(), file.data(entry).data(), entry.bytes);
    const auto is = [&](std::string_view end) { return entry.name.ends_with(end); };
    if (is("o_proj.weight") || is("out_proj.weight") || is("down_proj.weight") || is("down_proj"))
      std::ranges::fill(values, 0.0F);
    if (is("enorm.weight") || is("pre_fc_norm_embedding.weight") || is("shared_head.norm.weight") ||
        entry.name == "mtp.norm.weight" || entry.name == "model.norm.weight")
      std::ranges::fill(values, model.starts_with("qwen3") ? 0.0F : 1.0F);  // of 1 + weight
    if (is("eh_proj.weight") || entry.name == "mtp.fc.weight") {  // the embedding as it is
      const auto hidden = static_cast<std::size_t>(entry.shape[0]);
      std::ranges::fill(values, 0.0F);
      for (std::size_t i = 0; i < hidden; ++i) values[i * 2 * hidden + i] = 1.0F;
    }
    writer.write(std::as_bytes(std::span(values)));
  }
  writer.close();
}

}  // namespace ferry::test
