// A GGUF file's tokenizer and chat templates in the words of a Hugging Face directory's files.
#pragma once

#include <optional>
#include <string>

#include "ferry/checkpoint/gguf/gguf_fields.h"

namespace ferry {

/// The text of tokenizer.json; absent where the file has no tokenizer. Throws ModelError for one
/// that is not supported.
std::optional<std::string> gguf_tokenizer(const GgufFields& fields);

/// The text of tokenizer_config.json: special tokens and chat templates.
std::optional<std::string> gguf_tokenizer_config(const GgufFields& fields);

}  // namespace ferry
