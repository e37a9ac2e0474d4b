// A directory that `ferry pack` wrote: config.json, tokenizer and templates as in Hugging Face's
// layout, and one file of packed weights.
#pragma once

#include <filesystem>
#include <memory>

#include "ferry/checkpoint/tensor_source.h"

namespace ferry {

/// A directory with such a file.
bool is_packed_directory(const std::filesystem::path& path);

/// Its packed tensors are listed with types of their own ("int8 panels"), each piece's bytes with
/// the first tensor that it was made of. Throws as PackedFile does.
std::unique_ptr<TensorSource> open_packed_directory(const std::filesystem::path& path);

}  // namespace ferry
