// What lies beside the weights of a checkpoint that is written: tokenizer, templates, config.json.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "ferry/checkpoint/new_directory.h"
#include "ferry/model/checkpoint.h"

namespace ferry {

/// The source's config.json, to be changed before it is written. Throws ModelError.
nlohmann::json config_of(const Checkpoint& source);

/// Writes `config`, and everything beside the source's weights as it is; of a source that keeps
/// such things in another form, what it makes of them. Throws Error.
void write_texts(const Checkpoint& source, const nlohmann::json& config, NewDirectory& files);

}  // namespace ferry
