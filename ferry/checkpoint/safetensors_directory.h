// A directory in Hugging Face layout: config.json and one model.safetensors, or several shards with
// model.safetensors.index.json.
#pragma once

#include <filesystem>
#include <memory>

#include "ferry/checkpoint/tensor_source.h"

namespace ferry {

/// Any directory: what it lacks is said when it is opened.
bool is_safetensors_directory(const std::filesystem::path& path);

/// Maps every file. When both forms of weights are there, the index wins. Throws ModelError naming
/// file, what was expected and what was found.
std::unique_ptr<TensorSource> open_safetensors_directory(const std::filesystem::path& path);

}  // namespace ferry
