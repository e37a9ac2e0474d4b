// What all routes know of the model they serve.
#pragma once

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <string>

#include "ferry/engine/sampler.h"
#include "ferry/model/config.h"
#include "ferry/text/chat.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

struct CallStyle;
struct ThinkingStyle;

/// Immutable while it is served. Pointers are borrowed and may be null.
struct ServedModel {
  std::string name;  ///< what clients call it
  std::string path;
  const ModelConfig* config = nullptr;
  const Tokenizer* tokenizer = nullptr;
  ChatRenderer render_chat;
  const CallStyle* calls = nullptr;            ///< how it writes calls of tools; null: not known
  const ThinkingStyle* thinking = nullptr;     ///< how it thinks; null: it does not, or in the open
  SamplingOptions sampling{.temperature = 1};  ///< where a client says nothing
  int max_context = 0;
  std::time_t started = 0;
  std::string weights;      ///< type they are held in
  std::string activations;  ///< what rows are rounded to: activations_name()
  std::string numerics;     ///< the class of the products: numerics_name()
  std::string kv_type;      ///< that of keys and values
  std::string backend;
  std::string transport;
  int ranks = 1;
};

/// The source of all chat templates of a checkpoint; empty where it has none.
std::string chat_template_text(const std::filesystem::path& directory);

/// What generation_config.json recommends: temperature, top_k, top_p, min_p; greedy where do_sample
/// is false. Without the file temperature 1. Throws ModelError for a damaged one.
SamplingOptions recommended_sampling(const std::filesystem::path& directory);

}  // namespace ferry
