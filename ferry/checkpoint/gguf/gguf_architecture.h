// Model architectures as llama.cpp names them: what their tensors are called by a family of ours,
// and the config.json that their metadata amounts to. docs/checkpoints.md, "GGUF".
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "ferry/checkpoint/gguf/gguf_fields.h"

namespace ferry {

/// What is done to a tensor to have it as a Hugging Face checkpoint has it.
enum class GgufForm : std::uint8_t {
  as_it_is,
  of_experts,        ///< [E, ...], of which each expert's is listed by itself
  of_gates_and_ups,  ///< [E, 2 I, ...]: likewise, of each gate and up, for which {half} stands
  one_row,           ///< [n] becomes [1, n]
  taps,              ///< [channels, taps] becomes [channels, 1, taps]
  less_one,          ///< what a norm multiplies by, of which 1 is taken off
  log_of_minus,      ///< the negative of an exponential, of which the logarithm is wanted
  // The same of architectures that keep heads of values in an order of their own (gguf_heads.h):
  tiled,               ///< [value_heads]
  tiled_log_of_minus,  ///< likewise
  tiled_taps,          ///< queries' and keys' channels, then those of values
};

struct GgufName {
  std::string_view stored;  ///< in GGUF; of a layer: what stands behind "blk.0."
  std::string_view name;    ///< what families ask for; {layer} and {expert} stand for numbers
  GgufForm form = GgufForm::as_it_is;
};

struct GgufArchitecture {
  std::string_view name;            ///< as in general.architecture
  std::span<const GgufName> names;  ///< its own; the others are as most have them
  void (*describe)(const GgufModel& model, nlohmann::json& config);
};

/// Throws ModelError for one that is not in the table.
const GgufArchitecture& gguf_architecture(const GgufFields& fields);

/// Absent when the architecture has no such tensor.
std::optional<GgufName> gguf_name(const GgufArchitecture& architecture, std::string_view stored);

/// The text of config.json.
std::string gguf_config(const GgufArchitecture& architecture, const GgufModel& model);

/// That of generation_config.json.
std::string gguf_generation_config(const GgufFields& fields);

}  // namespace ferry
