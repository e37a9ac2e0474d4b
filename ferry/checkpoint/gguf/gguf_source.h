// A model in GGUF files: one file, or several that are parts of one.
#pragma once

#include <filesystem>
#include <memory>

#include "ferry/checkpoint/tensor_source.h"

namespace ferry {

/// Any file that is no directory and whose name ends in .gguf.
bool is_gguf_file(const std::filesystem::path& path);

/// Maps every part; `path` is the first. Throws ModelError naming file, what was expected and what
/// was found.
std::unique_ptr<TensorSource> open_gguf_file(const std::filesystem::path& path);

}  // namespace ferry
